package hook

import (
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"github.com/ringmod/ringmod/internal/refresh"
)

const (
	pause    = time.Second // between orders for one path
	maxTurns = 1024        // paths with orders within the last pause, about

	maxSeen  = 4096
	keepSeen = 24 * time.Hour
)

// turns give orders for each path one after the other, with a pause in between. The zero
// value is ready.
type turns struct {
	mu    sync.Mutex
	paths map[string]*path
}

// path is what is known of one.
type path struct {
	last time.Time // when the last order was given
	next *turn     // that waits for the pause to end; nil: none
}

// turn is an order that is to be given.
type turn struct {
	done chan struct{}
	err  error // once done
}

// take returns when an order for a path was given that began after the call: its own, or
// one that was waiting.
func (ts *turns) take(ctx context.Context, name string, give func(context.Context, refresh.Subject) error) error {
	t, wait := ts.join(name)
	if wait < 0 {
		select {
		case <-t.done:
			return t.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	<-time.After(wait) // short, and others wait for this turn, too
	ts.mu.Lock()
	p := ts.paths[name]
	p.next, p.last = nil, time.Now()
	ts.mu.Unlock()
	defer close(t.done)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	t.err = give(ctx, refresh.Subject{Path: name, Below: true})
	return t.err
}

// join returns the next turn of a path and how long it is until then; less than 0: it is
// somebody else's.
func (ts *turns) join(name string) (t *turn, wait time.Duration) {
	now := time.Now()
	ts.mu.Lock()
	defer ts.mu.Unlock()
	p := ts.paths[name]
	if p == nil {
		ts.tidy(now)
		p = &path{}
		ts.paths[name] = p
	}
	if p.next != nil {
		return p.next, -1
	}
	p.next = &turn{done: make(chan struct{})}
	return p.next, max(0, pause-now.Sub(p.last))
}

// tidy makes room for another path. ts.mu is held.
func (ts *turns) tidy(now time.Time) {
	if ts.paths == nil {
		ts.paths = make(map[string]*path)
	}
	if len(ts.paths) < maxTurns {
		return
	}
	for name, p := range ts.paths {
		if p.next == nil && now.Sub(p.last) >= pause {
			delete(ts.paths, name)
		}
	}
}

// deliveries are those that were seen. The zero value is ready.
type deliveries struct {
	mu   sync.Mutex
	all  map[[sha256.Size]byte]time.Time // ids and bodies, hashed
	fifo [][sha256.Size]byte
}

// add notes a delivery, and tells whether its id or its body was seen before. forget takes
// that back.
func (d *deliveries) add(id string, body [sha256.Size]byte, now time.Time) (forget func(), replayed bool) {
	keys := [][sha256.Size]byte{sha256.Sum256(append([]byte("body:"), body[:]...))}
	if id != "" {
		keys = append(keys, sha256.Sum256([]byte("id:"+id)))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, key := range keys {
		at, seen := d.all[key]
		replayed = replayed || seen && now.Sub(at) < keepSeen
	}
	if replayed {
		return func() {}, true
	}
	if d.all == nil {
		d.all = make(map[[sha256.Size]byte]time.Time)
	}
	for _, key := range keys {
		d.all[key] = now
		d.fifo = append(d.fifo, key)
	}
	for len(d.fifo) > 2*maxSeen {
		delete(d.all, d.fifo[0])
		d.fifo = d.fifo[1:]
	}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, key := range keys {
			delete(d.all, key)
		}
	}, false
}
