package antientropy_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/ring"
)

// Whatever was used lately and is somewhere is everywhere where it should be after one
// round of each node; in the rounds after that nothing moves.
func TestConverge(t *testing.T) {
	t.Parallel()
	for _, ids := range [][]string{{"a1", "a2"}, {"a1", "a2", "a3"}, {"a1", "a2", "a3", "a4", "a5"}} {
		for seed := range uint64(4) {
			t.Run(fmt.Sprintf("%d nodes, seed %d", len(ids), seed), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) { converge(t, ids, rand.New(rand.NewPCG(seed, 1))) })
			})
		}
	}
}

func converge(t *testing.T, ids []string, random *rand.Rand) {
	t.Helper()
	time.Sleep(30 * 24 * time.Hour) // so that something can be old
	w := newWorld(t, ids...)
	old, names := map[string]bool{}, map[string]bool{}
	for i := range 400 {
		name := modName(random.IntN(300))
		replicas := replicasOf(t, w, name)
		n := w.nodes[replicas[random.IntN(len(replicas))]]
		n.put(name, "data of "+name)
		names[name] = true
		if i%10 == 0 && !old[name] && len(holders(w, name)) == 1 {
			old[name] = true
		}
	}
	for name := range old {
		for _, id := range holders(w, name) {
			w.nodes[id].used[name] = time.Now().Add(-8 * 24 * time.Hour)
		}
	}
	before := map[string][]string{}
	for name := range old {
		before[name] = holders(w, name)
	}
	w.run()
	time.Sleep(7 * time.Minute)
	for name := range names {
		want := replicasOf(t, w, name)
		if old[name] {
			want = before[name]
		}
		if got := holders(w, name); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("%s (old: %v) is at %v, want %v", name, old[name], got, want)
		}
	}
	for _, id := range ids {
		w.nodes[id].taken()
	}
	keys := w.count("/ringmod.v1.PeerService/Keys")
	time.Sleep(time.Hour)
	for _, id := range ids {
		if again := w.nodes[id].taken(); len(again) > 0 {
			t.Errorf("%s pulled %v again", id, again)
		}
		if p, known := w.nodes[id].Progress(); !known || p.Missing != 0 || p.Total == 0 {
			t.Errorf("%s: %+v, %v", id, p, known)
		}
	}
	// What stays different was compared once more at most.
	if more := w.count("/ringmod.v1.PeerService/Keys") - keys; more > 2*len(old)*len(ids) {
		t.Errorf("%d comparisons of partitions that had been compared, with %d old objects", more, len(old))
	}
}

func replicasOf(t *testing.T, w *world, name string) []string {
	t.Helper()
	view := w.currentView()
	var ids []string
	for _, i := range view.Next().Replicas("a", partition(t, name)) {
		ids = append(ids, view.Member(i).ID)
	}
	return ids
}

// holders returns who holds an object, sorted.
func holders(w *world, name string) []string {
	var ids []string
	for id, n := range w.nodes {
		if n.holds(name) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// A node that joins gets what it will hold, the most recently used first, and says how
// far it is.
func TestJoin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(30 * 24 * time.Hour)
		w := newWorld(t, "a1", "a2")
		days := map[string]int{}
		for i := range 200 {
			name := modName(i)
			days[name] = i % 10
			for _, id := range replicasOf(t, w, name) {
				w.nodes[id].put(name, "data")
				w.nodes[id].used[name] = time.Now().Add(-time.Duration(days[name])*24*time.Hour - time.Minute)
			}
		}
		w.run()
		time.Sleep(10 * time.Minute)
		w.place(map[string]ring.State{"a3": ring.Joining})
		n := w.add("a3")
		if _, known := n.Progress(); known {
			t.Error("progress is known before anything was compared")
		}
		w.start(n)
		time.Sleep(20 * time.Millisecond)
		if p, known := n.Progress(); !known || p.Missing == 0 || p.Missing >= p.Total {
			t.Errorf("in the middle: %+v, %v", p, known)
		}
		time.Sleep(time.Minute)
		pulled := n.taken()
		if !slices.IsSortedFunc(pulled, func(a, b string) int { return (days[a] - days[b]) / 2 }) { // those that run at once
			t.Error("what was used lately did not come first")
		}
		want := 0
		for name, d := range days {
			ours := slices.Contains(replicasOf(t, w, name), "a3") && d < 7
			if ours {
				want++
			}
			if n.holds(name) != ours {
				t.Errorf("%s, not used for %d days, is there: %v", name, d, n.holds(name))
			} else if e, err := n.Stat(name); err == nil && time.Since(e.Stored) < time.Duration(d)*24*time.Hour {
				t.Errorf("%s, not used for %d days, was stored %v ago", name, d, time.Since(e.Stored))
			}
		}
		if p, known := n.Progress(); !known || p.Missing != 0 || p.Total != int64(want*len("data")) || len(pulled) != want {
			t.Errorf("%+v, %v, %d pulled, want %d", p, known, len(pulled), want)
		}
	})
}

// Nodes that are full do not copy at each other.
func TestFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a1", "a2")
		w.period = 30 * time.Minute
		a, b := w.add("a1"), w.add("a2")
		for i := range 100 {
			a.put(modName(i), "data")
			b.put(modName(i), "data")
		}
		for i := range 30 { // they have made different choices
			a.evict(modName(i))
			b.evict(modName(50 + i))
		}
		a.room = 60 // a is full, b is not
		w.run()
		time.Sleep(4 * time.Hour)
		if got := append(a.taken(), b.taken()...); len(got) > 0 {
			t.Errorf("pulled %v", got)
		}
		if p, known := b.Progress(); !known || p.Missing != 0 {
			t.Errorf("%+v, %v: what was evicted is missed", p, known)
		}
		calls := w.count("/ringmod.v1.PeerService/Keys")
		if calls > 150 {
			t.Errorf("%d comparisons in 4 hours", calls)
		}
		b.set(func() {
			for i := range 30 {
				delete(b.evicted, modName(50+i))
			}
		})
		time.Sleep(25 * time.Hour) // what was settled is looked at again
		if got := b.taken(); len(got) != 30 {
			t.Errorf("%d objects came back, want 30", len(got))
		}
	})
}

// A peer that is away is not waited for, and what it has comes when it is back.
func TestAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a1", "a2")
		w.nodes["a1"].put(modName(1), "data")
		w.set(func() { w.down["a1"] = true })
		w.run()
		time.Sleep(10 * time.Second)
		if _, known := w.nodes["a2"].Progress(); known {
			t.Error("known though a1 has not been met")
		}
		time.Sleep(time.Minute)
		if p, known := w.nodes["a2"].Progress(); !known || p.Missing != 0 {
			t.Errorf("nobody is there: %+v, %v", p, known)
		}
		w.set(func() { w.down["a1"] = false })
		w.nodes["a2"].Wake()
		time.Sleep(2 * time.Second)
		if !w.nodes["a2"].holds(modName(1)) {
			t.Error("not pulled")
		}
	})
}
