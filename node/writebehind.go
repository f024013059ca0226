package node

import (
	"context"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/ringmod/ringmod/node/store"
)

// Limits of what waits for the disk.
const (
	writeBehindBytes   = 64 << 20
	writeBehindWorkers = 16 // commits at once; they share index transactions
	// An object waits for others until none has come, and no zip, for
	// writeBehindQuiet, at most writeBehindDelay: the writes of a burst, such as a
	// module graph and its zips, then come behind its answers and not between
	// them, and share transactions.
	writeBehindQuiet = 500 * time.Millisecond
	writeBehindFull  = 4096 // objects that do not wait for more
	writeBehindDelay = 5 * time.Second
)

// WriteBehind stores small verified objects without making their readers wait
// for fsync. Until an object is stored, Pending yields it, so that nothing is
// fetched twice. What a crash takes away is absent and is fetched again.
type WriteBehind struct {
	store store.Store
	log   *slog.Logger

	room    *semaphore.Weighted // bytes that may still wait
	running sync.WaitGroup

	hurry func() // ends the waiting for others
	rush  <-chan struct{}

	stirred atomic.Int64 // how often somebody had better things to do than to write

	mu      sync.Mutex
	pending map[string]write
	queue   []write // not yet being stored
	ended   bool    // Wait waits: running must not grow any more
}

// write is one object on its way to the store.
type write struct {
	ctx   context.Context //nolint:containedctx // of the request, for the log
	name  string
	proof store.Proof
	data  []byte
}

// weight is what o takes of the room: one that is larger than all of it takes all.
func (o write) weight() int64 { return min(int64(len(o.data)), writeBehindBytes) }

// NewWriteBehind returns a writer in front of s.
func NewWriteBehind(s store.Store, log *slog.Logger) *WriteBehind {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	rush, hurry := context.WithCancel(context.Background())
	return &WriteBehind{
		store: s, log: log, pending: map[string]write{}, hurry: hurry, rush: rush.Done(),
		room: semaphore.NewWeighted(writeBehindBytes),
	}
}

// Put takes data, which the caller no longer changes. It waits when too much
// waits already, and fails only when ctx ends before there is room or after Wait.
func (w *WriteBehind) Put(ctx context.Context, name string, data []byte, proof store.Proof) error {
	o := write{context.WithoutCancel(ctx), name, proof, data}
	if err := w.room.Acquire(ctx, o.weight()); err != nil {
		return diskError(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		w.room.Release(o.weight())
		return diskError(fs.ErrClosed)
	}
	w.pending[name] = o
	w.queue = append(w.queue, o)
	if len(w.queue) == 1 {
		w.running.Go(w.flush)
	}
	return nil
}

// flush stores what comes together.
func (w *WriteBehind) flush() {
	w.gather()
	w.mu.Lock()
	queue := w.queue
	w.queue = nil
	w.mu.Unlock()
	var group errgroup.Group
	group.SetLimit(writeBehindWorkers)
	for _, each := range queue {
		group.Go(func() error {
			w.commit(each)
			return nil
		})
	}
	_ = group.Wait() // commit tells of its failures itself
}

// Stir says that a burst goes on, without an object to store.
func (w *WriteBehind) Stir() { w.stirred.Add(1) }

// gather returns when the burst is over.
func (w *WriteBehind) gather() {
	start := time.Now()
	for seen := int64(0); time.Since(start) < writeBehindDelay; {
		w.mu.Lock()
		queued := len(w.queue)
		w.mu.Unlock()
		events := int64(queued) + w.stirred.Load()
		if events == seen || queued >= writeBehindFull {
			return
		}
		seen = events
		select {
		case <-time.After(writeBehindQuiet):
		case <-w.rush:
			return
		}
	}
}

// Pending returns an object that waits to be stored.
func (w *WriteBehind) Pending(name string) (data []byte, proof store.Proof, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o, ok := w.pending[name]
	return o.data, o.proof, ok
}

// Wait returns when everything that was Put is stored or has failed. Nothing is
// taken any more.
func (w *WriteBehind) Wait() {
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	w.hurry()
	w.running.Wait()
}

func (w *WriteBehind) commit(o write) {
	defer w.room.Release(o.weight())
	err := put(w.store, o.name, small{o.data, o.proof})
	if err != nil {
		notStored(o.ctx, w.log, o.name, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pending, o.name)
}

// put stores o.
func put(to interface {
	Create(name string) (store.Pending, error)
}, name string, o small,
) error {
	p, err := to.Create(name)
	if err != nil {
		return err
	}
	defer p.Abort()
	if err := p.Reserve(int64(len(o.data))); err != nil {
		return err
	}
	if _, err := p.Write(o.data); err != nil {
		return err
	}
	_, err = p.Commit(o.Proof)
	return err
}
