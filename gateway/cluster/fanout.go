package cluster

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/ring"
)

const (
	fanoutLife = time.Minute // of what a node says of a version (cache.proto)
	maxFanouts = 4096
	maxFanout  = ring.MaxReplicas + 3
)

// fanouts are over how many ranks those versions may be read that nodes have called
// hot. The three files of a version share a partition, and what one of them is, the
// others are. The zero value is ready.
type fanouts struct {
	some atomic.Bool // of is not empty

	mu sync.RWMutex
	of map[module.Version]fanout
}

type fanout struct {
	ranks int
	since time.Time
}

// get returns over how many ranks t may be read; 0: over its replicas.
func (f *fanouts) get(t target.Target) int {
	if !f.some.Load() || !spreads(t.Kind) {
		return 0
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	each := f.of[t.Module()]
	if time.Since(each.since) > fanoutLife {
		return 0
	}
	return each.ranks
}

// note takes what a node has said of t; 0 ends nothing, as another replica may have
// more to do.
func (f *fanouts) note(t target.Target, ranks uint32) {
	if ranks == 0 || !spreads(t.Kind) {
		return
	}
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of == nil {
		f.of = make(map[module.Version]fanout)
	}
	if len(f.of) >= maxFanouts {
		maps.DeleteFunc(f.of, func(_ module.Version, each fanout) bool { return now.Sub(each.since) > fanoutLife })
	}
	if len(f.of) < maxFanouts {
		f.of[t.Module()] = fanout{int(min(ranks, maxFanout)), now}
	}
	f.some.Store(len(f.of) > 0)
}

// spreads tells whether objects of that kind may be hot.
func spreads(k target.Kind) bool { return k == target.Info || k == target.Mod || k == target.Zip }
