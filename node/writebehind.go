package node

import (
	"context"
	"log/slog"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/ringmod/ringmod/node/store"
)

// Limits of what waits for the disk.
const (
	writeBehindBytes   = 64 << 20
	writeBehindWorkers = 16 // commits at once; they share index transactions
)

// WriteBehind stores small verified objects without making their readers wait
// for fsync. Until an object is stored, Pending yields it, so that nothing is
// fetched twice. What a crash takes away is absent and is fetched again.
type WriteBehind struct {
	store store.Store
	log   *slog.Logger

	room    *semaphore.Weighted // bytes that may still wait
	workers *semaphore.Weighted
	running sync.WaitGroup

	mu      sync.Mutex
	pending map[string][]byte
}

// NewWriteBehind returns a writer in front of s.
func NewWriteBehind(s store.Store, log *slog.Logger) *WriteBehind {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &WriteBehind{
		store: s, log: log, pending: map[string][]byte{},
		room: semaphore.NewWeighted(writeBehindBytes), workers: semaphore.NewWeighted(writeBehindWorkers),
	}
}

// Put takes data, which the caller no longer changes. It waits when too much
// waits already, and fails only when ctx ends before there is room.
func (w *WriteBehind) Put(ctx context.Context, name string, data []byte, h1 string) error {
	weight := min(int64(len(data)), writeBehindBytes)
	if err := w.room.Acquire(ctx, weight); err != nil {
		return diskError(err)
	}
	w.mu.Lock()
	w.pending[name] = data
	w.mu.Unlock()
	w.running.Go(func() {
		defer w.room.Release(weight)
		w.commit(context.WithoutCancel(ctx), name, data, h1)
	})
	return nil
}

// Pending returns the bytes of an object that waits to be stored.
func (w *WriteBehind) Pending(name string) ([]byte, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	data, ok := w.pending[name]
	return data, ok
}

// Wait returns when everything that was Put is stored or has failed.
func (w *WriteBehind) Wait() { w.running.Wait() }

func (w *WriteBehind) commit(ctx context.Context, name string, data []byte, h1 string) {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.pending, name)
	}()
	if err := w.workers.Acquire(ctx, 1); err != nil {
		return
	}
	defer w.workers.Release(1)
	if err := w.write(name, data, h1); err != nil {
		w.log.ErrorContext(ctx, "storing", "key", name, "err", err)
	}
}

func (w *WriteBehind) write(name string, data []byte, h1 string) error {
	p, err := w.store.Create(name)
	if err != nil {
		return err
	}
	defer p.Abort()
	if _, err := p.Write(data); err != nil {
		return err
	}
	_, err = p.Commit(h1)
	return err
}
