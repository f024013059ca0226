package node

import (
	"context"
	"sync"

	"go.opentelemetry.io/otel/trace"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/spans"
	"github.com/ringmod/ringmod/node/store"
)

// holdBack is how much of a zip waits for its verification: enough that no
// client can finish a file that is later found wrong, as the central directory
// is at a zip's end.
const holdBack = 64 << 10

// flights are the fills that run: per object at most one that asks upstream
// itself and one that goes by way of other nodes.
type flights struct {
	mu      sync.Mutex
	running map[flightKey]*flight
}

type flightKey struct {
	name   string
	direct bool
}

// join returns a running fill of name, or nil. Who must not wait for other nodes
// joins direct ones only: two nodes that take each other for the coordinator would
// wait for each other for ever.
func (fs *flights) join(name string, directOnly bool) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.find(name, directOnly)
}

func (fs *flights) find(name string, directOnly bool) *flight {
	f := fs.running[flightKey{name, true}]
	if f == nil && !directOnly {
		f = fs.running[flightKey{name, false}]
	}
	return f
}

// start returns a running fill of name as join does, or a new one by that route,
// which the caller must run and end with remove.
func (fs *flights) start(ctx context.Context, name string, directOnly bool, route []Coordinator, limit int) (f *flight, started bool, err error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.find(name, directOnly); f != nil {
		return f, false, nil
	}
	if len(fs.running) >= limit {
		return nil, false, &cache.Error{Reason: cache.Busy, Text: "too many fetches are waiting", RetryAfter: queueWait}
	}
	f = &flight{flightKey: flightKey{name, len(route) == 0}, route: route, span: spans.Of(ctx), changed: make(chan struct{}), size: -1}
	f.life, f.cancel = context.WithCancel(context.Background())
	fs.running[f.flightKey] = f
	return f, true, nil
}

func (fs *flights) remove(f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.running[f.flightKey] == f { // else another one runs since this was ended
		delete(fs.running, f.flightKey)
	}
	f.cancel()
}

// flight is one fill and what its followers may see of it. It goes from waiting
// to open (a zip of which somebody sends bytes) to verified to done; err ends it
// from anywhere. It may begin anew, with another pending, when who goes on
// with it has other bytes.
type flight struct {
	flightKey

	route []Coordinator     // none: direct
	span  trace.SpanContext // of the request that began it

	life   context.Context //nolint:containedctx // ends when what is filled is purged
	cancel context.CancelFunc

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change

	source   cache.Source  // of the bytes, once there are any
	size     int64         // of the object, -1 while unknown
	written  int64         // bytes in pending; written <= size where size is known
	begun    int           // how often the bytes began anew
	pending  store.Pending // a zip being written; nil before it is open
	data     []byte        // a small object, whole and verified
	verified bool          // every byte of pending may be read
	proof    store.Proof   // once it is verified or done
	single   bool          // it was to be at a second node, and is not
	done     bool          // the fill is over: stored, kept or err
	err      error

	followers int         // that wait or read
	kept      *spool      // what was not stored, for those who wait for all of it
	entry     store.Entry // of the zip that was stored
	file      store.File  // its bytes, for those whom eviction comes before; nil = none are left
}

// flightState is what a follower sees at one moment.
type flightState struct {
	source   cache.Source
	size     int64
	readable int64 // bytes of pending that may be read
	begun    int
	pending  store.Pending
	data     []byte
	verified bool
	proof    store.Proof
	single   bool
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
	return flightState{f.source, f.size, readable, f.begun, f.pending, f.data, f.verified, f.proof, f.single, f.done, f.err, f.changed}
}

// change applies a change and wakes the followers.
func (f *flight) change(apply func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	apply()
	close(f.changed)
	f.changed = make(chan struct{})
}

// wait returns when the flight is over, or ctx is.
func (f *flight) wait(ctx context.Context) {
	for s := f.state(); !s.done; s = f.state() {
		select {
		case <-s.changed:
		case <-ctx.Done():
			return
		}
	}
}

// from says where the bytes come from.
func (f *flight) from(source cache.Source) { f.change(func() { f.source = source }) }

// open shows followers a zip that is being written, of which the first written
// bytes are there; size is -1 if nobody has told. Who reads another one has failed.
func (f *flight) open(p store.Pending, written, size int64) {
	f.change(func() { f.begun, f.pending, f.written, f.size = f.begun+1, p, written, size })
}

// sized tells the size that nobody knew when the zip was opened.
func (f *flight) sized(size int64) { f.change(func() { f.size = size }) }

// move lets followers go on in p, which has the same bytes.
func (f *flight) move(p store.Pending) { f.change(func() { f.pending = p }) }

// alone says that no second node has taken what is stored.
func (f *flight) alone() { f.change(func() { f.single = true }) }

// as says what another flight of this node has found, which has stored the object.
func (f *flight) as(own *flight) {
	if own.state().single {
		f.alone()
	}
}

func (f *flight) advance(written int64) { f.change(func() { f.written = written }) }

// verify releases all bytes of pending.
func (f *flight) verify(p store.Proof) {
	f.change(func() { f.verified, f.size, f.proof = true, f.written, p })
}

// finish ends the flight: with a small object, with what pending has, or with
// err. What comes after the end changes nothing.
func (f *flight) finish(o small, err error) {
	f.change(func() {
		if f.done {
			return
		}
		f.data, f.err, f.done = o.data, err, true
		if o.data != nil {
			f.proof = o.Proof
		}
		f.tidy()
	})
}

// end ends the flight while it runs, with err.
func (f *flight) end(err error) {
	f.finish(small{}, err)
	f.cancel()
}

// keep takes over s, which is complete, until nobody waits or reads any more.
func (f *flight) keep(s *spool) { f.change(func() { f.kept = s }) }

// commit takes over the file of a zip that was stored, likewise.
func (f *flight) commit(entry store.Entry, file store.File) {
	f.change(func() { f.entry, f.file = entry, file })
}

// committed returns what commit was called with, if that is still there. The caller is a
// follower.
func (f *flight) committed() (store.Entry, store.File) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.entry, f.file
}

// enter says that somebody waits or reads, until leave.
func (f *flight) enter() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.followers++
}

func (f *flight) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.followers--
	f.tidy()
}

// tidy gives back what was kept. The caller holds mu.
func (f *flight) tidy() {
	if !f.done || f.followers > 0 {
		return
	}
	if f.kept != nil {
		f.kept.Abort()
		f.kept = nil
	}
	if f.file != nil {
		_ = f.file.Close()
		f.file = nil
	}
}
