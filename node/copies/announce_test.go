package copies_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/node/copies"
	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

const (
	held     = ringmodv1.Outcome_OUTCOME_HELD
	wanted   = ringmodv1.Outcome_OUTCOME_WANTED
	declined = ringmodv1.Outcome_OUTCOME_DECLINED
	conflict = ringmodv1.Outcome_OUTCOME_CONFLICT
)

// What comes together goes together, once, and no call has too much.
func TestAnnouncementsAreGathered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, viewOf(t, "a1", "a2", "b1"), copies.Config{})
		for i := range 3 {
			r.put(modName(i))
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		if got := r.others.calls(); got != 1 {
			t.Errorf("%d calls, want 1", got)
		}
		long := strings.Repeat("x", 1500)
		for i := range 3000 {
			name := modName(100 + i)
			if i%2 == 0 {
				name = fmt.Sprintf("example.com/%s/%s/@v/v1.0.%d.mod", long[:120], strings.Repeat("y/", 300)+"z", i)
			}
			r.put(name)
		}
		time.Sleep(time.Hour)
		if got := len(r.others.names()); got != 3003 {
			t.Errorf("told of %d objects, want 3003", got)
		}
		if r.Lag() != 0 || r.Hints() != 0 {
			t.Errorf("lag of %v, %d hints", r.Lag(), r.Hints())
		}
	})
}

// What does not belong to other nodes is not told to anybody.
func TestWhatIsNotAnnounced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, viewOf(t, "a1", "b1", "b2"), copies.Config{}) // alone in its region
		r.put(modName(1))
		two := newRig(t, viewOf(t, "a1", "a2"), copies.Config{})
		two.put("sumdb/sum.example.com/supported")
		if err := two.Documents().PutDocument("sumdb/sum.example.com/latest", store.Document{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := append(r.others.names(), two.others.names()...); len(got) > 0 {
			t.Errorf("told of %v", got)
		}
	})
}

// The replicas of the region are told, whatever rank has stored the object.
func TestWhoIsTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		view := viewOf(t, "a1", "a2", "a3", "a4", "b1")
		r := newRig(t, view, copies.Config{})
		want := 0
		for i := range 40 {
			r.put(modName(i))
			for _, id := range replicas(t, view, modName(i)) {
				if id != "a1" {
					want++
				}
			}
		}
		time.Sleep(time.Second)
		if got := len(r.others.names()); got != want {
			t.Errorf("told %d times, want %d", got, want)
		}
	})
}

// What each answer is followed by, in a minute.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	name := modName(1)
	for _, test := range []struct {
		outcome ringmodv1.Outcome
		view    uint64
		told    int
		lag     bool
	}{
		{held, 0, 1, false},
		{declined, 0, 1, false},
		{declined, 12345, 11, true}, // it may not know yet that it is to hold it
		{conflict, 0, 1, false},
		{wanted, 0, 11, true}, // each second at first, then after 2, 4, 8, 16 s
		{99, 0, 1, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			var seen atomic.Uint64
			r := newRig(t, viewOf(t, "a1", "a2"), copies.Config{OnView: func(_ string, digest, _ uint64) { seen.Store(digest) }})
			r.others.set(func() {
				r.others.view, r.others.answer = test.view, func(string) ringmodv1.Outcome { return test.outcome }
			})
			r.put(name)
			time.Sleep(time.Minute)
			if got := r.others.names(); len(got) != test.told {
				t.Errorf("%v: told %d times, want %d", test.outcome, len(got), test.told)
			}
			if got := r.Lag(); got > 0 != test.lag {
				t.Errorf("%v: lag of %v", test.outcome, got)
			}
			if got := seen.Load(); got != test.view {
				t.Errorf("heard of view %d, want %d", got, test.view)
			}
			time.Sleep(time.Hour)
			if got := r.others.names(); r.Lag() != 0 || len(got) > 21 {
				t.Errorf("%v: told %d times in an hour, lag of %v", test.outcome, len(got), r.Lag())
			}
		})
	}
}

// An object that is here no more is not announced, and a list only once.
func TestWhatIsGoneOrLight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const list = "example.com/m/@v/list"
		r := newRig(t, viewOf(t, "a1", "a2"), copies.Config{})
		r.others.set(func() { r.others.answer = func(string) ringmodv1.Outcome { return wanted } })
		r.put(modName(1))
		if err := r.node.mem.Remove(modName(1)); err != nil {
			t.Fatal(err)
		}
		if err := r.Documents().PutDocument(list, store.Document{Fetched: time.Now()}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := r.others.names(); !slices.Equal(got, []string{list}) {
			t.Errorf("told of %v", got)
		}
		r.others.set(func() { r.others.down = true })
		if err := r.Documents().PutDocument(list, store.Document{Fetched: time.Now()}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if r.Hints() != 0 || r.Lag() != 0 {
			t.Errorf("a list waits: %d hints, lag of %v", r.Hints(), r.Lag())
		}
	})
}

// A member that is down, or whose calls fail, is told when it can be, and not asked
// all the time until then.
func TestHints(t *testing.T) {
	t.Parallel()
	for _, down := range []bool{true, false} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			r := newRig(t, viewOf(t, "a1", "a2"), copies.Config{Dir: dir, Metrics: reg})
			r.others.set(func() { r.others.down, r.others.fails = down, errDown })
			for i := range 10 {
				r.put(modName(i))
				time.Sleep(10 * time.Second)
			}
			if r.Hints() != 10 || r.Lag() < 99*time.Second {
				t.Errorf("%d hints, want 10, lag of %v", r.Hints(), r.Lag())
			}
			if got := gauge(t, reg, "ringmod_replication_hints"); got != 10 {
				t.Errorf("the metric says %v hints, want 10", got)
			}
			r.others.set(func() { r.others.down, r.others.fails = false, nil })
			time.Sleep(16 * time.Second)
			if got := r.others.names(); len(got) != 10 || r.Hints() != 0 || r.Lag() != 0 {
				t.Errorf("told of %v, %d hints, lag of %v", got, r.Hints(), r.Lag())
			}
			if files, _ := os.ReadDir(dir); len(files) != 0 {
				t.Errorf("%v is left", files)
			}
		})
	}
}

func gauge(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return 0
}

// Hints outlive the process, as does what was not confirmed when it ended, and lines
// that are no hints, or cut short, harm nothing.
func TestHintsOfAnotherProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		view := viewOf(t, "a1", "a2")
		r := newRig(t, view, copies.Config{Dir: dir})
		r.others.set(func() { r.others.answer = func(string) ringmodv1.Outcome { return wanted } })
		r.put(modName(1))
		time.Sleep(500 * time.Millisecond)
		r.put(modName(2)) // not told yet
		r.end()
		path := filepath.Join(dir, "a2.hints")
		data, err := os.ReadFile(path)
		if err != nil || strings.Count(string(data), "\n") != 2 {
			t.Fatalf("%q, %v, want two lines", data, err)
		}
		garbage := "\n \nx example.com/a/@v/v1.0.0.mod\n1 ../../x\n99999999999 " + modName(3) + "\n1 example.com/other/@v/v1.0.0.mod\n7 example.com/m"
		if err := os.WriteFile(path, append(data, garbage...), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"..hints", "x/y", "a b.hints", "a3.hints.new"} {
			_ = os.WriteFile(filepath.Join(dir, name), []byte("1 "+modName(1)), 0o600)
		}
		if err := put(r.node.mem, modName(3), "3"); err != nil {
			t.Fatal(err)
		}

		o := r.others
		before := len(o.names())
		o.set(func() { o.down, o.answer = true, func(string) ringmodv1.Outcome { return held } })
		r = newRigOn(t, view, copies.Config{Dir: dir}, o, r.node.mem)
		time.Sleep(time.Second)
		r.put(modName(4)) // goes into the file behind a line that was cut short
		time.Sleep(3 * time.Second)
		r.end()
		o.set(func() { o.down = false })
		r = newRigOn(t, view, copies.Config{Dir: dir}, o, r.node.mem)
		time.Sleep(5 * time.Second)
		want := []string{modName(1), modName(2), modName(3), modName(4)}
		if got := slices.Compact(o.names()); len(o.names())-before != 4 || !slices.Equal(got, want) {
			t.Errorf("told of %v, want %v", o.names(), want)
		}
		if _, err := os.Stat(path); err == nil || r.Hints() != 0 {
			t.Errorf("%d hints are left", r.Hints())
		}
	})
}

// Too many hints are dropped, which is remembered.
func TestTooManyHints(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const most = 100_000
	var lines strings.Builder
	for i := range most - 1 {
		fmt.Fprintf(&lines, "1 %s\n", modName(i))
	}
	path := filepath.Join(dir, "a2.hints")
	if err := os.WriteFile(path, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		view := viewOf(t, "a1", "a2")
		o := &others{t: t, down: true, answer: func(string) ringmodv1.Outcome { return held }}
		r := newRigOn(t, view, copies.Config{Dir: dir}, o, store.NewMem())
		time.Sleep(time.Second)
		if got := r.Hints(); got != most-1 {
			t.Errorf("%d hints, want %d", got, most-1)
		}
		for i := range 3 {
			r.put(modName(most + i))
		}
		time.Sleep(2 * time.Second)
		if got := r.Hints(); got > 3 {
			t.Errorf("%d hints, want 3 at most", got)
		}
		o.set(func() { o.down = false })
		time.Sleep(10 * time.Second)
		if got, err := os.ReadFile(path); string(got) != "unsynced\n" {
			t.Errorf("the file holds %.100q, %v", got, err)
		}
		r.end()
		r = newRigOn(t, view, copies.Config{Dir: dir}, o, r.node.mem)
		o.set(func() { o.down = true })
		r.put(modName(1))
		time.Sleep(2 * time.Second)
		if got, err := os.ReadFile(path); !strings.HasPrefix(string(got), "unsynced\n") || r.Hints() != 1 {
			t.Errorf("the file holds %.100q, %v, and there are %d hints", got, err, r.Hints())
		}
		if !r.Unsynced("a2") || r.Unsynced("a3") {
			t.Errorf("unsynced: %v and %v, want a2 alone", r.Unsynced("a2"), r.Unsynced("a3"))
		}
		r.Synced("a2")
		r.Synced("a3")
		o.set(func() { o.down = false })
		time.Sleep(10 * time.Second)
		if _, err := os.Stat(path); err == nil || r.Unsynced("a2") {
			t.Error("the mark outlives the comparison")
		}
	})
}

// For a member that is not in, hints are kept for a day.
func TestHintsForWhoIsGone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "a9.hints")
	synctest.Test(t, func(t *testing.T) {
		line := fmt.Sprintf("%d %s\n", time.Now().Unix(), modName(1))
		if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		r := newRig(t, viewOf(t, "a1", "a2"), copies.Config{Dir: dir})
		time.Sleep(23 * time.Hour)
		if _, err := os.Stat(path); err != nil || r.Hints() != 1 || r.Lag() != 0 {
			t.Errorf("%v, %d hints, lag of %v", err, r.Hints(), r.Lag())
		}
		time.Sleep(2 * time.Hour)
		if _, err := os.Stat(path); err == nil || r.Hints() != 0 || len(r.others.names()) != 0 {
			t.Errorf("%d hints, told of %v", r.Hints(), r.others.names())
		}
	})
}

// What a replica has pulled waits no longer than it must: the lag is that of the copy
// and not of the news.
func TestLagEndsWithThePull(t *testing.T) {
	t.Parallel()
	for _, takes := range []time.Duration{time.Second, 2500 * time.Millisecond, 3500 * time.Millisecond, 4700 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, viewOf(t, "a1", "a2", "b1"), copies.Config{})
			pulled := time.Now().Add(takes)
			r.others.set(func() {
				r.others.answer = func(string) ringmodv1.Outcome {
					if time.Now().Before(pulled) {
						return wanted
					}
					return held
				}
			})
			r.put(modName(0))
			time.Sleep(takes)
			if got := r.Lag(); got != takes {
				t.Errorf("a lag of %v while the pull of %v runs", got, takes)
			}
			time.Sleep(1200 * time.Millisecond)
			if got := r.Lag(); got != 0 {
				t.Errorf("a lag of %v, %v after the end of a pull of %v", got, 1200*time.Millisecond, takes)
			}
		})
	}
}
