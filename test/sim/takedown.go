package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/purge"
	"github.com/ringmod/ringmod/ring"
)

// hearing is how long gateways and nodes that can be reached may go on with what was
// purged, once the operator's call has returned: their next question.
const hearing = 90 * time.Second

// takedown is a version that an operator has purged.
type takedown struct {
	mod, version  int
	began, ended  time.Time // of the operator's call; ended is zero while it runs
	unconfirmed   []string
	lifted, clear time.Time // likewise of the call that lifts it
}

// covers tells whether t may be kept away by it.
func (d *takedown) covers(t target.Target) bool {
	mod, version := place(t)
	return !t.Kind.Sumdb() && mod == d.mod && version == d.version
}

// purge draws a version that is purged, and mostly lifted again.
func (d *drawer) purge() {
	mod, version := d.IntN(len(zipSizes)), d.IntN(3)
	at, lifted := d.when(), d.IntN(3) == 0
	after := d.span(1, 60)
	for _, other := range d.purged {
		if other.mod == mod && other.version == version {
			return
		}
	}
	down := &takedown{mod: mod, version: version}
	d.purged = append(d.purged, down)
	name := modulePath(mod) + "@" + versionOf(version)
	d.add(at, "purge "+name, func(w *World) { w.purge(down) })
	if lifted {
		d.add(at+after, "lift the purge of "+name, func(w *World) { w.lift(down) })
	}
}

// someone returns a node that an operator may reach.
func (w *World) someone() *process {
	for _, p := range w.nodesUp("") {
		if !p.m.frozen && p.m.life() == ring.Active {
			return p
		}
	}
	return nil
}

func (d *takedown) names() []purge.Name {
	names, err := purge.Names(module.Version{Path: modulePath(d.mod), Version: versionOf(d.version)})
	if err != nil {
		panic(err)
	}
	return names
}

func (w *World) purge(d *takedown) {
	p := w.someone()
	if p == nil {
		return
	}
	w.book.takeDown(d)
	w.clients.running.Go(func() {
		resp, err := p.purger.Purge(context.WithoutCancel(w.t.Context()), d.names(), false, "sim")
		w.book.mu.Lock()
		defer w.book.mu.Unlock()
		if err == nil {
			d.ended, d.unconfirmed = time.Now(), resp.GetUnconfirmed()
		}
	})
}

// lift undoes a purge that has ended, at a node that knows it.
func (w *World) lift(d *takedown) {
	w.book.mu.Lock()
	ended := !d.ended.IsZero()
	w.book.mu.Unlock()
	p := w.someone()
	if !ended || p == nil || !p.purges.Purged(file(d.mod, d.version, ".zip").String()) {
		return
	}
	w.book.mu.Lock()
	d.lifted = time.Now()
	w.book.mu.Unlock()
	w.clients.running.Go(func() {
		_, err := p.purger.Purge(context.WithoutCancel(w.t.Context()), d.names(), true, "sim")
		w.book.mu.Lock()
		defer w.book.mu.Unlock()
		if err == nil {
			d.clear = time.Now()
		}
	})
}

func (b *book) takeDown(d *takedown) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d.began = time.Now()
	b.takedowns = append(b.takedowns, d)
}

// inForce returns what must be away from now on, everywhere.
func (b *book) inForce() []takedown {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []takedown
	for _, d := range b.takedowns {
		if !d.ended.IsZero() && d.lifted.IsZero() {
			all = append(all, *d)
		}
	}
	return all
}

// maybePurged tells whether a purge may have something to do with an answer about t of
// that time.
func (b *book) maybePurged(t target.Target, from, to time.Time) bool {
	mod, version := place(t)
	return slices.ContainsFunc(b.takedowns, func(d *takedown) bool {
		same := d.mod == mod && (d.version == version || !t.Kind.Immutable())
		return same && !t.Kind.Sumdb() && d.began.Before(to) && (d.clear.IsZero() || d.clear.After(from.Add(-hearing)))
	})
}

// judgePurged is I10: nobody gets what was purged, once all who are within reach have
// heard of it. It looks at purges after which nothing went wrong any more.
func (b *book) judgePurged(a answer) string {
	for _, d := range b.takedowns {
		from := d.ended.Add(hearing)
		if d.ended.IsZero() || !d.lifted.IsZero() && d.lifted.Before(a.end) || a.start.Before(from) {
			continue
		}
		quiet := b.always(a.start.Add(-hearing), a.end, func(e epoch) bool {
			for id := range b.w.machines {
				if e.known(id) && !e.close(a.gateway, id) {
					return false
				}
			}
			return true
		})
		if !quiet {
			continue
		}
		if d.covers(a.target) {
			return "I10 it was purged at " + b.at(d.began)
		}
		if a.target.Kind == target.List && slices.Contains(a.versions, versionOf(d.version)) && a.target.Path == modulePath(d.mod) {
			return "I10 the list has what was purged at " + b.at(d.began)
		}
	}
	return ""
}

// known tells whether a member should be there.
func (e epoch) known(id string) bool { return !e.away[id] }

// broughtBack tells which nodes hold what was purged (I10).
func (w *World) broughtBack() (why []string) {
	for _, d := range w.book.inForce() {
		for _, p := range w.live() {
			for _, ext := range []string{".info", ".mod", ".zip"} {
				name := file(d.mod, d.version, ext).String()
				if !p.purges.Purged(name) {
					why = append(why, fmt.Sprintf("I10 %s does not know that %s is purged", p.m.id, name))
				}
				if p.m.node() && p.m.disk.has(name) {
					why = append(why, fmt.Sprintf("I10 %s holds %s, which is purged", p.m.id, name))
				}
			}
		}
	}
	return why
}

// purgedState returns how many versions were published when upstream said a list that lacks
// some which were purged, the most that it can be; -1 for a list that it never said.
func (b *book) purgedState(t target.Target, body string) int {
	mod, _ := place(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	away := make(map[int]bool)
	for _, d := range b.takedowns {
		if d.mod == mod {
			away[d.version] = true
		}
	}
	if len(away) == 0 {
		return -1
	}
	there := make(map[string]bool)
	for v := range strings.FieldsSeq(body) {
		there[v] = true
	}
	n := 0
	for ; n < maxVersions && (there[versionOf(n)] || away[n]); n++ {
		delete(there, versionOf(n))
	}
	if len(there) > 0 {
		return -1
	}
	return min(n, max(1, b.w.out.count(mod)))
}
