package sim

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/node/member/membertest"
	"github.com/ringmod/ringmod/ring"
)

// history is a book that is written by hand: two nodes and a gateway of one region, all
// well for an hour. Times are in seconds from its end.
type history struct {
	*World

	end  time.Time
	held map[string]time.Time // by machine, of aZip
}

func newHistory(t *testing.T) *history {
	t.Helper()
	w := newWorld(t, 1, ring.DefaultSpec())
	for _, id := range []string{"n1", "n2", "n3", "g1"} {
		role := ring.Node
		if id[0] == 'g' {
			role = ring.Gateway
		}
		m := w.add(id, "r1", "", role)
		m.boots.Store(1)
		m.running = &process{}
	}
	for mod := range zipSizes {
		w.out.publish(mod)
		w.out.published[mod][0] = w.start.Add(-2 * time.Hour)
	}
	w.book.begin()
	w.book.epochs[0].at = w.start.Add(-time.Hour)
	return &history{World: w, end: w.start, held: make(map[string]time.Time)}
}

func (h *history) at(seconds float64) time.Time {
	return h.end.Add(time.Duration(seconds * float64(time.Second)))
}

// answered notes a good answer that took a second.
func (h *history) answered(name string, begin float64, edit func(*answer)) {
	a := answer{
		gateway: "g1", boot: 1, target: mustTarget(name), start: h.at(begin), end: h.at(begin + 1),
		status: 200, whole: true, state: 1, source: "ringmod; hit", held: h.holders(),
	}
	if edit != nil {
		edit(&a)
	}
	h.book.answer(a)
}

func (h *history) fetched(by, name string, begin, end float64, err error) {
	h.out.fetches = append(h.out.fetches, &fetch{by: by, boot: 1, region: "r1", target: mustTarget(name), start: h.at(begin), end: h.at(end), err: err, holders: h.holders()})
}

// holds gives aZip to a node.
func (h *history) holds(id string, since float64) {
	h.held[id] = h.at(since)
}

func (h *history) holders() holders { return holders{since: maps.Clone(h.held)} }

// purged notes a purge of aZip's version.
func (h *history) purged(edit func(*takedown)) {
	d := &takedown{mod: 1}
	h.book.takeDown(d)
	d.began, d.ended = h.at(-890), h.at(-889)
	edit(d)
}

// since begins an epoch.
func (h *history) since(begin float64, change func()) {
	change()
	h.book.observe(1)
	h.book.epochs[len(h.book.epochs)-1].at = h.at(begin)
}

const (
	aZip  = "example.com/m1/@v/v1.0.0.zip"
	aList = "example.com/m1/@v/list"
)

func failed(a *answer) { a.status, a.text = 502, "broken" }

func absent(a *answer) {
	a.status, a.text, a.source = 404, "not found", "ringmod; fwd=miss; detail=not_found"
}

// replicas are those of aZip.
func (h *history) replicas() (owner, other string) {
	r := h.book.epochs[0].ranks("r1", mustTarget(aZip))
	return r[0], r[1]
}

func TestCheckFindsFaults(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		write func(h *history)
		want  string // "" for a history without fault
	}{
		"all well": {func(h *history) {
			owner, other := h.replicas()
			h.fetched(owner, aZip, -900, -899, nil)
			h.holds(owner, -899)
			h.holds(other, -899)
			h.answered(aZip, -800, nil)
			h.answered(aList, -800, nil)
			h.answered("example.com/m1/@v/v1.1.0.zip", -700, absent)
			h.fetched(owner, aList, -900, -899, nil)
			h.fetched(owner, aList, -840, -839, nil)
		}, ""},
		"wrong bytes": {func(h *history) { h.answered(aZip, -800, func(a *answer) { a.wrong = "7 bytes" }) }, "I1/I2"},
		"wrong bytes of upstream, without any node": {func(h *history) {
			h.fetched("g1", aZip, -800, -799.5, nil)
			h.out.fetches[0].bad = true
			h.since(-900, func() {
				h.cuts = append(h.cuts, cut{from: h.gateways(), to: h.nodes(""), kind: membertest.All})
				h.redraw()
			})
			h.answered(aZip, -800, func(a *answer) { a.wrong = "7 bytes" })
		}, ""},
		"wrong bytes of upstream, kept": {func(h *history) {
			h.fetched("g1", aZip, -850, -849.5, nil)
			h.out.fetches[0].bad = true
			h.answered(aZip, -800, func(a *answer) { a.wrong = "7 bytes" })
		}, "I1/I2"},
		"wrong list": {func(h *history) { h.answered(aList, -800, func(a *answer) { a.state = -1 }) }, "I1"},
		"fetched twice": {func(h *history) {
			h.fetched("n1", aZip, -800, -790, nil)
			h.fetched("n2", aZip, -795, -790, nil)
		}, "I3"},
		"fetched twice as the first has failed": {func(h *history) {
			h.fetched("n1", aZip, -800, -796, trouble(0, "500"))
			h.fetched("n2", aZip, -795, -790, nil)
		}, ""},
		"fetched twice as the first has died": {func(h *history) {
			h.fetched("n1", aZip, -800, -790, nil)
			h.since(-796, func() { h.machines["n1"].running = nil })
			h.fetched("n2", aZip, -795, -790, nil)
		}, ""},
		"list fetched too soon": {func(h *history) {
			h.fetched("n1", aList, -800, -799, nil)
			h.fetched("n2", aList, -760, -759, nil)
		}, "I3"},
		"fetched what another has": {func(h *history) {
			owner, other := h.replicas()
			h.holds(other, -900)
			h.fetched(owner, aZip, -800, -799, nil)
		}, "I4"},
		"fetched what another has, who was away": {func(h *history) {
			owner, other := h.replicas()
			h.holds(other, -900)
			h.since(-850, func() { h.machines[other].frozen = true })
			h.since(-820, func() { h.machines[other].frozen = false })
			h.fetched(owner, aZip, -800, -799, nil)
		}, ""},
		"fetched what another has, whom a third may have slandered": {func(h *history) {
			owner, other := h.replicas()
			h.holds(other, -900)
			third := slices.DeleteFunc(h.nodes(""), func(m *machine) bool { return m.id == owner || m.id == other })
			h.since(-850, func() {
				h.cuts = append(h.cuts, cut{from: third, to: []*machine{h.machines[other]}, both: true, kind: membertest.All})
				h.redraw()
			})
			h.since(-820, func() { h.cuts = nil; h.redraw() })
			h.fetched(owner, aZip, -800, -799, nil)
		}, ""},
		"fetched what another has while another region is cut off": {func(h *history) {
			owner, other := h.replicas()
			h.holds(other, -900)
			h.since(-850, func() {
				far := h.add("n9", "r2", "", ring.Node)
				far.boots.Store(1)
				far.running = &process{}
				h.cuts = append(h.cuts, cut{from: []*machine{far}, to: h.nodes("r1"), both: true, kind: membertest.All})
				h.redraw()
			})
			h.fetched(owner, aZip, -780, -779, nil)
		}, "I4"},
		"the gateway fetched by itself": {func(h *history) { h.fetched("g1", aZip, -800, -799, nil) }, "I4 by itself"},
		"the gateway had nobody": {func(h *history) {
			h.since(-900, func() {
				h.cuts = append(h.cuts, cut{from: h.gateways(), to: h.nodes(""), kind: membertest.All})
				h.redraw()
			})
			h.fetched("g1", aZip, -800, -799, nil)
		}, ""},
		"the gateway had only nodes that cannot read": {func(h *history) {
			h.since(-850, func() {
				for _, m := range h.nodes("") {
					m.disk.noReads.Store(true)
				}
			})
			h.fetched("g1", aZip, -800, -799, nil)
		}, ""},
		"error though upstream is well": {func(h *history) { h.answered(aZip, -800, failed) }, "upstream was well"},
		"error as upstream is not well": {func(h *history) {
			h.since(-850, func() { h.out.setMood(1, moodFail) })
			h.answered(aZip, -800, failed)
		}, ""},
		"error though there is a copy": {func(h *history) {
			_, other := h.replicas()
			h.holds(other, -900)
			h.since(-850, func() { h.out.setMood(1, moodFail) })
			h.answered(aZip, -780, failed)
		}, "had a copy"},
		"slow though a node of the region has it": {func(h *history) {
			owner, _ := h.replicas()
			h.holds(owner, -900)
			h.answered(aZip, -800, func(a *answer) { a.end = a.start.Add(11 * time.Second) })
		}, "took 11s"},
		"slow as nobody has it": {func(h *history) {
			h.answered(aZip, -800, func(a *answer) { a.end = a.start.Add(11 * time.Second) })
		}, ""},
		"broken off": {func(h *history) { h.answered(aZip, -800, func(a *answer) { a.whole = false }) }, "upstream was well"},
		"broken off astray": {func(h *history) {
			h.answered(aZip, -800, func(a *answer) { a.whole, a.astray = false, true })
		}, "never sent"},
		"broken off as upstream was wrong": {func(h *history) {
			h.since(-850, func() { h.out.setMood(1, moodWrong) })
			h.fetched("n1", aZip, -800, -799, nil)
			h.out.fetches[len(h.out.fetches)-1].bad = true
			h.answered(aZip, -800, func(a *answer) { a.whole, a.astray = false, true })
		}, ""},
		"broken off as the gateway died": {func(h *history) {
			h.since(-799.5, func() { h.machines["g1"].running = nil })
			h.answered(aZip, -800, func(a *answer) { a.whole = false })
		}, ""},
		"false no": {func(h *history) { h.answered(aZip, -800, absent) }, "a false no"},
		"no of upstream": {func(h *history) {
			h.since(-850, func() { h.out.setMood(1, moodLost) })
			h.since(-840, func() { h.out.setMood(1, moodOK) })
			h.answered(aZip, -800, absent)
		}, ""},
		"told what others are told": {func(h *history) {
			h.answered("example.com/m1/@v/v1.1.0.zip", -800, func(a *answer) { absent(a); a.source = "ringmod; fwd=miss; detail=not_cached" })
		}, "may fill"},
		"too old": {func(h *history) {
			h.out.published[1] = append(h.out.published[1], h.at(-900))
			h.answered(aList, -800, nil)
		}, "I9 not marked"},
		"old and marked": {func(h *history) {
			h.out.published[1] = append(h.out.published[1], h.at(-900))
			h.answered(aList, -800, func(a *answer) { a.stale = true })
		}, ""},
		"says that it is too old": {func(h *history) { h.answered(aList, -800, func(a *answer) { a.age = 70 * time.Second }) }, "I9 not marked"},
		"went back": {func(h *history) {
			h.out.published[1] = append(h.out.published[1], h.at(-820))
			h.answered(aList, -810, func(a *answer) { a.state = 2 })
			h.answered(aList, -800, nil)
		}, "I9 went back"},
		"pulled too fast": {func(h *history) {
			for i := range 20 {
				h.book.pull(pulled{"n1", 1, 2 << 20, h.at(-800 + float64(i)/100)})
			}
		}, "I8"},
		"pulled as fast as may be": {func(h *history) {
			for i := range 200 {
				h.book.pull(pulled{"n1", 1, 512 << 10, h.at(-800 + float64(i)/100)})
			}
		}, ""},
		"served what was purged": {func(h *history) {
			h.purged(func(*takedown) {})
			h.answered(aZip, -780, nil)
		}, "I10 it was purged"},
		"listed what was purged": {func(h *history) {
			h.purged(func(*takedown) {})
			h.answered(aList, -780, func(a *answer) { a.versions = []string{"v1.0.0"} })
		}, "I10 the list"},
		"served what was purged and lifted": {func(h *history) {
			h.purged(func(d *takedown) { d.lifted, d.clear = h.at(-785), h.at(-784) })
			h.answered(aZip, -780, nil)
		}, ""},
		"served what was purged beyond a cut": {func(h *history) {
			h.purged(func(*takedown) {})
			h.since(-850, func() {
				h.cuts = append(h.cuts, cut{from: h.gateways(), to: h.nodes("")[:1], both: true, kind: membertest.All})
				h.redraw()
			})
			h.answered(aZip, -780, nil)
		}, ""},
		"no to what is purged": {func(h *history) {
			h.purged(func(*takedown) {})
			h.answered(aZip, -780, absent)
		}, ""},
		"no to what is purged no more": {func(h *history) {
			h.purged(func(d *takedown) { d.lifted, d.clear = h.at(-885), h.at(-884) })
			h.answered(aZip, -780, absent)
		}, "a false no"},
		"fetched twice as the copy was lost": {func(h *history) {
			h.fetched("n1", aZip, -800, -790, nil)
			h.fetched("n2", aZip, -780, -770, nil)
			h.out.fetches[1].lost = 1
		}, ""},
		"fetched twice as the disk failed": {func(h *history) {
			h.since(-850, func() { h.machines["n1"].disk.noWrites.Store(true) })
			h.fetched("n1", aZip, -700, -690, nil)
			h.fetched("n1", aZip, -680, -670, nil)
		}, ""},
		"fetched what one has who cannot read it": {func(h *history) {
			owner, other := h.replicas()
			h.holds(other, -900)
			h.since(-850, func() { h.machines[other].disk.noReads.Store(true) })
			h.fetched(owner, aZip, -800, -799, nil)
		}, ""},
		"too many hops": {func(h *history) { h.book.call(call{node: "n1", target: aZip, hops: 3, at: h.at(-800)}) }, "I6"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHistory(t)
			tt.write(h)
			got := strings.Join(h.book.check(), "\n")
			if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// spoil lets all copies turn bad.
func (d *disk) spoil() error {
	_, err := d.rot(func() bool { return true })
	return err
}

// TestSettleFindsFaults holds the checks of what lies on disks against disks that are
// not as they should be.
func TestSettleFindsFaults(t *testing.T) {
	t.Parallel()
	owner := func(w *World) *machine { return w.machines[w.look().replicas("r1", mustTarget(aZip))[0]] }
	path := func(m *machine) string { return filepath.Join(m.disk.dir, "objects", filepath.FromSlash(aZip)) }
	for name, tt := range map[string]struct {
		harm func(w *World) error
		find func(w *World) []string
		want string
	}{
		"nothing": {func(*World) error { return nil }, func(w *World) []string {
			return slices.Concat(w.misplaced(), w.rotten(), w.machines["n1"].disk.over)
		}, ""},
		"a copy is missing": {func(w *World) error {
			w.give(owner(w), 1, 0)
			return nil
		}, (*World).misplaced, "lacks example.com/m1/@v/v1.0.0.zip"},
		"a node that is gone is not forgotten": {func(w *World) error {
			w.kill(w.machines["n3"])
			w.machines["n3"].away = true
			return nil
		}, (*World).misplaced, "not forgotten"},
		"a copy is bad": {func(w *World) error {
			w.give(owner(w), 1, 0)
			return owner(w).disk.flip(path(owner(w)))
		}, (*World).rotten, "I7 the copy of example.com/m1/@v/v1.0.0.zip"},
		"a scrub cannot repair": {func(w *World) error {
			w.give(owner(w), 1, 0)
			w.out.setMood(-1, moodFail)
			time.Sleep(time.Minute) // until others have copies
			return errors.Join(w.machines["n1"].disk.spoil(), w.machines["n2"].disk.spoil(), w.machines["n3"].disk.spoil())
		}, (*World).scrub, "did not repair"},
		"a purge is not known": {func(w *World) error {
			w.book.takeDown(&takedown{mod: 1})
			w.book.takedowns[0].ended = time.Now()
			return nil
		}, (*World).misplaced, "does not know"},
		"what is purged is there": {func(w *World) error {
			w.give(owner(w), 1, 0)
			w.book.takeDown(&takedown{mod: 1})
			w.book.takedowns[0].ended = time.Now()
			return nil
		}, (*World).misplaced, "which is purged"},
		"a disk is above its limit": {func(w *World) error {
			d := owner(w).disk
			d.limit = 1 << 20
			err := os.WriteFile(filepath.Join(d.dir, "objects", "big"), make([]byte, 3<<20), 0o600)
			d.note(aZip)
			return err
		}, func(w *World) []string { return owner(w).disk.over }, "I12"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1, ring.DefaultSpec())
				for mod := range zipSizes {
					w.out.publish(mod)
				}
				for _, id := range []string{"n1", "n2", "n3"} {
					w.run(w.add(id, "r1", "", ring.Node))
				}
				if _, err := w.converge(converging); err != nil {
					t.Fatal(err)
				}
				if err := tt.harm(w); err != nil {
					t.Fatal(err)
				}
				got := strings.Join(tt.find(w), "\n")
				if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
					t.Errorf("got %q, want %q", got, tt.want)
				}
				w.end()
			})
		})
	}
}
