package peers

import (
	"math/bits"
	"sync"
	"time"
)

// When a breaker opens, and when the peer is asked how it is.
const (
	rowLimit    = 5  // failures in a row
	window      = 20 // outcomes that are looked at
	windowLimit = 10 // failures among them

	minPause = time.Second
	maxPause = 10 * time.Second
)

type state uint8

const (
	closed state = iota // all is well, or nobody knows
	trial               // it has answered a probe, and no call yet
	open                // it does not answer
)

// breaker judges a peer by the outcomes of calls. The zero breaker is closed.
type breaker struct {
	mu    sync.Mutex
	state state
	epoch uint64 // counts changes; what began in another one has no say
	row   int    // failures since the last success
	bad   uint32 // the last outcomes, the newest in bit 0; 1 = failure or flaw
	known int    // how many of bad are outcomes
	pause time.Duration
}

// now returns the epoch for a call that begins.
func (b *breaker) now() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.epoch
}

func (b *breaker) isOpen() bool { return b.look() == open }

func (b *breaker) look() state {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

// success notes a good outcome and tells whether it closed an open breaker.
func (b *breaker) success(epoch uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if epoch != b.epoch {
		return false
	}
	b.row, b.pause = 0, 0
	b.note(0)
	was := b.state
	b.state = closed
	if was == open {
		b.begin(closed)
	}
	return was == open
}

// failure notes a bad outcome and tells whether it opened the breaker.
func (b *breaker) failure(epoch uint64, flaw bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if epoch != b.epoch || b.state == open {
		return false
	}
	b.note(1)
	if !flaw {
		b.row++
	}
	half := b.known == window && bits.OnesCount32(b.bad) >= windowLimit
	if b.row >= rowLimit || half || (b.state == trial && !flaw) {
		b.begin(open)
	}
	return b.state == open
}

// trip opens the breaker whatever the outcomes, and tells whether it was not.
func (b *breaker) trip() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == open {
		return false
	}
	b.begin(open)
	return true
}

// answered puts an open breaker on trial, and tells whether it was open.
func (b *breaker) answered() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state != open {
		return false
	}
	b.begin(trial)
	return true
}

// wait returns how long to wait before the peer is asked again, longer each time
// until a call succeeds.
func (b *breaker) wait() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pause = min(max(minPause, 2*b.pause), maxPause)
	return b.pause
}

// begin starts anew in another state. b.mu is held.
func (b *breaker) begin(s state) {
	b.state = s
	b.epoch++
	b.row, b.bad, b.known = 0, 0, 0
}

// note adds an outcome. b.mu is held.
func (b *breaker) note(bad uint32) {
	b.bad = (b.bad<<1 | bad) & (1<<window - 1)
	b.known = min(b.known+1, window)
}
