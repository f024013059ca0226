package peer_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/peer"
	"github.com/ringmod/ringmod/ring"
)

// nodesOf returns n active nodes of region a.
func nodesOf(n int) []ring.Member {
	var all []ring.Member
	for i := range n {
		all = append(all, member(fmt.Sprintf("a-%02d", i+1), ring.Active))
	}
	return all
}

func ids(view *ring.View, ranks []ring.Index) []string {
	var all []string
	for _, i := range ranks {
		all = append(all, view.Member(i).ID)
	}
	return all
}

// moved returns an object that has no rank in the new view at who held it in the old
// one.
func moved(t *testing.T, before, after *ring.View) (_ target.Target, lost []string) {
	t.Helper()
	for i := range 100_000 {
		name := parse(t, fmt.Sprintf("example.com/m%d/@v/v1.0.0.zip", i))
		p := ring.OfTarget(name)
		ranks := ids(after, after.Next().Ranks("a", p))
		lost = slices.DeleteFunc(ids(before, before.Current().Replicas("a", p)), func(id string) bool { return slices.Contains(ranks, id) })
		if len(lost) > 0 && !slices.Contains(ranks, "a-01") {
			return name, lost
		}
	}
	t.Fatal("nothing has moved so far")
	return target.Target{}, nil
}

// Who was a replica is looked at for half an hour after it is none any more. A young
// process does not know them, and looks at more.
func TestPeekAtWhoWasAReplica(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		before, after := viewOf(t, nodesOf(24)...), viewOf(t, nodesOf(30)...)
		name, lost := moved(t, before, after)
		nodes := newNodes(t)
		nodes.answer = func(context.Context, string) (*cache.Object, error) {
			return nil, &cache.Error{Reason: cache.NotCached}
		}
		view := before
		p := peer.New(peer.Config{Self: "a-01", Region: "a", View: func() *ring.View { return view }, Nodes: nodes})
		asked := func() []string {
			nodes.asked = nil
			_, _ = p.Peek(t.Context(), name)
			return nodes.asked
		}
		if got := asked(); len(got) != 16 {
			t.Errorf("a young process looks at %d, want 16", len(got))
		}
		time.Sleep(31 * time.Minute)
		if got := asked(); len(got) != 5 {
			t.Errorf("an old one looks at %v, want the 5 ranks", got)
		}
		view = after
		for range 2 {
			got := asked()
			if missing := slices.ContainsFunc(lost, func(id string) bool { return !slices.Contains(got, id) }); missing || len(got) > 7 {
				t.Errorf("looks at %v, want %v among 7 at most", got, lost)
			}
			time.Sleep(29 * time.Minute)
		}
		time.Sleep(2 * time.Minute)
		if got := asked(); len(got) != 5 || slices.Contains(got, lost[0]) {
			t.Errorf("half an hour later it looks at %v, want the 5 ranks without %v", got, lost)
		}
		nodes.setDown(lost...)
		view = before
		if got := asked(); slices.Contains(got, lost[0]) {
			t.Errorf("looks at %v, of which %v are down", got, lost)
		}
	})
}

// Where all ranks that are coming still join, those of now coordinate.
func TestCoordinatorsWhileManyJoin(t *testing.T) {
	t.Parallel()
	members := nodesOf(2)
	for i := range 30 {
		members = append(members, member(fmt.Sprintf("a-j%02d", i), ring.Joining))
	}
	view := viewOf(t, members...)
	none := 0
	for i := range 200 {
		name := parse(t, fmt.Sprintf("example.com/m%d/@v/v1.0.0.zip", i))
		ranks := ids(view, view.Next().Ranks("a", ring.OfTarget(name)))
		if !slices.Contains(ranks, "a-01") && !slices.Contains(ranks, "a-02") {
			none++
		}
		p := peer.New(peer.Config{Self: "a-02", Region: "a", View: func() *ring.View { return view }, Nodes: newNodes(t)})
		got := p.Coordinators(name)
		if len(got) != 2 || got[0].ID[:3] != "a-0" || got[1].ID[:3] != "a-0" {
			t.Errorf("%s: %v, want the two that are active", name, got)
		}
	}
	if none == 0 {
		t.Error("no object without an active rank; the test shows nothing")
	}
}
