package node

import (
	"context"
	"fmt"
	"testing"

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
