package sim

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/member/membertest"
	"github.com/ringmod/ringmod/ring"
)

// Ports of every host.
const (
	httpPort   = 8080
	grpcPort   = 8082
	gossipPort = 8083
)

// converging is how long a cluster may take until all see all, once nothing stands in
// the way (cluster.md 6, I5).
const converging = time.Minute

// machine is where a member runs, with what outlives its processes.
type machine struct {
	id, region, zone string
	role             ring.Role
	host             netip.Addr
	disk             *disk
	saved            *savedState
	logs             *logBuffer

	boots   atomic.Int64 // clients read it while it grows
	running *process     // nil while there is none
	frozen  bool
	off     bool       // without power
	away    bool       // for good: lost or left
	state   ring.State // as the node had it last, 0 before
	forgot  bool       // by the others
	by      int        // how many of these have forgotten it so far
	ended   []*process
}

// node reports whether the machine holds data.
func (m *machine) node() bool { return m.role == ring.Node }

// World is a cluster in virtual time. Its methods are for one goroutine, that of the
// test; what runs inside has locks of its own.
type World struct {
	t       *testing.T
	net     *membertest.Network
	out     *outside
	sums    *sums
	spec    ring.Spec
	views   *views
	book    *book
	start   time.Time
	clients *clients

	machines map[string]*machine
	order    []string // of machines: as they were added
	cuts     []cut
	dir      string   // of the disks
	memory   int64    // of a gateway, in bytes; 0 = what it takes by itself
	limit    int64    // of a disk, likewise none
	rate     int64    // of pulls, in bytes per second; 0 = what copies take by themselves
	diary    []string // what happened
	byHost   sync.Map // ids of machines by netip.Addr
}

// newWorld returns an empty world; it must be made in a bubble, and ended with end.
func newWorld(t *testing.T, seed uint64, spec ring.Spec) *World {
	t.Helper()
	net := membertest.New(seed)
	sums, err := newSums()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := scratch()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &World{
		t: t, net: net, out: newOutside(net, netip.AddrFrom4([4]byte{10, 9, 9, 9})), sums: sums,
		spec: spec, views: sharedViews, start: time.Now(), dir: dir, machines: make(map[string]*machine),
	}
	w.book = newBook(w)
	w.out.holders = w.book.holders
	w.clients = newClients(w)
	return w
}

// delays sets the time of one way inside a region and between regions.
func (w *World) delays(near, far time.Duration) {
	w.net.SetDelays(func(from, to netip.Addr) time.Duration {
		a, b := from.As4(), to.As4()
		if a[1] == b[1] {
			return near
		}
		return far
	})
}

// since returns the virtual time since the beginning.
func (w *World) since() time.Duration { return time.Since(w.start) }

// add makes a machine known. Its address tells its region, so that clients, who are
// in the network of their gateway, are as far away as it is.
func (w *World) add(id, region, zone string, role ring.Role) *machine {
	w.t.Helper()
	if w.machines[id] != nil {
		w.t.Fatalf("machine %s is there already", id)
	}
	number := byte(len(w.order) + 1)
	m := &machine{
		id: id, region: region, zone: zone, role: role,
		host:  netip.AddrFrom4([4]byte{10, regionNumber(region), 0, number}),
		saved: new(savedState), logs: new(logBuffer),
	}
	m.disk = newDisk(filepath.Join(w.dir, id))
	m.disk.limit = w.limit
	w.machines[id] = m
	w.byHost.Store(m.host, id)
	w.order = append(w.order, id)
	return m
}

// regionNumber is 1 for r1 and so on.
func regionNumber(region string) byte {
	var n byte
	if _, err := fmt.Sscanf(region, "r%d", &n); err != nil {
		panic(err)
	}
	return n
}

// each returns the machines of a role, in the order they were added.
func (w *World) each(role ring.Role) []*machine {
	var all []*machine
	for _, id := range w.order {
		if m := w.machines[id]; m.role == role {
			all = append(all, m)
		}
	}
	return all
}

// nodes returns the nodes of a region, of all regions for "".
func (w *World) nodes(region string) []*machine {
	return slices.DeleteFunc(w.each(ring.Node), func(m *machine) bool { return region != "" && m.region != region })
}

// gateways returns all gateways.
func (w *World) gateways() []*machine { return w.each(ring.Gateway) }

// regions returns the names of all regions, sorted.
func (w *World) regions() []string {
	var all []string
	for _, m := range w.machines {
		all = append(all, m.region)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// seeds returns where a process finds the others: the first two nodes. Who replaces an
// empty machine and knows nobody else any more is given two that are not gone for good, as
// a fellow that has moved as well could not find him either.
func (w *World) seeds(of *machine) []string {
	nodes := w.nodes("")
	if of.node() && of.boots.Load() > 1 && !of.saved.any() {
		nodes = slices.DeleteFunc(nodes, func(m *machine) bool { return m == of || m.away })
	}
	var all []string
	for _, m := range nodes[:min(2, len(nodes))] {
		all = append(all, netip.AddrPortFrom(m.host, gossipPort).String())
	}
	return all
}

// run starts a process on the machine.
func (w *World) run(m *machine) {
	w.t.Helper()
	if m.running != nil {
		w.t.Fatalf("%s runs already", m.id)
	}
	m.boots.Add(1)
	p, err := w.boot(m)
	if err != nil {
		w.t.Fatalf("starting %s: %v", m.id, err)
	}
	m.running, m.forgot, m.away = p, false, false
	w.book.observe(1)
}

// initial is how a node begins that its disk and the others know nothing of.
func (m *machine) initial() ring.State {
	if m.node() {
		return ring.Joining
	}
	return ring.Active
}

// life returns the state of a node as it has it now, or had last.
func (m *machine) life() ring.State {
	if p := m.running; p != nil && p.member != nil {
		m.state = p.member.Entry().State
	}
	return cmp.Or(m.state, ring.Active)
}

// watching is how often watch looks.
const watching = time.Second

// sleep passes time, and sees meanwhile how the states of the nodes change, and who
// has left.
func (w *World) sleep(d time.Duration) {
	for end := time.Now().Add(d); time.Until(end) > 0; w.watch() {
		time.Sleep(min(watching, time.Until(end)))
	}
}

func (w *World) watch() {
	changed := false
	for _, m := range w.nodes("") {
		was := m.state
		changed = m.life() != was && m.boots.Load() > 0 || changed
		if p := m.running; p != nil {
			select {
			case <-p.life.Gone():
				w.note("%s has left", m.id)
				m.away = true
				w.stop(m)
			default:
			}
		} else if m.away && !m.forgot {
			by := w.forgetters(m)
			changed = by != m.by || changed // placement has changed for some
			m.by, m.forgot = by, by == len(w.live())
		}
	}
	if changed {
		w.book.observe(1)
	}
}

// forgetters returns how many of the others have forgotten a machine.
func (w *World) forgetters(m *machine) (by int) {
	for _, p := range w.live() {
		if e, known := p.member.Member(m.id); !known || e.State.IsTombstone() {
			by++
		}
	}
	return by
}

// live returns the processes that run, frozen ones too.
func (w *World) live() []*process {
	var all []*process
	for _, id := range w.order {
		if p := w.machines[id].running; p != nil {
			all = append(all, p)
		}
	}
	return all
}

// disagreement tells what keeps the members from seeing and placing alike; "" for
// nothing.
func (w *World) disagreement() string {
	live := w.live()
	for _, p := range live {
		if p.m.life() == ring.Joining {
			return p.m.id + " is still joining"
		}
		var down []string
		for _, other := range live {
			if !p.member.Up(other.m.id) {
				down = append(down, other.m.id)
			}
		}
		if len(down) > 0 {
			return fmt.Sprintf("%s does not see %s", p.m.id, strings.Join(down, " "))
		}
		if id := p.behind(live); id != "" {
			return fmt.Sprintf("%s has not placed %s as it is", p.m.id, id)
		}
		a, b := p.member.View(), live[0].member.View()
		if a.Digest() != b.Digest() {
			return fmt.Sprintf("%s places by %016x (%d), %s by %016x (%d)", p.m.id, a.Digest(), a.Seq(), live[0].m.id, b.Digest(), b.Seq())
		}
	}
	return ""
}

// behind returns a node whose state is not what the view of p has: views are built a
// moment later.
func (p *process) behind(live []*process) string {
	view := p.member.View()
	for _, other := range live {
		if i, in := view.Find(other.m.id); other.m.node() && (!in || view.Member(i).State != other.m.life()) {
			return other.m.id
		}
	}
	return ""
}

// converge waits until all see all and place alike, and returns how long it took.
func (w *World) converge(limit time.Duration) (time.Duration, error) {
	begin := time.Now()
	for {
		w.watch()
		why := w.disagreement()
		if why == "" {
			return time.Since(begin), nil
		}
		if time.Since(begin) > limit {
			return 0, fmt.Errorf("no one view within %s: %s", limit, why)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// end kills everything and waits until nothing is left, which is for the bubble to
// see. It returns what was left open.
func (w *World) end() []string {
	w.clients.end()
	for _, id := range w.order {
		w.thaw(w.machines[id])
	}
	for _, p := range w.live() {
		w.kill(p.m)
	}
	time.Sleep(2 * time.Minute) // for timers, of memberlist above all
	var left []string
	for _, id := range w.order {
		for _, p := range w.machines[id].ended {
			<-p.done
			left = append(left, p.leaks()...)
		}
		left = append(left, w.machines[id].disk.over...)
	}
	return left
}
