package node

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/upstream"
)

// upstreamFunc is an upstream that does one thing.
type upstreamFunc func(ctx context.Context) error

func (upstreamFunc) Offline() bool { return false }

func (f upstreamFunc) Fetch(ctx context.Context, _ target.Target, _ upstream.Validators) (*upstream.Response, error) {
	return nil, f(ctx)
}

func nodeOver(f upstreamFunc) *Node {
	mem := store.NewMem()
	return New(Config{Store: mem, Documents: mem, Upstream: f})
}

func end(n *Node) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = n.Run(ctx, 0)
}

func listOfModule(t *testing.T, i int) cache.Request {
	t.Helper()
	name, err := target.Parse(fmt.Sprintf("example.com/m%d/@v/list", i))
	if err != nil {
		t.Fatal(err)
	}
	return cache.Request{Target: name}
}

func TestTroubleOfManyNamesIsNotKept(t *testing.T) {
	t.Parallel()
	n := nodeOver(func(context.Context) error { return &cache.Error{Reason: cache.Broken, Text: "connection refused"} })
	defer end(n)
	for i := range 100 {
		if _, err := n.Get(t.Context(), listOfModule(t, i)); cache.ReasonOf(err) != cache.Broken {
			t.Fatalf("got %v, want upstream's failure", err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if got := len(n.troubled); got != 0 {
		t.Errorf("%d names are remembered whose trouble matters to nobody, want 0", got)
	}
}

func TestRefreshesOfManyNamesAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := nodeOver(func(ctx context.Context) error {
			<-ctx.Done()
			return &cache.Error{Reason: cache.Slow, Err: ctx.Err()}
		})
		defer end(n)
		left, leave := context.WithCancel(t.Context())
		leave()
		for i := range maxQueued {
			_, _ = n.Get(left, listOfModule(t, i))
		}
		start := time.Now()
		_, err := n.Get(t.Context(), listOfModule(t, maxQueued))
		if got, took := cache.ReasonOf(err), time.Since(start); got != cache.Busy || took > 0 {
			t.Errorf("got %v after %v with %d refreshes waiting, want %v at once", got, took, maxQueued, cache.Busy)
		}
	})
}

func TestPanicOfARefreshIsAnError(t *testing.T) {
	t.Parallel()
	n := nodeOver(func(context.Context) error { panic("a parser's") })
	defer end(n)
	if _, err := n.Get(t.Context(), listOfModule(t, 0)); cache.ReasonOf(err) != cache.Internal {
		t.Errorf("got %v, want an internal error", err)
	}
}

// TestRequestsWhileStopping has handlers that come too late start work while Run
// waits for the work that is under way.
func TestRequestsWhileStopping(t *testing.T) {
	t.Parallel()
	for range 200 {
		n := nodeOver(func(context.Context) error { return &cache.Error{Reason: cache.NotFound} })
		stopped := make(chan struct{})
		var callers sync.WaitGroup
		for c := range 4 {
			callers.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stopped:
						return
					default:
						_, _ = n.Get(t.Context(), listOfModule(t, c<<20+i))
					}
				}
			})
		}
		end(n)
		close(stopped)
		callers.Wait()
		if _, err := n.Get(t.Context(), listOfModule(t, 1<<30)); cache.ReasonOf(err) != cache.Busy {
			t.Fatalf("got %v from a node that has stopped, want %v", err, cache.Busy)
		}
	}
}

func TestPutAfterWait(t *testing.T) {
	t.Parallel()
	mem := store.NewMem()
	w := NewWriteBehind(mem, nil)
	var late sync.WaitGroup
	for c := range 4 {
		late.Go(func() { // the shared work of a checksum database ends when it ends
			for i := range 2000 {
				_ = w.Put(t.Context(), fmt.Sprintf("a/%d/%d", c, i), []byte("x"), store.Proof{})
			}
		})
	}
	for range 20 {
		w.Wait()
	}
	late.Wait()
	if err := w.Put(t.Context(), "a/b", []byte("x"), store.Proof{}); cache.ReasonOf(err) != cache.Busy {
		t.Errorf("got %v from a writer that nobody waits for any more, want %v", err, cache.Busy)
	}
}
