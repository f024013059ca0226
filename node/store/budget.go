package store

import (
	"errors"
	"math"
	"sync"
	"time"
)

var (
	// ErrFull says that an object has no room within the limit.
	ErrFull = errors.New("no room within the disk limit")
	// ErrReadOnly says that the disk takes nothing new for now: it is full or failing.
	ErrReadOnly = errors.New("the disk takes nothing new")
)

const (
	// Eviction begins above highMark of the limit and goes on until lowMark.
	highMark = 0.90
	lowMark  = 0.85
	// overhead is what an object takes beyond its bytes: the rest of its last block
	// and its entry.
	overhead = 4 << 10
	// reserveStep is how much is reserved at a time for what has no known length.
	reserveStep = 4 << 20
	// roomWait is how long a writer waits for eviction to make room.
	roomWait = 5 * time.Second
	// crowdedPart of a file system is the least that others should leave.
	crowdedPart = 10
)

// charge is what an object of size bytes counts as.
func charge(size int64) int64 { return size + overhead }

// budget holds the disk to its limit: what will be written is reserved before,
// so that the sum of what is there and what is reserved never exceeds it.
type budget struct {
	limit Limit
	held  func() int64          // bytes on the disk without what is reserved
	space func() (space, error) // of the file system
	evict func()                // wakes whoever evicts; must not block

	mu       sync.Mutex
	reserved int64         // for objects being written
	written  int64         // of these bytes, what is on the disk already
	wanted   int64         // by those who wait for room
	barren   bool          // nothing could be evicted when there was need
	changed  chan struct{} // closed and replaced when there may be more room
}

func newBudget(limit Limit, held func() int64, space func() (space, error), evict func()) *budget {
	return &budget{limit: limit, held: held, space: space, evict: evict, changed: make(chan struct{})}
}

// capacity is how much of the file system may be ours at the moment.
func (b *budget) capacity() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.capacityLocked(b.held())
}

func (b *budget) capacityLocked(held int64) int64 {
	if b.limit.Percent == 0 {
		if b.limit.Bytes == 0 {
			return math.MaxInt64
		}
		return b.limit.Bytes
	}
	s, err := b.space()
	if err != nil {
		return math.MaxInt64 // nobody tells what the share would be of
	}
	return int64(b.limit.Percent / 100 * float64(s.leftOf(held+b.written)))
}

// crowded tells, for a share, whether others have taken most of the file system.
func (b *budget) crowded() (s space, left int64, is bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, err := b.space()
	if b.limit.Percent == 0 || err != nil {
		return s, 0, false
	}
	left = s.leftOf(b.held() + b.written)
	return s, left, left < s.total()/crowdedPart
}

// share is the limit whatever others use.
func (b *budget) share() int64 {
	s, err := b.space()
	if b.limit.Percent == 0 || err != nil {
		return b.limit.Bytes
	}
	return int64(b.limit.Percent / 100 * float64(s.total()))
}

// taken returns what counts against the limit.
func (b *budget) taken() (taken, reserved int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held() + b.reserved, b.reserved
}

// reserve takes n bytes, and waits for them while eviction may make room. Else it
// returns ErrFull.
func (b *budget) reserve(n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.barren = false
	var deadline <-chan time.Time
	for {
		held := b.held()
		capacity := b.capacityLocked(held)
		if held+b.reserved+n <= capacity {
			b.reserved += n
			if float64(held+b.reserved) > highMark*float64(capacity) {
				b.evict()
			}
			return nil
		}
		if n > capacity || b.barren && b.reserved == 0 {
			return ErrFull
		}
		if deadline == nil {
			deadline = time.After(roomWait)
		}
		if !b.waitLocked(n, deadline) {
			return ErrFull
		}
	}
}

// reserveSpare takes n bytes if nothing has to be evicted for them.
func (b *budget) reserveSpare(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	held := b.held()
	spare := float64(held+b.reserved+n) <= highMark*float64(b.capacityLocked(held))
	if spare {
		b.reserved += n
	}
	return spare
}

// waitLocked waits for a change, and reports whether one came before the deadline.
func (b *budget) waitLocked(n int64, deadline <-chan time.Time) bool {
	b.wanted += n
	changed := b.changed
	if !b.barren { // else eviction and we would wake each other until the deadline
		b.evict()
	}
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.wanted -= n
	}()
	select {
	case <-changed:
		return true
	case <-deadline:
		return false
	}
}

// wrote notes that n reserved bytes are on the disk.
func (b *budget) wrote(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.written += n
}

// release gives back what was reserved, of which written bytes are on the disk:
// they are an object by now, or gone.
func (b *budget) release(reserved, written int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reserved -= reserved
	b.written -= written
	b.barren = false // what was being written may be an object by now
	b.changedLocked()
}

// evicted says that something was, or that nothing is left to be.
func (b *budget) evicted(something bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.barren = !something
	b.changedLocked()
}

func (b *budget) changedLocked() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// excess returns how many bytes should be evicted.
func (b *budget) excess() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	held := b.held()
	capacity := b.capacityLocked(held)
	taken := held + b.reserved
	if float64(taken) <= highMark*float64(capacity) && taken+b.wanted <= capacity {
		return 0
	}
	return max(0, taken-min(int64(lowMark*float64(capacity)), capacity-b.wanted))
}
