package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/ringmod/ringmod/node/member/membertest"
	"github.com/ringmod/ringmod/ring"
)

// plan is all that a seed decides about a run.
type plan struct {
	seed      uint64
	members   []planned
	replicas  int
	near, far time.Duration // one way
	memory    int64         // of a gateway, in bytes
	limit     int64         // of each disk, in bytes; 0 = none
	pulls     int64         // bytes per second that a node may pull; 0 = as ever
	patient   bool          // nobody says that lost nodes do not come back
	held      float64       // how much is held in the beginning
	published []int         // versions of each module in the beginning
	rate      float64       // requests per second and gateway
	length    time.Duration // until everything heals
	loss      float64       // of packets
	acts      []act
}

// planned is a member of the beginning.
type planned struct {
	id, region, zone string
	role             ring.Role
}

// act is something that happens at its time after the cluster has found itself.
type act struct {
	at   time.Duration
	text string
	do   func(w *World)
}

// String prints a plan to be read by people.
func (p *plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: replicas %d, %s near and %s far, gateway memory %d KiB, %.0f %% held, %.1f requests/s per gateway, versions %v, %.0f %% loss\n",
		p.seed, p.replicas, p.near, p.far, p.memory>>10, p.held*100, p.rate, p.published, p.loss*100)
	fmt.Fprintf(&b, "  disks of %d KiB, pulls of %d KiB/s, patient %v\n", p.limit>>10, p.pulls>>10, p.patient)
	for _, m := range p.members {
		fmt.Fprintf(&b, "  %s %s %s %s\n", m.role, m.id, m.region, m.zone)
	}
	for _, a := range p.acts {
		fmt.Fprintf(&b, "  %6.1fs %s\n", a.at.Seconds(), a.text)
	}
	fmt.Fprintf(&b, "  %6.1fs heal\n", p.length.Seconds())
	return b.String()
}

// shapes are nodes and gateways per region that a plan may have.
var shapes = [][][2]int{ //nolint:gochecknoglobals // never written
	{{3, 1}},
	{{3, 2}},
	{{4, 2}},
	{{5, 1}},
	{{6, 2}},
	{{1, 1}, {2, 1}},
	{{2, 1}, {2, 1}},
	{{3, 1}, {2, 1}},
	{{3, 1}, {3, 1}},
	{{1, 1}, {1, 1}, {1, 1}},
	{{2, 1}, {2, 1}, {1, 1}},
}

// draw decides what happens under a seed.
func draw(seed uint64) *plan {
	r := rand.New(rand.NewPCG(seed, 0x72696e676d6f64))
	p := &plan{
		seed: seed, replicas: 1 + (1+r.IntN(4))/2,
		near: time.Duration(1+r.IntN(10)) * 100 * time.Microsecond, far: time.Duration(10+r.IntN(70)) * time.Millisecond,
		memory: []int64{64 << 20, 96 << 10}[r.IntN(2)], held: float64(r.IntN(4)) / 3,
		rate: 0.5 + 3*r.Float64(), length: time.Duration(60+r.IntN(60)) * time.Second,
	}
	for range zipSizes {
		p.published = append(p.published, 1+r.IntN(3))
	}
	zones := r.IntN(2) == 0
	shape := shapes[r.IntN(len(shapes))]
	for i, size := range shape {
		for n := range size[0] + size[1] {
			p.enlist(i, n >= size[0], zones)
		}
	}
	d := &drawer{Rand: r, plan: p}
	for range r.IntN(6) {
		d.fault()
	}
	for range r.IntN(4) {
		d.life()
	}
	// What came later: see regressions.
	for range r.IntN(3) {
		d.crowd()
	}
	for range max(0, r.IntN(4)-2) {
		d.move()
	}
	if r.IntN(5) == 0 {
		p.loss = 0.2 * r.Float64()
	}
	for range max(0, r.IntN(8)-4) {
		d.fault()
	}
	d.upkeep()
	slices.SortStableFunc(p.acts, func(a, b act) int { return int(a.at - b.at) })
	return p
}

// enlist adds a member of the region with that number.
func (p *plan) enlist(region int, gateway, zones bool) planned {
	m := planned{id: "n", role: ring.Node, region: fmt.Sprintf("r%d", region+1)}
	if gateway {
		m.id, m.role = "g", ring.Gateway
	}
	m.id += fmt.Sprint(len(p.of(m.role, "")) + 1)
	if zones {
		m.zone = []string{"a", "b"}[len(p.members)%2]
	}
	p.members = append(p.members, m)
	return m
}

// of returns the ids of the members of a role and region, "" for all.
func (p *plan) of(role ring.Role, region string) []string {
	var all []string
	for _, m := range p.members {
		if m.role == role && (region == "" || m.region == region) {
			all = append(all, m.id)
		}
	}
	return all
}

func (p *plan) regions() []string {
	var all []string
	for _, m := range p.members {
		all = append(all, m.region)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// everybody returns the ids of all members.
func (p *plan) everybody() []string { return append(p.of(ring.Node, ""), p.of(ring.Gateway, "")...) }

// drawer draws acts.
type drawer struct {
	*rand.Rand

	plan   *plan
	gone   []planned // for good
	purged []*takedown
}

func (d *drawer) add(at time.Duration, text string, do func(w *World)) {
	d.plan.acts = append(d.plan.acts, act{at, text, do})
}

func (d *drawer) when() time.Duration {
	return time.Duration(d.Int64N(int64(d.plan.length))).Truncate(100 * time.Millisecond)
}

// span draws a time of that many seconds, short ones more often.
func (d *drawer) span(least, most float64) time.Duration {
	f := d.Float64()
	return time.Duration((least + (most-least)*f*f) * float64(time.Second)).Truncate(100 * time.Millisecond)
}

func pick[T any](d *drawer, all []T) T { return all[d.IntN(len(all))] }

// fault draws something bad.
func (d *drawer) fault() {
	switch d.IntN(10) {
	case 0, 1:
		d.death("kill", (*World).kill)
	case 2:
		d.death("cut the power of", (*World).crash)
	case 3:
		d.death("stop", (*World).stop)
	case 4, 5:
		d.ice()
	default:
		d.split()
	}
}

// life draws something that is no fault of ours.
func (d *drawer) life() {
	switch d.IntN(4) {
	case 0:
		d.join()
	case 1, 2:
		d.weather()
	default:
		d.publish()
	}
}

// death ends a process, which begins again a while later.
func (d *drawer) death(text string, end func(*World, *machine)) {
	id, at := pick(d, d.plan.everybody()), d.when()
	d.add(at, text+" "+id, func(w *World) {
		if m := w.machines[id]; m.running != nil {
			end(w, m)
		}
	})
	d.start(at+d.span(0.5, 60), id)
}

func (d *drawer) ice() {
	id, at := pick(d, d.plan.everybody()), d.when()
	d.add(at, "freeze "+id, func(w *World) { w.freeze(w.machines[id]) })
	d.add(at+d.span(1, 60), "thaw "+id, func(w *World) { w.thaw(w.machines[id]) })
}

// split draws a cut.
func (d *drawer) split() {
	c := struct {
		from, to       []string
		both, upstream bool
		kind           membertest.Kind
	}{both: d.IntN(3) > 0, kind: pick(d, []membertest.Kind{membertest.All, membertest.All, membertest.Packets, membertest.Streams})}
	everybody := d.plan.everybody()
	switch d.IntN(5) {
	case 0:
		c.from = []string{pick(d, everybody)}
	case 1:
		region := pick(d, d.plan.regions())
		c.from = append(d.plan.of(ring.Node, region), d.plan.of(ring.Gateway, region)...)
		if len(c.from) == len(everybody) {
			c.from = c.from[:1]
		}
	case 2:
		d.Shuffle(len(everybody), func(i, j int) { everybody[i], everybody[j] = everybody[j], everybody[i] })
		c.from = everybody[:len(everybody)/2]
	case 3:
		pair := d.Perm(len(everybody))
		c.from, c.to = []string{everybody[pair[0]]}, []string{everybody[pair[1]]}
	case 4:
		c.from, c.upstream, c.kind, c.both = []string{pick(d, d.plan.of(ring.Node, ""))}, true, membertest.All, true
		if d.IntN(2) == 0 {
			c.from = everybody
		}
	}
	if c.to == nil {
		c.to = slices.DeleteFunc(d.plan.everybody(), func(id string) bool { return slices.Contains(c.from, id) })
	}
	cutOf := func(w *World) cut {
		return cut{from: w.named(c.from), to: w.named(c.to), both: c.both, upstream: c.upstream, kind: c.kind}
	}
	text := cut{from: named(c.from), to: named(c.to), both: c.both, upstream: c.upstream, kind: c.kind}.String()
	at := d.when()
	d.add(at, "cut "+text, func(w *World) { w.sever(cutOf(w)) })
	d.add(at+d.span(0.5, 90), "mend "+text, func(w *World) { w.mend(cutOf(w)) })
}

// named returns nameless machines with these ids, to be printed.
func named(ids []string) []*machine {
	var all []*machine
	for _, id := range ids {
		all = append(all, &machine{id: id})
	}
	return all
}

// named returns the machines with these ids.
func (w *World) named(ids []string) []*machine {
	var all []*machine
	for _, id := range ids {
		all = append(all, w.machines[id])
	}
	return all
}

// join draws a node that comes later.
func (d *drawer) join() {
	var number int
	region := pick(d, d.plan.regions())
	if _, err := fmt.Sscanf(region, "r%d", &number); err != nil {
		panic(err)
	}
	id := fmt.Sprintf("x%d", len(d.plan.acts))
	d.add(d.when(), "join "+id+" to "+region, func(w *World) { w.run(w.add(id, region, "", ring.Node)) })
}

// weather draws a mood of upstream.
func (d *drawer) weather() {
	mod, at := d.IntN(len(zipSizes)+2)-2, d.when()
	m := mood(1 + d.IntN(len(moodNames)-1))
	what := "all modules"
	if mod >= 0 {
		what = modulePath(mod)
	}
	d.add(at, fmt.Sprintf("upstream: %s for %s", m, what), func(w *World) { w.setMood(max(mod, -1), m) })
	d.add(at+d.span(2, 60), "upstream: ok for "+what, func(w *World) { w.setMood(max(mod, -1), moodOK) })
}

// crowd draws many who want the same at once, which mostly nobody has.
func (d *drawer) crowd() {
	mod, n := d.IntN(len(zipSizes)), 2+d.IntN(20)
	ext := pick(d, []string{".info", ".mod", ".zip", ".zip"})
	d.add(d.when(), fmt.Sprintf("%d clients of each gateway ask for the %s of a new version of %s", n, ext, modulePath(mod)), func(w *World) {
		if w.out.count(mod) < maxVersions {
			w.out.publish(mod)
		}
		t := file(mod, w.out.count(mod)-1, ext)
		for range n {
			for _, gw := range w.gateways() {
				w.clients.running.Go(func() { w.clients.get(gw, t, how{}) })
			}
		}
	})
}

// move draws a node that dies and begins again on another address.
func (d *drawer) move() {
	id, at := pick(d, d.plan.of(ring.Node, "")), d.when()
	d.add(at, "kill "+id, func(w *World) {
		if m := w.machines[id]; m.running != nil {
			w.kill(m)
		}
	})
	d.add(at+d.span(0.5, 30), "start "+id+" on another address", func(w *World) {
		if m := w.machines[id]; m.running == nil && !m.away {
			w.move(m)
			w.restart(m)
		}
	})
}

func (d *drawer) publish() {
	mod := d.IntN(len(zipSizes))
	d.add(d.when(), "publish a version of "+modulePath(mod), func(w *World) {
		if w.out.count(mod) < maxVersions {
			w.out.publish(mod)
		}
	})
}
