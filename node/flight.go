package node

import (
	"sync"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node/store"
)

// holdBack is how much of a zip waits for its verification: enough that no
// client can finish a file that is later found wrong, as the central directory
// is at a zip's end.
const holdBack = 64 << 10

// flights are the fills that run, one per object.
type flights struct {
	mu      sync.Mutex
	running map[string]*flight
}

// join returns the running fill of name, or nil.
func (fs *flights) join(name string) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.running[name]
}

// start returns the running fill of name, or a new one that the caller must run
// and end with remove.
func (fs *flights) start(name string, limit int) (f *flight, started bool, err error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.running[name]; f != nil {
		return f, false, nil
	}
	if len(fs.running) >= limit {
		return nil, false, &cache.Error{Reason: cache.Busy, Text: "too many fetches are waiting", RetryAfter: queueWait}
	}
	f = &flight{changed: make(chan struct{}), size: -1}
	fs.running[name] = f
	return f, true, nil
}

func (fs *flights) remove(name string) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	delete(fs.running, name)
}

// flight is one fill and what its followers may see of it. It goes from waiting
// to open (a zip whose upstream has answered) to verified to done; err ends it
// from anywhere.
type flight struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change

	size     int64         // of the object, -1 while unknown
	written  int64         // bytes in pending; written <= size where size is known
	pending  store.Pending // a zip being written; nil before it is open
	data     []byte        // a small object, whole and verified
	verified bool          // every byte of pending may be read
	proof    proof         // once it is verified or done
	done     bool          // the fill is over: stored, or err
	err      error
}

// flightState is what a follower sees at one moment.
type flightState struct {
	size     int64
	readable int64 // bytes of pending that may be read
	pending  store.Pending
	data     []byte
	verified bool
	proof    proof
	done     bool
	err      error
	changed  <-chan struct{} // closed when the state is no longer this one
}

func (f *flight) state() flightState {
	f.mu.Lock()
	defer f.mu.Unlock()
	readable := f.written
	if !f.verified {
		readable = max(0, f.written-holdBack)
	}
	return flightState{f.size, readable, f.pending, f.data, f.verified, f.proof, f.done, f.err, f.changed}
}

// change applies a change and wakes the followers.
func (f *flight) change(apply func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	apply()
	close(f.changed)
	f.changed = make(chan struct{})
}

// open shows followers a zip that is being written; size is -1 if upstream did
// not tell.
func (f *flight) open(p store.Pending, size int64) {
	f.change(func() { f.pending, f.size = p, size })
}

func (f *flight) advance(written int64) { f.change(func() { f.written = written }) }

// verify releases all bytes of pending.
func (f *flight) verify(p proof) {
	f.change(func() { f.verified, f.size, f.proof = true, f.written, p })
}

// finish ends the flight: with a small object, with what pending has, or with
// err.
func (f *flight) finish(o small, err error) {
	f.change(func() {
		f.data, f.err, f.done = o.data, err, true
		if o.data != nil {
			f.proof = o.proof
		}
	})
}
