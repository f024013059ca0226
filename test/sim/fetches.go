package sim

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ringmod/ringmod/node/copies"
)

// needless is I4: nobody fetches what a rank of the region has.
func (b *book) needless(fetches []fetch) []string {
	var bad []string
	for _, f := range fetches {
		by := b.w.machines[f.by]
		switch {
		case !by.node():
			if id := b.anyNode(f); id != "" {
				bad = append(bad, fmt.Sprintf("%s %s: I4 by itself, although %s could be asked", b.at(f.start), &f, id))
			}
		case f.target.Kind.Immutable():
			if id := b.holderFor(f); id != "" {
				bad = append(bad, fmt.Sprintf("%s %s for region %s: I4 %s had a copy all the time", b.at(f.start), &f, f.region, id))
			}
		}
	}
	return bad
}

// anyNode returns a rank that a gateway could have asked.
func (b *book) anyNode(f fetch) string {
	for _, m := range b.w.nodes("") {
		if b.always(f.start.Add(-settling), f.start, func(e epoch) bool {
			return e.close(f.by, m.id) && !e.blind[m.id] && slices.Contains(e.ranks(m.region, f.target), m.id)
		}) && !b.rumoured(m.id, f.start) {
			return m.id
		}
	}
	return ""
}

// rumoured tells whether anybody who had lost sight of a member has come back within
// the last minute, and may have told others that it is dead. It is until the member
// hears of that and contradicts.
func (b *book) rumoured(id string, at time.Time) bool {
	blind := make(map[string]bool)
	for i, e := range b.during(at.Add(-settling), at) {
		for other := range b.w.machines {
			sees := e.close(other, id)
			if sees && blind[other] {
				return true
			}
			// Who was not there in the beginning may have been frozen.
			blind[other] = !sees && (e.up(other) || i == 0 || blind[other])
		}
	}
	return false
}

// holderFor returns a rank of the region on whose behalf f was made that held the
// target, within reach of whoever may have looked for it there.
func (b *book) holderFor(f fetch) string {
	region := b.w.machines[f.by].region
	if !f.target.Kind.Sumdb() { // else whoever fetches wants it for itself, to verify something
		region = cmp.Or(f.region, region)
	}
	seekers := b.seekers(f, region)
	for _, m := range b.w.nodes(region) {
		since, ok := f.since[m.id]
		if ok && since.Before(f.start.Add(-2*time.Second)) && b.always(f.start.Add(-settling), f.start, func(e epoch) bool {
			far := func(id string) bool { return !e.close(id, m.id) }
			return e.up(f.by) && !e.blind[m.id] && slices.Contains(e.ranks(region, f.target), m.id) && !slices.ContainsFunc(seekers, far)
		}) && !b.rumoured(m.id, f.start) {
			return m.id
		}
	}
	return ""
}

// seekers returns all members of the region that were there when f began, any of which
// may have asked for it, and the one that fetched where that is of the region.
func (b *book) seekers(f fetch, region string) []string {
	var all []string
	if b.w.machines[f.by].region == region {
		all = []string{f.by} // it may be frozen
	}
	for _, e := range b.during(f.start, f.start) {
		for id := range e.alive {
			if b.w.machines[id].region == region {
				all = append(all, id)
			}
		}
	}
	return all
}

// repeated is I3: see the package.
func (b *book) repeated(fetches []fetch) []string {
	by := make(map[string][]fetch)
	for _, f := range fetches {
		if b.w.machines[f.by].node() {
			by[f.target.String()] = append(by[f.target.String()], f)
		}
	}
	var bad []string
	for _, all := range by {
		slices.SortFunc(all, func(a, b fetch) int { return a.start.Compare(b.start) })
		if all[0].target.Kind.Immutable() {
			bad = append(bad, b.tooMany(all)...)
		} else {
			bad = append(bad, b.tooOften(all)...)
		}
	}
	slices.Sort(bad)
	return bad
}

// tooMany is I3 for what does not change.
func (b *book) tooMany(all []fetch) []string {
	for k, f := range all {
		allowed := 1 + b.disturbances(all[0].start.Add(-settling), f.start) + f.lost - all[0].lost
		failed := false
		for _, before := range all[:k] {
			failed = failed || before.failed(f.start)
			if before.failed(f.start) || !b.kept(before) {
				allowed++
			}
		}
		if failed {
			allowed += len(b.w.regions()) - 1
		}
		if k+1 > allowed {
			return []string{fmt.Sprintf("%s %s: I3 for the %d. time, %d allowed: %s", b.at(f.start), &f, k+1, allowed, b.list(all[:k+1]))}
		}
	}
	return nil
}

// tooOften is I3 for what changes: once in the time after which it is asked for anew.
func (b *book) tooOften(all []fetch) []string {
	for k, f := range all[1:] {
		last := all[k]
		if !last.failed(f.start) && b.kept(last) && f.start.Sub(last.start) < 45*time.Second-2*time.Second && b.disturbances(last.start.Add(-settling), f.start.Add(watching)) == 0 {
			return []string{fmt.Sprintf("%s %s: I3 before the last answer was old: %s", b.at(f.start), &f, b.list(all[:k+2]))}
		}
	}
	return nil
}

// kept tells whether the disk of who fetched was there to keep it, all the time.
func (b *book) kept(f fetch) bool {
	end := f.start.Add(settling)
	return b.always(f.start.Add(-lingering), end, func(e epoch) bool { return !e.full[f.by] && !e.blind[f.by] })
}

func (b *book) list(all []fetch) string {
	var text []string
	for _, f := range all {
		end := "running"
		if !f.end.IsZero() {
			end = b.at(f.end)
		}
		text = append(text, fmt.Sprintf("%s to %s by %s (%v)", b.at(f.start), end, f.by, f.err))
	}
	return strings.Join(text, ", ")
}

// disturbances adds up what may have given members another opinion about who
// coordinates.
func (b *book) disturbances(from, to time.Time) int {
	sum := 0
	for _, e := range b.epochs[1:] {
		if !e.at.Before(from) && !e.at.After(to) {
			sum += e.weight
		}
	}
	return sum
}

// hops is I6.
func (b *book) hops() []string {
	var bad []string
	for _, c := range b.calls {
		if c.hops > 2 {
			bad = append(bad, fmt.Sprintf("%s %s was asked for %s with %d hops left: I6", b.at(c.at), c.node, c.target, c.hops))
		}
	}
	return bad
}

// rush is I8: what a node pulls stays below its limit in every window, but for what
// its pullers read before they pay for it.
func (b *book) rush() []string {
	const reads = 5 * 64 << 10
	rate := float64(cmp.Or(b.w.rate, copies.DefaultRate))
	type life struct {
		by   string
		boot int
	}
	owed, last := make(map[life]float64), make(map[life]time.Time)
	for _, p := range b.pulls {
		l := life{p.by, p.boot}
		owed[l] = max(0, owed[l]-rate*p.at.Sub(last[l]).Seconds()) + float64(p.n)
		last[l] = p.at
		if owed[l] > rate/20+reads {
			return []string{fmt.Sprintf("%s %s: I8 pulls faster than %.0f bytes/s, %.0f too many", b.at(p.at), p.by, rate, owed[l])}
		}
	}
	return nil
}
