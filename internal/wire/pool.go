package wire

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/mem"
)

// Pool is a mem.BufferPool that does not clear what it hands out: gRPC's own
// clears up to 1 MiB for each chunk (perf.md 6.1). Its tiers are powers of two
// from 4 KiB to the size of a chunk; other sizes are allocated. The zero Pool is
// ready.
type Pool struct {
	tiers [maxTier - minTier + 1]sync.Pool
}

const (
	minTier = 12 // 4 KiB
	maxTier = 18 // ChunkSize
)

var _ mem.BufferPool = (*Pool)(nil)

// Get returns a buffer of that length with arbitrary content.
func (p *Pool) Get(length int) *[]byte {
	tier := max(bits.Len(uint(max(length, 1)-1)), minTier)
	if tier > maxTier {
		buf := make([]byte, length)
		return &buf
	}
	if buf, ok := p.tiers[tier-minTier].Get().(*[]byte); ok {
		*buf = (*buf)[:length]
		return buf
	}
	buf := make([]byte, length, 1<<tier)
	return &buf
}

// Put takes buf back.
func (p *Pool) Put(buf *[]byte) {
	tier := bits.Len(uint(cap(*buf))) - 1
	if tier < minTier || tier > maxTier || cap(*buf) != 1<<tier {
		return
	}
	p.tiers[tier-minTier].Put(buf)
}
