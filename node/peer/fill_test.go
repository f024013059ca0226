package peer_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store/storetest"
	"github.com/ringmod/ringmod/ring"
)

// However many ask however many nodes, upstream is asked once for each object.
func TestOneFetchForTheCluster(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, filesOf(t, 1, 300<<10))
		w.up.pause = 700 * time.Millisecond
		all := members(2, "a", "b", "c")
		view := viewOf(t, all...)
		for _, m := range all {
			w.start(m.ID, view, nil)
		}
		gateway := w.set("a-gw", view)
		var callers sync.WaitGroup
		for _, m := range all {
			for name := range w.up.files {
				for range 4 {
					callers.Go(func() { w.ask(gateway, m.ID, name) })
				}
			}
		}
		callers.Wait()
		for name := range w.up.files {
			if got := w.up.count(name); got != 1 {
				t.Errorf("%s: %d upstream requests, want 1", name, got)
			}
		}
		time.Sleep(10 * time.Second)
		for _, m := range all {
			for name := range w.up.files {
				_, err := w.nodes[m.ID].mem.Stat(name)
				if name == "example.com/m0/@v/list" {
					_, err = w.nodes[m.ID].mem.Document(name)
				}
				if err != nil {
					t.Errorf("%s: %v", m.ID, err)
				}
			}
		}
	})
}

// The home coordinator dies at any moment of a fill: those who wait at other nodes
// do not notice, and upstream is asked once more.
func TestHomeDiesInTheMiddle(t *testing.T) {
	t.Parallel()
	const zip = "example.com/m0/@v/v1.0.0.zip"
	files := filesOf(t, 1, 300<<10)
	all := members(2, "a", "b", "c")
	view := viewOf(t, all...)
	partition := ring.OfTarget(parse(t, zip))
	home := view.Member(view.Next().Ranks(view.Next().Home(partition), partition)[0]).ID
	for range 6 {
		kill := time.Duration(rand.Int64N(int64(8 * time.Second))) // of about 7 that the fill takes
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, files)
			w.up.pause = time.Second
			for _, m := range all {
				w.start(m.ID, view, nil)
			}
			gateway := w.set("a-gw", view)
			var callers sync.WaitGroup
			for i, m := range all {
				if m.ID != home {
					callers.Go(func() {
						time.Sleep(time.Duration(i) * time.Second)
						w.ask(gateway, m.ID, zip)
					})
				}
			}
			time.Sleep(kill)
			w.kill(home)
			callers.Wait()
			if got := w.up.count(zip); got > 2 {
				t.Errorf("killed after %v: %d upstream requests, want 2 at most", kill, got)
			}
		})
	}
}

// taking returns views of two regions with one node each, in which each region
// takes the other for the home of everything.
func taking(t *testing.T) map[string]*ring.View {
	t.Helper()
	views := map[string]*ring.View{}
	for _, region := range []string{"a", "b"} {
		spec := ring.DefaultSpec()
		spec.HomeWeights = map[string]int{region: 0}
		var table ring.Members
		for _, m := range members(1, "a", "b") {
			m.Spec = spec.Hash()
			if _, err := table.Put(m); err != nil {
				t.Fatal(err)
			}
		}
		view, err := ring.NewView(spec, &table)
		if err != nil {
			t.Fatal(err)
		}
		views[region] = view
	}
	return views
}

// Two nodes that take each other for the coordinator ask upstream each, and do not
// wait for each other.
func TestTakingEachOtherForTheCoordinator(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, filesOf(t, 1, 300<<10))
		w.up.pause = 100 * time.Millisecond
		views := taking(t)
		for region, view := range views {
			w.start(region+"-1", view, nil)
		}
		start := time.Now()
		var callers sync.WaitGroup
		for region, view := range views {
			gateway := w.set(region+"-gw", view)
			for name := range w.up.files {
				for range 3 {
					callers.Go(func() { w.ask(gateway, region+"-1", name) })
				}
			}
		}
		callers.Wait()
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("took %v, want 2 s or so", d)
		}
		for name := range w.up.files {
			if got := w.up.count(name); got > 2 {
				t.Errorf("%s: %d upstream requests, want 2 at most", name, got)
			}
		}
	})
}

// Fills that wait for other nodes do not take the places of those that the others
// wait for.
func TestPlacesAreNotTakenByThoseWhoWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, filesOf(t, 16, 70<<10))
		w.up.pause = 50 * time.Millisecond
		all := members(1, "a", "b", "c")
		view := viewOf(t, all...)
		for _, m := range all {
			w.start(m.ID, view, func(cfg *node.Config) { cfg.Fills = 2 })
		}
		gateway := w.set("a-gw", view)
		start := time.Now()
		var callers sync.WaitGroup
		for _, m := range all {
			for i := range 16 {
				callers.Go(func() { w.ask(gateway, m.ID, fmt.Sprintf("example.com/m%d/@v/v1.0.0.zip", i)) })
			}
		}
		callers.Wait()
		if d := time.Since(start); d > 28*time.Second {
			t.Errorf("took %v, which is as long as somebody waits for a place", d)
		}
	})
}

// Whatever each node believes of the cluster, all requests are answered, and none
// is passed on twice.
func TestStaleViews(t *testing.T) {
	t.Parallel()
	for range 2 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, filesOf(t, 1, 100<<10))
			w.up.pause = 100 * time.Millisecond
			all := members(2, "a", "b", "c")
			for i, m := range all {
				m.State = []ring.State{ring.Active, ring.Joining, ring.Leaving}[rand.IntN(3)]
				seen := []ring.Member{m}
				for j, other := range all {
					if j != i && rand.IntN(3) > 0 {
						other.State = []ring.State{ring.Active, ring.Joining, ring.Leaving}[rand.IntN(3)]
						seen = append(seen, other)
					}
				}
				w.start(m.ID, viewOf(t, seen...), nil)
			}
			gateway := w.set("a-gw", viewOf(t, all...))
			var callers sync.WaitGroup
			for _, m := range all {
				for name := range w.up.files {
					callers.Go(func() {
						time.Sleep(rand.N(2 * time.Second))
						w.ask(gateway, m.ID, name)
					})
				}
			}
			callers.Wait()
			for name := range w.up.files {
				if got := w.up.count(name); got > len(all) {
					t.Errorf("%s: %d upstream requests by %d nodes", name, got, len(all))
				}
			}
		})
	}
}

// A copy at any rank of the region is found, and upstream is not asked.
func TestCopyAtASpareRank(t *testing.T) {
	t.Parallel()
	const zip = "example.com/m0/@v/v1.0.0.zip"
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, filesOf(t, 1, 300<<10))
		all := members(5, "a")
		view := viewOf(t, all...)
		for _, m := range all {
			w.start(m.ID, view, nil)
		}
		ranks := view.Next().Ranks("a", ring.OfTarget(parse(t, zip)))
		storetest.Put(t, w.nodes[view.Member(ranks[4]).ID].mem, zip, string(w.up.files[zip]), "h1:x")
		for _, rank := range []int{1, 0} {
			id := view.Member(ranks[rank]).ID
			w.ask(w.set("a-gw", view), id, zip)
			if entry, err := w.nodes[id].mem.Stat(zip); err != nil || entry.H1 != "h1:x" {
				t.Errorf("%s has %+v, %v", id, entry, err)
			}
		}
		if got := w.up.count(zip); got != 0 {
			t.Errorf("%d upstream requests, want 0", got)
		}
	})
}

// A region without an upstream is served by one that has it; cut off from that, it
// has what it has, at whichever node.
func TestOfflineRegion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, filesOf(t, 2, 100<<10))
		all := members(2, "a", "b")
		view := viewOf(t, all...)
		for _, m := range all {
			w.start(m.ID, view, func(cfg *node.Config) {
				if m.Region == "a" {
					cfg.Upstream = offline{w.up}
				}
			})
		}
		gateway := w.set("a-gw", view)
		for name := range w.up.files {
			w.ask(gateway, "a-1", name)
			if got := w.up.count(name); got != 1 {
				t.Errorf("%s: %d upstream requests, want 1", name, got)
			}
		}
		w.kill("b-1")
		w.kill("b-2")
		for name := range w.up.files {
			w.ask(gateway, "a-2", name)
		}
		_, err := fetch(t.Context(), gateway, "a-1", parse(t, "example.com/m9/@v/v1.0.0.mod"))
		if cache.ReasonOf(err) != cache.NotCached {
			t.Errorf("what nobody has: %v, want NotCached", err)
		}
	})
}

// However long the home coordinator waits for upstream, who waits by way of
// another node does not take either for dead.
func TestSlowUpstreamIsNoDeadNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, filesOf(t, 1, 300<<10))
		w.up.pause = 15 * time.Second
		all := members(1, "a", "b", "c")
		view := viewOf(t, all...)
		for _, m := range all {
			w.start(m.ID, view, nil)
		}
		var callers sync.WaitGroup
		gateway := w.set("a-gw", view)
		for _, m := range all {
			for name := range w.up.files {
				callers.Go(func() { w.ask(gateway, m.ID, name) })
			}
		}
		callers.Wait()
		for name := range w.up.files {
			if got := w.up.count(name); got != 1 {
				t.Errorf("%s: %d upstream requests, want 1", name, got)
			}
		}
	})
}

// A list goes round the cluster with its age.
func TestListAges(t *testing.T) {
	t.Parallel()
	const list = "example.com/m0/@v/list"
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, filesOf(t, 1, 300<<10))
		all := members(1, "a", "b", "c")
		view := viewOf(t, all...)
		for _, m := range all {
			w.start(m.ID, view, nil)
		}
		partition := ring.OfTarget(parse(t, list))
		homes := view.Next().Homes(partition)
		ids := []string{homes[0] + "-1", homes[1] + "-1", homes[2] + "-1"}
		get := func(id string) (string, time.Duration, bool) {
			obj, err := w.nodes[id].Get(t.Context(), cache.Request{Target: parse(t, list)})
			if err != nil {
				t.Fatal(err)
			}
			defer obj.Body.Close()
			var b bytes.Buffer
			_, _ = b.ReadFrom(obj.Body)
			return b.String(), obj.Age.Round(time.Second), obj.Stale
		}
		for _, step := range []struct {
			after time.Duration
			id    string
			age   time.Duration
			stale bool
			up    int
		}{
			{0, ids[1], 0, false, 1},                                     // by way of home
			{50 * time.Second, ids[2], 0, false, 2},                      // home does not hand on what is soon to be asked for anew
			{20 * time.Second, ids[2], 20 * time.Second, false, 2},       // its own
			{2 * time.Second, ids[1], 22 * time.Second, false, 2},        // its own is too old, and home's is not
			{20 * time.Minute, ids[1], 0, false, 3},                      // home's is, too
			{30 * time.Second, ids[0], 30 * time.Second, false, 3},       // home itself
			{30*time.Second + 500*time.Millisecond, ids[2], 0, false, 4}, // home is asked and asks
			{time.Second, ids[1], time.Second, false, 4},                 // home has just asked
			{49 * time.Second, ids[0], 50 * time.Second, false, 5},       // home's own, while it asks anew
			{time.Second, ids[0], time.Second, false, 5},                 // done
		} {
			time.Sleep(step.after)
			body, age, stale := get(step.id)
			if body != "v1.0.0\n" || age != step.age || stale != step.stale {
				t.Errorf("%+v: %q, age %v, stale %v", step, body, age, stale)
			}
			synctest.Wait()
			if got := w.up.count(list); step.up != got && !step.stale {
				t.Errorf("%+v: %d upstream requests", step, got)
			}
		}
		for _, id := range slices.Backward(ids) {
			w.kill(id)
		}
	})
}
