package member

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// graves are purges that are learnt one after the other.
type graves struct {
	mu      sync.Mutex
	all     []*ringmodv1.Tombstone
	changed chan struct{}
}

func newGraves() *graves { return &graves{changed: make(chan struct{})} }

func (g *graves) dig(n int, epoch uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for range n {
		g.all = append(g.all, &ringmodv1.Tombstone{Name: fmt.Sprintf("a.b/m%d/@latest", len(g.all)), Epoch: epoch})
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *graves) Changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

func (g *graves) News(seq uint64) ([]*ringmodv1.Tombstone, uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.all[seq:], uint64(len(g.all))
}

// A follower hears of all purges at the beginning, in pieces, and of each later one at once,
// also of those with a lower epoch.
func TestFollowerHearsOfPurges(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		g := newGraves()
		g.dig(2*maxTold+5, 7)
		p := w.startAll(1, func(cfg *Config) { cfg.Tombstones, cfg.Private = g, "corp.example.com" })[0]
		ports := newPorts(t)
		ports.member(p)
		var mu sync.Mutex
		told := map[string]int{}
		private := ""
		f := ports.follow(func(cfg *FollowerConfig) {
			cfg.OnPrivate = func(patterns string) {
				mu.Lock()
				defer mu.Unlock()
				private = patterns
			}
			cfg.OnTombstones = func(_ context.Context, some []*ringmodv1.Tombstone) {
				mu.Lock()
				defer mu.Unlock()
				if len(some) > maxTold {
					t.Errorf("%d tombstones in one message", len(some))
				}
				for _, each := range some {
					told[each.GetName()]++
				}
			}
		}, firstAddr)
		<-f.Joined()
		check := func(want int) {
			t.Helper()
			time.Sleep(time.Second)
			mu.Lock()
			defer mu.Unlock()
			if private != "corp.example.com" {
				t.Errorf("%q is private, want corp.example.com", private)
			}
			if len(told) != want {
				t.Errorf("%d purges were heard of, want %d", len(told), want)
			}
			for name, n := range told {
				if n != 1 {
					t.Errorf("%s was told %d times", name, n)
				}
			}
		}
		check(2*maxTold + 5)
		g.dig(1, 3)
		check(2*maxTold + 6)
		time.Sleep(time.Minute)
		g.dig(1, 9)
		check(2*maxTold + 7)
	})
}

// Who says which purges it has applied is told of later ones only.
func TestWatchFromAnEpoch(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		g := newGraves()
		g.dig(1, 3)
		g.dig(1, 7)
		p := w.startAll(1, func(cfg *Config) { cfg.Tombstones = g })[0]
		ports := newPorts(t)
		ports.member(p)
		stream, err := ports.client().WatchView(t.Context(), &ringmodv1.WatchViewRequest{TombstoneEpoch: 3})
		if err != nil {
			t.Fatal(err)
		}
		msg, err := stream.Recv()
		if err != nil || len(msg.GetTombstones()) != 1 || msg.GetTombstones()[0].GetEpoch() != 7 {
			t.Errorf("got %v, %v", msg.GetTombstones(), err)
		}
	})
}
