package member

import (
	"fmt"
	"testing"
	"time"

	"github.com/ringmod/ringmod/ring"
)

// goesOn makes a configuration that lets the node go on as what it was.
func goesOn(state State) func(*Config) {
	return func(c *Config) { c.Entry.State, c.State = ring.Joining, state }
}

// What a node begins as, by what its data folder says, and what it becomes when it hears
// what the others know of an earlier life.
func TestStateOfAnEarlierLife(t *testing.T) {
	t.Parallel()
	const none = ring.State(0)
	for _, test := range []struct {
		saved, known ring.State
		begins, is   ring.State
	}{
		{none, none, ring.Joining, ring.Joining},
		{none, ring.Active, ring.Joining, ring.Active}, // has lost its disk
		{none, ring.Leaving, ring.Joining, ring.Leaving},
		{none, ring.Joining, ring.Joining, ring.Joining},
		{none, ring.Left, ring.Joining, ring.Joining},
		{none, ring.Forgotten, ring.Joining, ring.Joining},
		{ring.Active, none, ring.Active, ring.Active},
		{ring.Active, ring.Active, ring.Active, ring.Active},
		{ring.Active, ring.Forgotten, ring.Active, ring.Joining},
		{ring.Joining, none, ring.Joining, ring.Joining},
		{ring.Joining, ring.Joining, ring.Joining, ring.Joining},
		{ring.Leaving, ring.Leaving, ring.Leaving, ring.Leaving},
		{ring.Leaving, none, ring.Leaving, ring.Leaving},
		{ring.Left, ring.Left, ring.Joining, ring.Joining},
	} {
		t.Run(fmt.Sprint("saved ", test.saved, ", known as ", test.known), func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(w *world) {
				t := w.t
				rest := w.startAll(2)
				if test.known != none {
					w.live(4, test.known)
				}
				state := &memState{}
				if test.saved != none {
					state.saved = Saved{Epoch: 3, State: test.saved}
				}
				cfg := w.config(4)
				goesOn(state)(&cfg)
				p := w.start(cfg, at(5))
				time.Sleep(time.Millisecond)
				if got := p.Entry().State; got != test.begins && got != test.is {
					t.Errorf("begins as %s, want %s", got, test.begins)
				}
				within(t, repaired, func() bool { return converged(append(rest, p)...) })
				for _, of := range append(rest, p) {
					if got := of.status("n4").Entry.State; got != test.is {
						t.Errorf("%s sees it %s, want %s", of.id, got, test.is)
					}
				}
				if state.saved.State != test.is {
					t.Errorf("saved as %s, want %s", state.saved.State, test.is)
				}
			})
		})
	}
}

// live runs node n, which ends in a state.
func (w *world) live(n int, last ring.State) {
	w.t.Helper()
	p := w.start(w.config(n), at(n))
	all := []*proc{w.all[0], w.all[1], p}
	within(w.t, repaired, func() bool { return converged(all...) })
	if last != ring.Forgotten {
		if err := p.SetState(w.t.Context(), last); err != nil {
			w.t.Fatal(err)
		}
		within(w.t, repaired, func() bool { return w.all[0].status(p.id).Entry.State == last })
	}
	p.stop()
	within(w.t, repaired, func() bool { return !w.all[0].Up(p.id) })
	if last == ring.Forgotten {
		if err := w.all[0].Forget(w.t.Context(), p.id, false); err != nil {
			w.t.Fatal(err)
		}
	}
}

// The first node of a cluster has nobody to join, and is of use at once. So is one whose
// data folder is of a version that knew no states.
func TestStateOfTheFirst(t *testing.T) {
	t.Parallel()
	for _, saved := range []Saved{{}, {Epoch: 7, Seeds: []string{at(9).String()}}} {
		inBubble(t, func(w *world) {
			cfg := w.config(1)
			cfg.Seeds = nil
			goesOn(&memState{saved: saved})(&cfg)
			p := w.start(cfg, at(1))
			time.Sleep(time.Millisecond)
			if got := p.View().Current().Size("eu"); p.Entry().State != ring.Active || got != 1 {
				w.t.Errorf("%+v: begins as %s, %d own partitions, want 1", saved, p.Entry().State, got)
			}
		})
	}
}

// A node that was forgotten while it ran, in a cut, has its data and is back as it was.
func TestForgottenWhileItRuns(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(5)
		cfg := w.config(6)
		goesOn(&memState{saved: Saved{Epoch: 1, State: ring.Active}})(&cfg)
		p := w.start(cfg, at(6))
		all = append(all, p)
		within(t, repaired, func() bool { return converged(all...) })
		w.net.Isolate(p.addr)
		time.Sleep(11 * time.Minute)
		if all[0].owns("n6") {
			t.Fatal("n6 was not forgotten")
		}
		w.net.Heal()
		within(t, repaired, func() bool { return converged(all...) })
		if got := all[0].status("n6").Entry.State; got != ring.Active {
			t.Errorf("n6 is %s, want active", got)
		}
	})
}
