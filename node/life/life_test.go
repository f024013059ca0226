package life_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/life"
	"github.com/ringmod/ringmod/ring"
)

// The first node is active at once, and so are those that start with it: none of them
// holds anything. They know that as soon as they meet.
func TestFreshCluster(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		first := w.start(1, all())
		w.start(2, all())
		w.start(3, all())
		time.Sleep(time.Millisecond)
		if got := first.Entry().State; got != ring.Active {
			t.Errorf("the first is %s, want active", got)
		}
		for i := range 3 {
			took := w.is(fmt.Sprintf("n%d", i+1), ring.Active, 5*time.Second)
			t.Logf("n%d is active for all after %s", i+1, took)
		}
		time.Sleep(5 * time.Second)
		for id, p := range w.all {
			if err := p.Ready(); err != nil {
				t.Errorf("%s: %v, want ready", id, err)
			}
			p.copies.want(t, true)
		}
	})
}

// Whose seeds do not answer is on its own after a while.
func TestAlone(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		p := w.start(2, all())
		time.Sleep(2 * time.Second)
		if got := p.Entry().State; got != ring.Joining {
			t.Errorf("%s after 2 s, want joining", got)
		}
		w.is("n2", ring.Active, 2*time.Second)
		if err := p.Ready(); err == nil {
			t.Error("ready without having met anybody, want 15 s of patience")
		}
		time.Sleep(13 * time.Second)
		if err := p.Ready(); err != nil {
			t.Errorf("after 16 s: %v, want ready", err)
		}
	})
}

// A node that joins others is active when it has most of what it is to hold, or after a
// quarter of an hour.
func TestJoin(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		missing int64
		most    time.Duration
	}{{50, time.Second}, {51, 16 * time.Minute}} {
		inBubble(t, func(w *world) {
			w.start(1, all())
			time.Sleep(time.Minute)
			c := &copies{missing: 1000}
			p := w.start(2, c)
			time.Sleep(time.Minute)
			if got, err := p.Entry().State, p.Ready(); got != ring.Joining || err == nil {
				t.Errorf("nothing is known: %s, ready %v, want joining", got, err)
			}
			c.set(func(c *copies) {
				if c.wakes < 5 {
					t.Errorf("%d comparisons asked for in a minute, want more", c.wakes)
				}
				c.known, c.missing = true, 700
			})
			time.Sleep(time.Minute)
			if moved, ok := p.Moved(); p.Entry().State != ring.Joining || !ok || moved != 300 {
				t.Errorf("%s, %d of 1000 moved, want joining, 300", p.Entry().State, moved)
			}
			c.set(func(c *copies) { c.missing = test.missing })
			took := w.is("n2", ring.Active, test.most)
			if test.missing > 50 && took < 12*time.Minute {
				t.Errorf("%d of 1000 missing: active after %s", test.missing, took)
			}
			if _, ok := p.Moved(); ok {
				t.Error("still says how much has moved")
			}
		})
	}
}

// A node that joins while the only one that holds data goes down has nobody to wait for.
func TestJoinWithoutOthers(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		first := w.start(1, all())
		time.Sleep(time.Second)
		p := w.start(2, &copies{})
		time.Sleep(time.Minute)
		if got := p.Entry().State; got != ring.Joining {
			t.Errorf("%s, want joining", got)
		}
		delete(w.all, "n1")
		first.end()
		w.is("n2", ring.Active, 20*time.Second)
	})
}

// What a restart is ready for, and when.
func TestReady(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		w.start(1, all())
		w.start(2, all())
		c := all()
		p := w.start(3, c)
		time.Sleep(10 * time.Second)
		if err := p.Ready(); err != nil {
			t.Fatal(err)
		}
		c.set(func(c *copies) { c.missing = 900 })
		time.Sleep(time.Minute)
		if err := p.Ready(); err != nil {
			t.Errorf("%v: what comes later is no reason not to be ready", err)
		}
		p.end()
		c = &copies{missing: 11}
		p = w.startSaved(3, c, p.saved)
		for _, step := range []struct {
			change func(c *copies)
			after  time.Duration
			want   string // of the reason; "": ready
		}{
			{func(*copies) {}, 10 * time.Second, "compared"},
			{func(c *copies) { c.known = true }, 10 * time.Second, "missing"},
			{func(*copies) {}, 14 * time.Minute, "missing"},
			{func(*copies) {}, time.Minute, ""},
		} {
			c.set(step.change)
			time.Sleep(step.after)
			if err := p.Ready(); (err == nil) != (step.want == "") || err != nil && !strings.Contains(err.Error(), step.want) {
				t.Errorf("%v, want %q", err, step.want)
			}
		}
		if got := p.Entry().State; got != ring.Active {
			t.Errorf("a restarted node is %s", got)
		}
		p.end()
		p = w.startSaved(3, all(), p.saved)
		time.Sleep(5 * time.Second)
		if err := p.Ready(); err != nil {
			t.Errorf("a restart with all its data: %v after 5 s", err)
		}
	})
}

// A node leaves when others hold what it holds, and not before; its streams may finish.
func TestDrain(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		w.start(1, all())
		w.start(2, all())
		c := &copies{known: true, left: 10, streams: 1}
		p := w.start(3, c)
		time.Sleep(10 * time.Second)
		c.set(func(c *copies) { c.known = false })
		if err := p.Drain(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		w.is("n3", ring.Leaving, 5*time.Second)
		if err := p.Ready(); err == nil {
			t.Error("ready while it leaves")
		}
		c.want(t, true, false)
		h, err := p.Handover()
		if err != nil || h.Known || h.Gone || h.Streams != 1 {
			t.Errorf("%+v, %v, want nothing known", h, err)
		}
		c.set(func(c *copies) { c.known = true })
		time.Sleep(time.Minute)
		c.set(func(c *copies) { c.left = 4 })
		time.Sleep(time.Minute)
		h, err = p.Handover()
		if moved, ok := p.Moved(); err != nil || h != (life.Handover{Known: true, Objects: 4, Bytes: 400, Streams: 1}) || moved != 600 || !ok {
			t.Errorf("%+v, %v, %d moved, want 4 objects and 600", h, err, moved)
		}
		c.set(func(c *copies) { c.left = 0 })
		took := w.is("n3", ring.Left, 10*time.Second)
		t.Logf("left %s after all was handed over", took)
		time.Sleep(30 * time.Second)
		if h, _ := p.Handover(); h.Gone {
			t.Error("gone while a stream runs")
		}
		c.set(func(c *copies) { c.streams = 0 })
		time.Sleep(time.Second)
		select {
		case <-p.Gone():
		default:
			t.Error("not gone though no stream runs")
		}
		if h, err := p.Handover(); err != nil || !h.Gone {
			t.Errorf("%+v, %v, want gone", h, err)
		}
		<-p.done
		if err := p.Drain(t.Context(), 0); err != nil {
			t.Errorf("once more: %v, want nothing", err)
		}
	})
}

// The streams of a node that leaves may not take for ever.
func TestDrainWithAnEndlessStream(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		w.start(1, all())
		p := w.start(2, &copies{known: true, streams: 1})
		time.Sleep(10 * time.Second)
		start := time.Now()
		if err := p.Drain(t.Context(), 5*time.Second); err != nil {
			t.Fatal(err)
		}
		<-p.Gone()
		if took := time.Since(start); took < 5*time.Second || took > 15*time.Second {
			t.Errorf("gone after %s, want 5 s and a little", took)
		}
	})
}

// A node that is ended while it leaves goes on with that.
func TestDrainGoesOn(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		w.start(1, all())
		c := &copies{known: true, left: 3}
		p := w.start(2, c)
		time.Sleep(10 * time.Second)
		c.set(func(c *copies) { c.missing = 0 })
		if err := p.Drain(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		p.end()
		if _, err := p.Handover(); !errors.Is(err, life.ErrEnded) {
			t.Errorf("got %v, want ErrEnded", err)
		}
		p = w.startSaved(2, c, p.saved)
		w.is("n2", ring.Leaving, 10*time.Second)
		time.Sleep(10 * time.Minute)
		if got := p.Entry().State; got != ring.Leaving {
			t.Errorf("%s while others lack something, want leaving", got)
		}
		c.set(func(c *copies) { c.left = 0 })
		<-p.Gone()
		p.end()
		back := w.startSaved(2, all(), p.saved) // which is a join
		w.is("n2", ring.Active, 10*time.Second)
		if back.saved.saved.State != ring.Active {
			t.Errorf("saved as %s", back.saved.saved.State)
		}
	})
}

// Who is the last cannot leave, nor one whose successors all go while it leaves.
func TestDrainTheLast(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		p := w.start(1, all())
		time.Sleep(time.Second)
		if err := p.Drain(t.Context(), 0); !errors.Is(err, life.ErrLast) || p.Entry().State != ring.Active {
			t.Errorf("%v, %s, want ErrLast and active", err, p.Entry().State)
		}
		other := w.start(2, all())
		time.Sleep(10 * time.Second)
		p.copies.set(func(c *copies) { c.left = 1 })
		if err := p.Drain(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		delete(w.all, "n2")
		other.end()
		p.copies.set(func(c *copies) { c.left = 0 })
		time.Sleep(10 * time.Minute)
		if got := p.Entry().State; got != ring.Leaving {
			t.Errorf("%s though nobody else is there, want leaving", got)
		}
	})
}
