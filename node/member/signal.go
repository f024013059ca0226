package member

import "sync"

// signal wakes one loop: many gives before a take are one.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) give() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// notice wakes everybody who waits, each time it is given.
type notice struct {
	mu sync.Mutex // guards ch
	ch chan struct{}
}

func newNotice() *notice { return &notice{ch: make(chan struct{})} }

func (n *notice) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ch
}

func (n *notice) give() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.ch)
	n.ch = make(chan struct{})
}

// latch is set once.
type latch struct {
	once sync.Once
	ch   chan struct{} // closed when set
}

func newLatch() *latch { return &latch{ch: make(chan struct{})} }

func (l *latch) set() { l.once.Do(func() { close(l.ch) }) }

// lock is a mutex that may be held while time passes: in a synctest, waiting for
// a sync.Mutex stops the clock.
type lock chan struct{}

func (l lock) lock()   { l <- struct{}{} }
func (l lock) unlock() { <-l }
