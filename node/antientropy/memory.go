package antientropy

import (
	"time"

	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/ring"
)

const (
	settledFor  = 24 * time.Hour
	mostFailed  = 1 << 12
	firstFailed = time.Minute
	lastFailed  = 24 * time.Hour
	orphanGrace = 24 * time.Hour // cluster.md 4.10
)

// memory is what a Comparer knows from one round to the next.
type memory struct {
	began   time.Time // when Run did
	plan    *plan     // of the last round
	settled map[pairKey]pair
	failed  map[uint64]failure           // by hash of the target
	foreign map[ring.Partition]time.Time // since when a partition with objects is not ours
}

type pairKey struct {
	peer      string
	partition ring.Partition
	heir      bool // that has all of what is here, and not a partner who has nothing more
}

// pair are the sums of two nodes whose difference is settled.
type pair struct {
	ours, theirs store.Sum
	at           time.Time
}

// failure is a pull that did not succeed.
type failure struct {
	pause time.Duration
	until time.Time
}

func newMemory() memory {
	return memory{settled: map[pairKey]pair{}, failed: map[uint64]failure{}, foreign: map[ring.Partition]time.Time{}}
}

// isSettled tells whether a difference needs no other look.
func (m *memory) isSettled(key pairKey, ours, theirs store.Sum) bool {
	p, ok := m.settled[key]
	return ok && p.ours == ours && p.theirs == theirs && time.Since(p.at) < settledFor
}

// prune forgets pairs that are not of the plan.
func (m *memory) prune() {
	for key := range m.settled {
		_, in := m.plan.view.Find(key.peer)
		if of := m.plan.ours; !in || key.heir == of[key.partition] {
			delete(m.settled, key)
		}
	}
}

// hasFailed tells whether an object is not to be tried again yet.
func (m *memory) hasFailed(hash uint64) bool {
	f, ok := m.failed[hash]
	return ok && time.Now().Before(f.until)
}

// fail notes a failure. With too many of them, all are forgotten: then they are tried
// again too soon, which the period of rounds bounds.
func (m *memory) fail(hash uint64) {
	if len(m.failed) >= mostFailed {
		clear(m.failed)
	}
	f := m.failed[hash]
	f.pause = min(lastFailed, max(firstFailed, 2*f.pause))
	f.until = time.Now().Add(f.pause)
	m.failed[hash] = f
}
