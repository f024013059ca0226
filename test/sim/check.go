package sim

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Times that the checks allow for.
const (
	// settling is how long members may act on what they knew before a fault or its
	// end: breakers, the rejoin loop, suspicion.
	settling = time.Minute
	// negative is how long an absence may be repeated, by the node that heard it and by
	// another that heard it from there, and a little for the way.
	negative = 2*time.Minute + 10*time.Second
	// fresh is how old a mutable answer may be that is not marked stale, likewise.
	fresh = time.Minute + 2*time.Second
	// patienceNear and patienceFar are how long an object may take that a rank of the
	// own region, and one elsewhere, has.
	patienceNear = 10 * time.Second
	patienceFar  = 20 * time.Second
	// lingering is how long a request may fare as those before it, whose fill it
	// joins.
	lingering = 30 * time.Second
)

// check holds what happened against the invariants, and returns what does not fit.
func (b *book) check() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var bad []string
	for _, a := range b.answers {
		if why := b.judge(a); why != "" {
			bad = append(bad, b.describe(a)+": "+why)
		}
	}
	bad = append(bad, b.backwards()...)
	fetches := b.w.out.history()
	bad = append(bad, b.needless(fetches)...)
	bad = append(bad, b.repeated(fetches)...)
	bad = append(bad, b.rush()...)
	return append(bad, b.hops()...)
}

func (b *book) at(t time.Time) string {
	return fmt.Sprintf("%.3fs", t.Sub(b.w.start).Seconds())
}

func (b *book) describe(a answer) string {
	what := fmt.Sprintf("%d", a.status)
	if !a.whole {
		what += " broken off"
	}
	return fmt.Sprintf("%s to %s %s asked for %s, got %s [%s] %s", b.at(a.start), b.at(a.end), a.gateway, a.target, what, a.source, a.text)
}

// judge holds one answer against the invariants.
func (b *book) judge(a answer) string {
	switch {
	case a.left:
		return ""
	case a.wrong != "" && !b.passedOn(a):
		return "I1/I2 " + a.wrong
	case a.wrong != "":
		return ""
	case a.astray && !b.deceived(a):
		return "I1/I2 broken off after bytes that upstream never sent"
	case a.astray: // nothing can be put behind what has gone out
		return ""
	case a.whole && a.status == 200:
		return cmp.Or(b.judgePurged(a), b.judgeAge(a), b.judgeTime(a))
	case a.whole && (a.status == 404 || a.status == 410):
		return b.judgeAbsence(a)
	}
	if why := b.mustSucceed(a); why != "" {
		return fmt.Sprintf("no object and no word of upstream, although %s (%v)", why, a.err)
	}
	return ""
}

// passedOn tells whether the gateway had nobody but upstream to ask, which sent
// something wrong: that is for the go command to find out.
func (b *book) passedOn(a answer) bool {
	return slices.ContainsFunc(b.w.out.history(), func(f fetch) bool {
		return f.by == a.gateway && f.target == a.target && f.bad && !f.start.After(a.end) && !f.end.Before(a.start.Add(-time.Second))
	})
}

// deceived tells whether upstream sent something wrong to anybody meanwhile.
func (b *book) deceived(a answer) bool {
	return slices.ContainsFunc(b.w.out.history(), func(f fetch) bool {
		return f.target == a.target && f.bad && !f.start.After(a.end) && (f.end.IsZero() || !f.end.Before(a.start.Add(-time.Second)))
	})
}

// judgeAge is I9: what is not marked stale is at most as old as promised.
func (b *book) judgeAge(a answer) string {
	if a.target.Kind.Immutable() || a.stale {
		return ""
	}
	mod, _ := place(a.target)
	if b.maybePurged(a.target, a.start, a.end) { // the newest is another one
		return ""
	}
	next, superseded := b.w.out.publishedAt(mod, a.state)
	switch {
	case a.state < 1:
		return "I1 upstream never said this"
	case a.age > fresh:
		return fmt.Sprintf("I9 not marked stale at the age of %s", a.age)
	case superseded && next.Before(a.start.Add(-fresh)):
		return "I9 not marked stale, but upstream has said something else since " + b.at(next)
	}
	return ""
}

// judgeTime holds the time that an object took against what its seeker may have to wait
// for, 3 s for each node that is silent: all that were, in the region and elsewhere.
func (b *book) judgeTime(a answer) string {
	took := a.end.Sub(a.start)
	if took <= patienceNear || !b.always(a.start, a.end, func(e epoch) bool { return e.alive[a.gateway] == a.boot }) {
		return ""
	}
	id := b.copyFor(a)
	switch {
	case id == "":
		return ""
	case b.w.machines[id].region == b.w.machines[a.gateway].region:
		return fmt.Sprintf("took %s, although %s of its region had a copy all the time", took, id)
	case took > patienceFar && !b.waited(a):
		return fmt.Sprintf("took %s, although %s had a copy all the time", took, id)
	default:
		return ""
	}
}

// waited tells whether upstream was slow to answer or to fail, as it is too for who is cut
// off from it in the middle of a body: it is waited for before other regions are asked.
func (b *book) waited(a answer) bool {
	mod, _ := place(a.target)
	return !b.always(a.start.Add(-lingering), a.end, func(e epoch) bool {
		for id := range e.alive {
			if !e.out[id] {
				return false
			}
		}
		return !slices.Contains([]mood{moodSlow, moodHang, moodStall}, e.moods[mod])
	})
}

// judgeAbsence holds a "no" against what upstream said of late.
func (b *book) judgeAbsence(a answer) string {
	if a.cached || b.maybePurged(a.target, a.start, a.end) {
		return ""
	}
	if strings.Contains(a.source, "not_cached") {
		return "a client that may fill was told what is for those who may not"
	}
	mod, version := place(a.target)
	if !a.target.Kind.Immutable() {
		version = 0
	}
	from := a.start.Add(-negative)
	published, there := b.w.out.publishedAt(mod, version)
	told := !b.always(from, a.end, func(e epoch) bool { return e.moods[mod] != moodLost })
	if there && published.Before(from) && !told {
		return "a false no: it is there since " + b.at(published)
	}
	return ""
}

// mustSucceed tells why a request had to end well; "" if it had not.
func (b *book) mustSucceed(a answer) string {
	if a.cached || !b.always(a.start, a.end, func(e epoch) bool { return e.alive[a.gateway] == a.boot }) {
		return ""
	}
	if id := b.copyFor(a); id != "" {
		return id + " had a copy all the time"
	}
	return b.upstreamFor(a)
}

// copyFor returns a node that has held the target all the time, as a rank of its
// region and within reach of the gateway.
func (b *book) copyFor(a answer) string {
	if !a.target.Kind.Immutable() {
		return ""
	}
	for _, m := range b.w.nodes("") {
		since, ok := a.held.since[m.id]
		if ok && since.Before(a.start) && b.always(a.start.Add(-settling), a.end, func(e epoch) bool {
			return e.close(a.gateway, m.id) && slices.Contains(b.askable(e, m.region, a), m.id) && !e.blind[m.id]
		}) {
			return m.id
		}
	}
	return ""
}

// askable returns who is asked for a copy in a region: all ranks in the gateway's
// own, and the replicas elsewhere.
func (b *book) askable(e epoch, region string, a answer) []string {
	if region != b.w.machines[a.gateway].region {
		return e.replicas(region, a.target)
	}
	return e.ranks(region, a.target)
}

// upstreamFor tells by which way upstream could have been asked all the time.
func (b *book) upstreamFor(a answer) string {
	mod, _ := place(a.target)
	healthy := func(e epoch) bool {
		for id := range e.alive {
			if !e.out[id] {
				return false
			}
		}
		return e.moods[mod] == moodOK || e.moods[mod] == moodSlow
	}
	if !b.always(a.start.Add(-max(settling, lingering)), a.end, healthy) {
		return ""
	}
	for _, m := range b.w.nodes("") {
		if b.always(a.start.Add(-settling), a.end, func(e epoch) bool { return e.connected(a.gateway, m.id) && !e.blind[m.id] }) {
			return "upstream was well and " + m.id + " could be asked"
		}
	}
	return ""
}

// backwards is the second half of I9: no gateway goes back. What is stale may be made
// of what is held, of which nobody knows how old it is, so that it only must not
// follow what was fresh.
func (b *book) backwards() []string {
	type key struct {
		gateway, target string
		boot            int
	}
	by := make(map[key][]answer)
	for _, a := range b.answers {
		if a.whole && a.status == 200 && !a.target.Kind.Immutable() && !b.maybePurged(a.target, b.w.start, a.end) {
			k := key{a.gateway, a.target.String(), a.boot}
			by[k] = append(by[k], a)
		}
	}
	var bad []string
	for _, all := range by {
		slices.SortFunc(all, func(a, b answer) int { return a.end.Compare(b.end) })
		for i, late := range all {
			for _, early := range all[:i] {
				if !early.stale && early.end.Before(late.start) && late.state < early.state {
					bad = append(bad, fmt.Sprintf("%s: I9 went back from %d to %d, which was said at %s", b.describe(late), early.state, late.state, b.at(early.end)))
					break
				}
			}
		}
	}
	slices.Sort(bad)
	return bad
}
