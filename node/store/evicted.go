package store

import (
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
)

const (
	lately      = 24 * time.Hour // what was evicted is remembered that long, at most twice as long
	mostEvicted = 1 << 16        // in each of two generations: with as many again, the older ones are forgotten
)

// evictedNames are what was evicted lately, so that nobody brings it back at once.
type evictedNames struct {
	mu    sync.Mutex
	began time.Time // the young generation
	young map[uint64]time.Time
	old   map[uint64]time.Time
}

func (n *evictedNames) add(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	n.turnLocked(now)
	if n.young == nil {
		n.young, n.began = make(map[uint64]time.Time), now
	}
	n.young[xxhash.Sum64String(name)] = now
}

// turnLocked begins another generation when the young one is full or old.
func (n *evictedNames) turnLocked(now time.Time) {
	if n.young == nil || len(n.young) < mostEvicted && now.Sub(n.began) < lately {
		return
	}
	if n.old = n.young; now.Sub(n.began) >= 2*lately {
		n.old = nil
	}
	n.young = nil
}

func (n *evictedNames) forget(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	hash := xxhash.Sum64String(name)
	delete(n.young, hash)
	delete(n.old, hash)
}

func (n *evictedNames) when(name string) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.turnLocked(time.Now())
	hash := xxhash.Sum64String(name)
	at, ok := n.young[hash]
	if !ok {
		at = n.old[hash]
	}
	if time.Since(at) >= 2*lately {
		return time.Time{}
	}
	return at
}

// Evicted returns when the object of that name was evicted, if that was lately and it
// was not stored since; else the zero time. A restart forgets.
func (d *Disk) Evicted(name string) time.Time { return d.gone.when(name) }
