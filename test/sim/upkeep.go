package sim

import (
	"fmt"
	"math/rand/v2"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/ring"
)

// upkeep draws what copies have to outlive.
func (d *drawer) upkeep() {
	if d.IntN(6) == 0 {
		d.plan.limit = []int64{2 << 20, 3 << 20}[d.IntN(2)]
	}
	if d.IntN(4) == 0 {
		d.plan.pulls = 512 << 10
	}
	d.plan.patient = d.IntN(8) == 0
	for range max(0, d.IntN(8)-3) {
		d.harm()
	}
}

// harm draws what takes copies away, or moves where they belong.
func (d *drawer) harm() {
	switch d.IntN(13) {
	case 0, 1:
		d.loss()
	case 2:
		d.wipe()
	case 3, 4:
		d.failure()
	case 5, 6:
		d.rot()
	case 7:
		for range 1 + d.IntN(3) {
			d.join()
		}
	case 8, 9:
		d.leave()
	case 10, 11:
		d.purge()
	default:
		d.fashion()
	}
}

// goner draws a node that its region and the seeds of the others can do without; "" for
// none.
func (d *drawer) goner() string {
	id := pick(d, d.plan.of(ring.Node, "")[1:])
	for _, m := range d.plan.members {
		if m.id != id {
			continue
		}
		left := len(d.plan.of(ring.Node, m.region))
		for _, gone := range d.gone {
			if gone.id == id {
				return ""
			}
			if gone.region == m.region {
				left--
			}
		}
		if left < 2 {
			return ""
		}
		d.gone = append(d.gone, m)
	}
	return id
}

// loss draws a node that never comes back.
func (d *drawer) loss() {
	if len(d.plan.of(ring.Node, "")) < 2 {
		return
	}
	id, at := d.goner(), d.when()
	ordered, after := d.IntN(2) == 0, d.span(1, 60)
	if id == "" {
		return
	}
	d.add(at, "lose "+id, func(w *World) {
		m := w.machines[id]
		if m.running != nil {
			w.kill(m)
		}
		m.away = true
	})
	if ordered {
		d.add(at+after, "an operator forgets "+id, func(w *World) { w.forget(w.machines[id]) })
	}
}

// wipe draws a node that begins again with an empty disk.
func (d *drawer) wipe() {
	id, at := pick(d, d.plan.of(ring.Node, "")), d.when()
	d.add(at, "kill "+id+", its disk is lost", func(w *World) {
		m := w.machines[id]
		if m.running != nil {
			w.kill(m)
		}
		w.wipe(m)
	})
	d.start(at+d.span(0.5, 60), id)
}

// failure draws a disk that fails for a time.
func (d *drawer) failure() {
	id, at, kind := pick(d, d.plan.of(ring.Node, "")), d.when(), d.IntN(4)
	what := []string{"writes", "writes", "reads", "reads and writes"}[kind]
	d.add(at, what+" fail at "+id, func(w *World) { w.fail(w.machines[id], kind != 2, kind >= 2) })
	d.add(at+d.span(1, 60), what+" succeed again at "+id, func(w *World) { w.fail(w.machines[id], false, false) })
}

// rot draws copies that turn bad where they lie, at one node.
func (d *drawer) rot() {
	id, share, seed := pick(d, d.plan.of(ring.Node, "")), []float64{0.05, 0.3, 1}[d.IntN(3)], d.Uint64()
	d.add(d.when(), fmt.Sprintf("%.0f %% of the copies at %s turn bad", share*100, id), func(w *World) {
		r := rand.New(rand.NewPCG(seed, 0))
		n, err := w.machines[id].disk.rot(func() bool { return r.Float64() < share })
		if err != nil {
			w.t.Error(err)
		}
		w.note("these are %d", n)
	})
}

// leave draws a node that is drained.
func (d *drawer) leave() {
	if len(d.plan.of(ring.Node, "")) < 2 {
		return
	}
	id, at := d.goner(), d.when()
	if id == "" {
		return
	}
	d.add(at, "drain "+id, func(w *World) {
		if p := w.machines[id].running; p != nil {
			if err := p.life.Drain(w.t.Context(), 0); err != nil {
				w.note("%s is not drained: %v", id, err)
			}
		}
	})
}

// fashion draws what all want at once, for some seconds.
func (d *drawer) fashion() {
	t, at := file(pick(d, []int{1, 3, 4}), 0, ".zip"), d.when()
	d.add(at, "everybody wants "+t.String(), func(w *World) {
		for _, gw := range w.gateways() {
			w.clients.running.Go(func() {
				for range 200 {
					time.Sleep(15 * time.Millisecond)
					w.clients.running.Go(func() { w.clients.get(gw, t, how{}) })
				}
			})
		}
	})
}

// start begins a process again, unless it runs or its machine is gone for good.
func (d *drawer) start(at time.Duration, id string) {
	d.add(at, "start "+id, func(w *World) {
		if m := w.machines[id]; m.running == nil && !m.away {
			w.restart(m)
		}
	})
}

// forget lets an operator say that a machine does not come back.
func (w *World) forget(m *machine) {
	for _, p := range w.live() {
		if p.m.node() && !p.m.frozen {
			if err := p.member.Forget(w.t.Context(), m.id, true); err != nil {
				w.note("%s is not forgotten: %v", m.id, err)
			}
			w.book.observe(1) // others hear of it later, see watch
			return
		}
	}
}

// wipe takes a machine without a process all that it has.
func (w *World) wipe(m *machine) {
	if n := len(m.ended); n > 0 {
		<-m.ended[n-1].down
	}
	synctest.Wait() // until what was killed writes nothing more
	m.saved = new(savedState)
	if err := m.disk.wipe(); err != nil {
		w.t.Error(err)
	}
}

// fail sets what of a disk fails.
func (w *World) fail(m *machine, writes, reads bool) {
	m.disk.noWrites.Store(writes)
	m.disk.noReads.Store(reads)
	w.book.observe(1)
}
