package verify

import (
	"archive/zip"
	"cmp"
	"context"
	"crypto/sha256"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	modzip "golang.org/x/mod/zip"
)

const (
	// batch is how many new bytes are worth waking up for.
	batch = 64 << 10
	// maxAhead bounds the memory for what is known ahead, 5 MiB. The largest public
	// modules have 18,000 files; what comes behind is hashed at the end.
	maxAhead = 1 << 16
)

// Download hashes a zip while it arrives, so that little is left to do when its
// last byte is there. It only saves time: Zip judges by the zip's directory alone
// and takes a sum from here for those entries whose place, method, lengths and CRC
// in the directory are what was met there. Everything else it hashes itself.
//
// Advance, Zip and Close are for one goroutine.
type Download struct {
	v      *Verifier
	r      io.ReaderAt
	ctx    context.Context //nolint:containedctx // of Follow, ended by Close
	cancel context.CancelFunc

	started bool
	woken   int64         // what was there at the last wake
	wake    chan struct{} // for the reader, one token
	over    chan struct{} // closed when the reading ahead has ended
	crashed any           // what the reading ahead panicked with; read behind over

	there atomic.Int64 // bytes that may be read
	whole atomic.Bool  // there is the size

	mu      sync.Mutex
	entries []ahead // by place
	front   int64   // place of the entry that is being read ahead
	ended   bool    // front moves no more

	overtaken bool // front is the last
}

// ahead is an entry that was hashed before the directory was there.
type ahead struct {
	at           int64 // where its data begins
	packed, size uint64
	crc          uint32
	method       uint16
	described    bool // a descriptor with this CRC follows
	sum          [sha256.Size]byte
}

// Follow begins to hash the zip that is being written to r. Advance tells how
// far r has come. The caller must end it with Close, before it closes r.
func (v *Verifier) Follow(ctx context.Context, r io.ReaderAt) *Download {
	ctx, cancel := context.WithCancel(ctx)
	return &Download{
		v: v, r: r, ctx: ctx, cancel: cancel, front: math.MinInt64,
		wake: make(chan struct{}, 1), over: make(chan struct{}),
	}
}

// Advance says that the first n bytes are there. It never waits.
func (d *Download) Advance(n int64) {
	d.there.Store(n)
	if n-d.woken < batch {
		return
	}
	d.woken = n
	d.rouse()
}

// Close stops the hashing at once and returns when nothing reads any more.
func (d *Download) Close() {
	d.cancel()
	if d.started {
		<-d.over
	}
}

// rouse starts the reading ahead or tells it of news.
func (d *Download) rouse() {
	if !d.started {
		d.started = true
		go d.run()
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// finish says that size bytes are all.
func (d *Download) finish(size int64) {
	d.there.Store(size)
	d.whole.Store(true)
	if d.started {
		d.rouse()
		return
	}
	d.started, d.ended = true, true
	close(d.over)
}

// run reads ahead until something does not fit, the zip's directory begins or
// others do the rest.
func (d *Download) run() {
	defer close(d.over)
	defer func() {
		d.crashed = recover() // for Zip: the caller knows what to do with a panic
		d.mu.Lock()
		defer d.mu.Unlock()
		d.ended = true
	}()
	if d.v.acquire(d.ctx) != nil {
		return
	}
	s := &sequence{d: d, left: modzip.MaxZipFile, holds: true}
	s.tools = d.v.tools()
	s.tools.raw.Reset(s)
	defer func() {
		d.v.tidy(s.tools)
		if s.holds {
			d.v.release()
		}
	}()
	for range maxAhead {
		e, err := s.next()
		if err != nil {
			return
		}
		d.mu.Lock()
		d.entries = append(d.entries, e)
		d.mu.Unlock()
		if s.yield() != nil {
			return
		}
	}
}

// panicked returns what the reading ahead panicked with, if it did so far.
func (d *Download) panicked() any {
	select {
	case <-d.over:
		return d.crashed
	default:
		return nil
	}
}

// begin reports whether the entry whose data is at that place is still to be hashed.
func (d *Download) begin(at int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.overtaken {
		return false
	}
	d.front = at
	return true
}

// overtake ends the reading ahead with the entry that it is at: who knows the
// directory is faster.
func (d *Download) overtake() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.overtaken = true
}

// reading reports whether it is being read ahead now. The caller holds mu.
func (d *Download) reading(it *item) bool { return !d.ended && it.at == d.front }

// known copies the sum of a file whose data is at that place, if it was hashed
// ahead. The caller holds mu.
func (d *Download) known(file *zip.File, at int64, sum *[sha256.Size]byte) bool {
	i, ok := slices.BinarySearchFunc(d.entries, at, func(e ahead, at int64) int { return cmp.Compare(e.at, at) })
	if !ok {
		return false
	}
	e := &d.entries[i]
	if e.method != file.Method || e.packed != file.CompressedSize64 || e.size != file.UncompressedSize64 ||
		e.crc != file.CRC32 || file.Flags&described != 0 && !e.described {
		return false
	}
	*sum = e.sum
	return true
}
