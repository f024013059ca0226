package antientropy_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/ring"
)

// A node that leaves has nothing left when what it alone held is elsewhere, old or
// not; and knows that of nobody before it has asked.
func TestLeave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a1", "a2", "a3")
		leaving := w.nodes["a1"]
		for i := range 100 {
			name := modName(i)
			leaving.put(name, "data")
			leaving.set(func() { leaving.used[name] = time.Now().Add(-100 * 24 * time.Hour) })
		}
		if _, _, known := leaving.Left(); known {
			t.Error("known before anything was compared")
		}
		w.run()
		time.Sleep(time.Minute)
		if _, _, known := leaving.Left(); known {
			t.Error("known of a node that stays")
		}
		w.set(func() { w.down["a2"], w.down["a3"] = true, true })
		w.place(map[string]ring.State{"a1": ring.Leaving})
		time.Sleep(5 * time.Second)
		if objects, bytes, known := leaving.Left(); !known || objects != 100 || bytes != 400 {
			t.Errorf("nobody is there: %d objects, %d bytes, %v", objects, bytes, known)
		}
		w.set(func() { w.down["a2"], w.down["a3"] = false, false })
		time.Sleep(5 * time.Second)
		if objects, bytes, known := leaving.Left(); !known || objects != 0 || bytes != 0 {
			t.Errorf("%d objects, %d bytes, %v", objects, bytes, known)
		}
		for i := range 100 {
			if len(holders(w, modName(i))) < 2 {
				t.Errorf("%s is at %v", modName(i), holders(w, modName(i)))
			}
		}
	})
}

// What heirs decline although they take new objects does not hold a node back; a heir
// that is read-only does.
func TestDeclined(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a1", "a2")
		w.nodes["a1"].put(modName(1), "data")
		w.nodes["a2"].refuses = true
		w.set(func() { w.readOnly = map[string]bool{"a2": true} })
		w.place(map[string]ring.State{"a1": ring.Leaving})
		w.nodes["a2"].room = -1 // so that it pulls nothing by itself
		w.run()
		time.Sleep(time.Minute)
		if objects, _, known := w.nodes["a1"].Left(); !known || objects != 1 {
			t.Errorf("read-only: %d objects, %v, want 1", objects, known)
		}
		w.set(func() { w.readOnly = nil })
		w.place(map[string]ring.State{"a1": ring.Leaving})
		time.Sleep(time.Minute)
		if objects, _, known := w.nodes["a1"].Left(); !known || objects != 0 {
			t.Errorf("declined: %d objects, %v, want 0", objects, known)
		}
	})
}

// What belongs elsewhere is the first to be evicted after a day, if it is there.
func TestOrphans(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a1", "a2", "a3")
		w.period = 30 * time.Minute
		n := w.add("a1")
		var foreign, ours string
		for i := 0; foreign == "" || ours == ""; i++ {
			if slices.Contains(replicasOf(t, w, modName(i)), "a1") {
				ours = modName(i)
			} else {
				foreign = modName(i)
			}
		}
		class := n.orphans.ClassOf(func(string) store.Class { return store.Private })
		n.put(ours, "data")
		n.put(foreign, "data")
		w.set(func() { w.down["a2"], w.down["a3"] = true, true })
		w.run()
		time.Sleep(25 * time.Hour)
		if class(foreign) != store.Private {
			t.Error("an orphan though nobody else has it")
		}
		w.set(func() { w.down["a2"], w.down["a3"] = false, false })
		time.Sleep(3 * w.period) // two rounds, which may come a fifth late: one announces, one sees it held
		if class(foreign) != store.Orphaned || class(ours) != store.Private || class("nothing") != store.Private {
			t.Errorf("foreign: %v, ours: %v", class(foreign), class(ours))
		}
		if got := holders(w, foreign); !slices.Equal(got, []string{"a1", "a2", "a3"}) {
			t.Errorf("it is at %v", got)
		}
		w.place(map[string]ring.State{"a3": 0}) // now it is ours, too
		time.Sleep(10 * time.Minute)
		if class(foreign) != store.Private {
			t.Error("still an orphan")
		}
	})
}
