package gateway

import (
	"context"
	"sync"

	"go.opentelemetry.io/otel/trace"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/spans"
)

// flights makes those who ask for one target at the same time ask the Cache
// once. The first of them asks, for the others too, even when he has left: it goes
// on while anybody waits, and is cancelled when the last one leaves. Most flights
// have nobody else, and so need no goroutine. The zero value is ready.
type flights struct {
	mu      sync.Mutex
	running map[flightKey]*flight
}

type flightKey struct {
	name  string
	mode  cache.Mode
	order uint64 // to refresh, that it heeds
}

type flight struct {
	cancel context.CancelFunc
	done   chan struct{}

	// Valid once done is closed.
	entry  *entry
	origin origin
	err    error

	waiting int               // under flights.mu
	span    trace.SpanContext // of who asks
}

type flyFunc func(context.Context, cache.Request) (*entry, origin, error)

// do returns what fly returns for req, together with others who ask for the
// same. Who may not fill joins the fill of somebody who may, but starts none,
// and nobody who may fill is content with what one who may not was told.
func (fs *flights) do(ctx context.Context, req cache.Request, fly flyFunc) (*entry, origin, error) {
	key, f, own := fs.join(ctx, req)
	if own != nil {
		stay := context.AfterFunc(ctx, func() { fs.leave(key, f) })
		f.entry, f.origin, f.err = fly(own, req)
		f.cancel()
		fs.remove(key, f)
		close(f.done)
		if !stay() {
			return nil, origin{}, ctx.Err()
		}
		return f.entry, f.origin, f.err
	}
	spans.Join(ctx, f.span)
	select {
	case <-f.done:
	case <-ctx.Done():
		fs.leave(key, f)
		return nil, origin{}, ctx.Err()
	}
	switch {
	case f.err != nil && req.Mode == cache.AllowFill && excusable(f.err):
		return fs.afterTrouble(ctx, req, f, fly)
	case f.origin.outcome == miss:
		return f.entry, sources[cache.Inflight], f.err
	default:
		return f.entry, f.origin, f.err
	}
}

// afterTrouble looks once more for a copy, for somebody who joined f: one may have come
// after f had looked, and before he asked.
func (fs *flights) afterTrouble(ctx context.Context, req cache.Request, f *flight, fly flyFunc) (*entry, origin, error) {
	req.Mode = cache.OnlyIfCached
	if e, o, err := fs.do(ctx, req, fly); err == nil {
		return e, o, nil
	}
	return nil, f.origin, f.err
}

// join returns the flight for req, and if it is a new one, which the caller has to
// make, the context to do so.
func (fs *flights) join(ctx context.Context, req cache.Request) (key flightKey, f *flight, own context.Context) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	key = flightKey{req.Target.String(), cache.AllowFill, req.Refresh}
	f, joined := fs.running[key]
	if !joined && req.Mode != cache.AllowFill {
		key.mode = req.Mode
		f, joined = fs.running[key]
	}
	if !joined {
		var cancel context.CancelFunc
		own, cancel = context.WithCancel(context.WithoutCancel(ctx))
		f = &flight{cancel: cancel, done: make(chan struct{}), span: spans.Of(ctx)}
		if fs.running == nil {
			fs.running = make(map[flightKey]*flight)
		}
		fs.running[key] = f
	}
	f.waiting++
	return key, f, own
}

// leave gives up waiting. What nobody waits for ends, and whoever asks next
// starts anew.
func (fs *flights) leave(key flightKey, f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f.waiting--
	if f.waiting == 0 {
		f.cancel()
		fs.removeLocked(key, f)
	}
}

func (fs *flights) remove(key flightKey, f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.removeLocked(key, f)
}

func (fs *flights) removeLocked(key flightKey, f *flight) {
	if fs.running[key] == f {
		delete(fs.running, key)
	}
}
