package sim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/scrub"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/ring"
)

// Times that copies may take to be where they belong, after healing (I7).
const (
	// A comparison begins every 6 min at the latest. What could not be pulled while all
	// was broken is not tried again for up to 4 min, and then found by the next one.
	replicating = 15 * time.Minute
	// forgetting is when a member that does not come back is out, if no operator says so:
	// member.Config.OutAfter, and a minute.
	forgetting = 11 * time.Minute
)

// settle is I7: it waits until copies are where they belong.
func (w *World) settle(patient bool) []string {
	limit := replicating
	for _, m := range w.nodes("") {
		if m.away && !m.forgot && m.boots.Load() > 0 {
			if patient && w.mostRun(m.region) {
				limit = replicating + forgetting
			} else {
				w.forget(m)
			}
		}
	}
	bad := w.scrub()
	for began := time.Now(); ; w.sleep(5 * time.Second) {
		why := w.misplaced()
		if len(why) == 0 {
			w.note("copies in place after %s", time.Since(began))
			return append(bad, w.rotten()...)
		}
		if time.Since(began) > limit {
			for _, each := range why[:min(len(why), 10)] {
				bad = append(bad, fmt.Sprintf("I7 %s after healing: %s (1 of %d)", limit, each, len(why)))
			}
			return bad
		}
	}
}

// mostRun tells whether at least half of the nodes of a region that are in run. Else
// they cannot know that it is not them who are cut off, and leave it to an operator to
// forget the others (node/member).
func (w *World) mostRun(region string) bool {
	in, up := 0, 0
	for _, m := range w.nodes(region) {
		switch {
		case m.running != nil:
			in, up = in+1, up+1
		case m.boots.Load() > 0 && !m.forgot && !m.life().IsTombstone():
			in++
		}
	}
	return 2*up >= in
}

// scrub lets an operator have everything checked.
func (w *World) scrub() (bad []string) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, p := range w.nodesUp("") {
		all.Go(func() {
			var text []string
			err := p.scrub.ScrubNow(w.t.Context(), 0, true, func(at scrub.Progress) error {
				for _, f := range at.Findings {
					// What a checksum database has said is got again when it is needed.
					if !f.Repaired && !strings.HasPrefix(f.Name, "sumdb/") {
						text = append(text, f.Name+": "+f.Text)
					}
				}
				return nil
			})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				bad = append(bad, fmt.Sprintf("I7 scrub of %s: %v", p.m.id, err))
			}
			if len(text) > 0 && w.limit == 0 {
				bad = append(bad, fmt.Sprintf("I7 scrub of %s did not repair %d, %s", p.m.id, len(text), text[0]))
			}
		})
	}
	all.Wait()
	return bad
}

// nodesUp returns the processes of the nodes of a region, of all for "".
func (w *World) nodesUp(region string) []*process {
	var all []*process
	for _, m := range w.nodes(region) {
		if m.running != nil {
			all = append(all, m.running)
		}
	}
	return all
}

// misplaced tells which copies are not where they belong.
func (w *World) misplaced() (why []string) {
	for _, m := range w.nodes("") {
		switch {
		case m.running != nil && m.life() != ring.Active:
			why = append(why, fmt.Sprintf("%s is %s", m.id, m.life()))
		case m.away && !m.forgot && !m.life().IsTombstone():
			why = append(why, m.id+" is not forgotten")
		}
	}
	if why = append(why, w.broughtBack()...); len(why) > 0 {
		return why
	}
	view := w.live()[0].member.View()
	for _, region := range w.regions() {
		here := make(map[string]map[string]bool) // by process and name
		for _, p := range w.nodesUp(region) {
			here[p.m.id] = make(map[string]bool)
			for _, name := range p.handle.names() {
				here[p.m.id][name] = true
			}
		}
		for id, names := range here {
			for name := range names {
				if lacking := w.lacking(view, region, name, here); lacking != "" {
					why = append(why, fmt.Sprintf("%s lacks %s, which %s has", lacking, name, id))
				}
			}
		}
	}
	slices.Sort(why)
	return why
}

// lacking returns a replica that lacks an object though it could hold it.
func (w *World) lacking(view *ring.View, region, name string, here map[string]map[string]bool) string {
	t, err := target.Parse(name)
	if err != nil || !t.Kind.Immutable() {
		return ""
	}
	for _, i := range view.Next().Replicas(region, ring.OfTarget(t)) {
		id := view.Member(i).ID
		if here[id][name] {
			continue
		}
		p := w.machines[id].running
		if p == nil || p.handle.HasRoom() && p.handle.Evicted(name).IsZero() {
			return id
		}
	}
	return ""
}

// rotten tells which copies are not what they should be, after all.
func (w *World) rotten() (bad []string) {
	for _, p := range w.nodesUp("") {
		for _, name := range p.handle.names() {
			if why := rot(p, name); why != "" {
				bad = append(bad, fmt.Sprintf("I7 the copy of %s at %s: %s", name, p.m.id, why))
			}
		}
	}
	return bad
}

func rot(p *process, name string) string {
	t := mustTarget(name)
	obj, err := p.handle.Open(p.w.t.Context(), name)
	if corrupt, is := errors.AsType[*store.CorruptError](err); is {
		return corrupt.Error()
	}
	if err != nil {
		return "" // evicted since
	}
	defer obj.File.Close()
	data, err := io.ReadAll(obj.File)
	mod, version := place(t)
	if err != nil || !t.Kind.Sumdb() && version >= 0 && !bytes.Equal(data, immutableContent(t, mod)) {
		return fmt.Sprintf("is not what it should be (%v)", err)
	}
	return ""
}
