package sim

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ringmod/ringmod/ring"
)

// play runs a plan in the bubble that it is called in, and returns what does not fit
// the invariants, and the world for who wants to see more.
func play(t *testing.T, p *plan) (*World, []string) {
	t.Helper()
	spec := ring.DefaultSpec()
	spec.Replicas = p.replicas
	w := newWorld(t, p.seed, spec)
	w.memory, w.limit, w.rate = p.memory, p.limit, p.pulls
	w.delays(p.near, p.far)
	r := rand.New(rand.NewPCG(p.seed, 1))
	for mod, n := range p.published {
		for range n {
			w.out.publish(mod)
		}
	}
	for _, m := range p.members {
		w.run(w.add(m.id, m.region, m.zone, m.role))
		time.Sleep(time.Duration(r.Int64N(int64(300 * time.Millisecond))))
	}
	var bad []string
	if _, err := w.converge(converging); err != nil {
		bad = append(bad, "I5 in the beginning: "+err.Error())
	}
	w.place(r, p.held)
	w.net.SetLoss(p.loss)
	w.book.begin()
	for i, gw := range w.gateways() {
		w.clients.load(gw, p.rate, rand.New(rand.NewPCG(p.seed, uint64(i+2))))
	}
	w.perform(p)
	bad = append(bad, w.recover()...)
	bad = append(bad, w.settle(p.patient)...)
	bad = append(bad, w.end()...)
	return w, append(bad, w.book.check()...)
}

// perform lets happen what is planned, until its end.
func (w *World) perform(p *plan) {
	begin := time.Now()
	for _, a := range p.acts {
		if a.at >= p.length {
			break
		}
		w.sleep(a.at - time.Since(begin))
		w.note("%s", a.text)
		a.do(w)
	}
	w.sleep(p.length - time.Since(begin))
}

// recover heals everything and holds the cluster to what it has promised then (I5, and
// that all there is can be had from everywhere).
func (w *World) recover() []string {
	w.note("heal")
	w.net.SetLoss(0)
	w.heal()
	healed := time.Now()
	var bad []string
	took, err := w.converge(converging)
	if err != nil {
		bad = append(bad, "I5 "+err.Error())
	} else {
		w.note("one view after %s", took)
	}
	w.sleep(converging - time.Since(healed))
	for _, gw := range w.gateways() {
		for mod := range zipSizes {
			for _, t := range []string{"/@v/list", "/@latest", "/@v/" + versionOf(0) + ".zip", "/@v/" + versionOf(0) + ".info"} {
				if a := w.clients.get(gw, mustTarget(modulePath(mod)+t), how{}); (a.status != 200 || !a.whole) && !w.mayLack(a) {
					bad = append(bad, "after healing: "+w.book.describe(a)+fmt.Sprint(" ", a.err))
				}
			}
		}
	}
	return bad
}

// mayLack tells whether a no is a good answer, because of a purge.
func (w *World) mayLack(a answer) bool {
	w.book.mu.Lock()
	defer w.book.mu.Unlock()
	return a.whole && (a.status == 404 || a.status == 410) && w.book.maybePurged(a.target, a.start, a.end)
}

// place puts copies on ranks, as replication will: of what is held, all replicas mostly
// have it, else a single rank.
func (w *World) place(r *rand.Rand, share float64) {
	view := w.placement()
	for mod := range zipSizes {
		for version := range w.out.count(mod) {
			for _, region := range w.regions() {
				if r.Float64() >= share {
					continue
				}
				t := file(mod, version, ".info")
				ranks := view.Current().Ranks(region, ring.OfTarget(t))
				if len(ranks) == 0 {
					continue
				}
				holders := ranks[:min(len(ranks), w.spec.Replicas)]
				if r.IntN(4) == 0 {
					holders = ranks[r.IntN(len(ranks)):][:1]
				}
				for _, i := range holders {
					w.give(w.machines[view.Member(i).ID], mod, version)
				}
			}
		}
	}
}

// give stores a version on a machine.
func (w *World) give(m *machine, mod, version int) {
	w.t.Helper()
	for _, ext := range []string{".info", ".mod", ".zip"} {
		t := file(mod, version, ext)
		h1, err := hashOf(t.Module(), mod, ext)
		if err == nil {
			err = m.disk.put(t.String(), immutableContent(t, mod), h1)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// note writes into the diary.
func (w *World) note(format string, args ...any) {
	w.diary = append(w.diary, fmt.Sprintf("%7.1fs ", w.since().Seconds())+fmt.Sprintf(format, args...))
}
