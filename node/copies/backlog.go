package copies

import (
	"log/slog"
	"sync"
	"time"
)

// Times of announcements.
const (
	gather   = 100 * time.Millisecond // what comes together goes together
	maxBatch = 1024                   // objects in a call (peer.proto)

	firstPause = time.Second // before a replica is asked whether it has pulled
	lastPause  = time.Minute
	soonTells  = 5  // with firstPause between them, then with growing ones
	maxTells   = 20 // of one object to a member that can be reached, about 10 minutes
)

// Limits of what waits for one member (cluster.md 4.8).
const (
	maxWaiting      = 100_000
	maxWaitingBytes = 64 << 20 // of names, as in the file
)

// backlog is what waits for one member to confirm it. One goroutine at a time
// delivers it; that one alone touches the file.
type backlog struct {
	id   string
	log  *slog.Logger
	file hintFile
	wake chan struct{} // of one: something new waits

	mu        sync.Mutex
	delivered bool // somebody delivers it
	waiting   map[string]*waiting
	bytes     int64
	hinted    int  // of waiting that are in the file
	unsynced  bool // something was dropped
}

// waiting is one object.
type waiting struct {
	since  time.Time // when it was stored here
	due    time.Time // when to tell, or tell again
	tells  int       // so far
	light  bool      // may be forgotten
	hinted bool      // stands in the file
}

func (k *Keeper) newBacklog(id string) *backlog {
	return &backlog{
		id: id, log: k.log.With("peer", id), file: hintFile{path: k.hintPath(id)}, wake: make(chan struct{}, 1), waiting: map[string]*waiting{},
	}
}

// add queues an object, which may be waiting already.
func (b *backlog) add(name string, light bool) {
	now := time.Now()
	b.put(name, waiting{since: now, due: now, light: light})
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// put adds w, or tells again of what waits already. When there is too much, nothing
// waits any more but the comparison of all.
func (b *backlog) put(name string, w waiting) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if old := b.waiting[name]; old != nil {
		old.due, old.tells = w.due, 0
		return
	}
	b.waiting[name] = &w
	b.bytes += lineSize(name)
	if w.hinted {
		b.hinted++
	}
	if len(b.waiting) > maxWaiting || b.bytes > maxWaitingBytes {
		b.log.Warn("too much waits for a member, and is dropped", "objects", len(b.waiting))
		clear(b.waiting)
		b.bytes, b.hinted, b.unsynced = 0, 0, true
	}
}

// due returns what is to be told now, at most maxBatch, and how long until there is
// more to tell. Without anything that waits there is nobody who delivers any
// more.
func (b *backlog) due() (batch []string, pause time.Duration, empty bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) == 0 {
		b.delivered = false
		return nil, 0, true
	}
	now := time.Now()
	pause = lastPause
	for name, w := range b.waiting {
		if wait := w.due.Sub(now); wait > 0 {
			pause = min(pause, wait)
		} else if len(batch) < maxBatch {
			batch = append(batch, name)
		}
	}
	return batch, pause, false
}

// drop ends the waiting of an object.
func (b *backlog) drop(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.remove(name)
}

// remove is drop with mu held.
func (b *backlog) remove(name string) {
	w := b.waiting[name]
	if w == nil {
		return
	}
	if w.hinted {
		b.hinted--
	}
	b.bytes -= lineSize(name)
	delete(b.waiting, name)
}

// again says that an object is to be told of once more, and returns whether it has
// been told of too often by now.
func (b *backlog) again(name string) (tooOften bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.waiting[name]
	if w == nil {
		return false
	}
	pause := min(lastPause, firstPause<<min(max(0, w.tells-soonTells), 10))
	w.tells++
	w.due = time.Now().Add(pause)
	if w.tells > maxTells {
		b.remove(name)
		return true
	}
	return false
}

// postpone says that nothing can be told of an object now.
func (b *backlog) postpone(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w := b.waiting[name]; w != nil {
		w.due = time.Now().Add(lastPause)
	}
}

// oldest returns since when the object waits that waits longest.
func (b *backlog) oldest() (since time.Time, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, w := range b.waiting {
		if !w.light && (!ok || w.since.Before(since)) {
			since, ok = w.since, true
		}
	}
	return since, ok
}

func (b *backlog) hints() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.hinted
}

func (b *backlog) isUnsynced() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.unsynced
}

func (b *backlog) synced() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unsynced = false
}

// forget drops everything, as the member is gone for good.
func (b *backlog) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.waiting)
	b.bytes, b.hinted, b.unsynced = 0, 0, false
}
