package node

import (
	"context"
	"sync/atomic"

	"github.com/ringmod/ringmod/node/store"
)

// diskWait is whether a call waits for the disk. Signs of life must not cover up one that
// hangs, or callers would wait for as long as it does: meanwhile there are none, except
// while the disk brings something, as when a large file is checked.
type diskWait struct {
	waits   atomic.Int32
	brought atomic.Bool // something since the last look
}

type diskWaitKey struct{}

// with returns a context for a call that w is of.
func (w *diskWait) with(ctx context.Context) context.Context {
	ctx = store.WithProgress(ctx, func() { w.brought.Store(true) })
	return context.WithValue(ctx, diskWaitKey{}, w)
}

// atDisk says that the call which ctx is of, if any, waits for the disk until done.
func atDisk(ctx context.Context) (done func()) {
	w, ok := ctx.Value(diskWaitKey{}).(*diskWait)
	if !ok {
		return func() {}
	}
	w.waits.Add(1)
	return func() { w.waits.Add(-1) }
}

// isStuck reports whether the disk is waited for and has brought nothing since the last
// look.
func (w *diskWait) isStuck() bool { return w.waits.Load() > 0 && !w.brought.Swap(false) }
