package sim

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/member"
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
	off     bool // without power
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
	memory   int64    // of a gateway, in bytes; 0 = what it takes by itself
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
	w := &World{
		t: t, net: net, out: newOutside(net, netip.AddrFrom4([4]byte{10, 9, 9, 9})), sums: sums,
		spec: spec, views: sharedViews, start: time.Now(), machines: make(map[string]*machine),
	}
	w.book = newBook(w)
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
		host: netip.AddrFrom4([4]byte{10, regionNumber(region), 0, number}),
		disk: newDisk(), saved: new(savedState), logs: new(logBuffer),
	}
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

// seeds returns where a process finds the others: the first two nodes.
func (w *World) seeds() []string {
	var all []string
	for _, m := range w.nodes("")[:min(2, len(w.nodes("")))] {
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
	m.running = p
	w.book.observe(1)
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
		var down []string
		for _, other := range live {
			if !p.member.Up(other.m.id) {
				down = append(down, other.m.id)
			}
		}
		if len(down) > 0 {
			return fmt.Sprintf("%s does not see %s", p.m.id, strings.Join(down, " "))
		}
		a, b := p.member.View(), live[0].member.View()
		if a.Digest() != b.Digest() {
			return fmt.Sprintf("%s places by %016x (%d), %s by %016x (%d)", p.m.id, a.Digest(), a.Seq(), live[0].m.id, b.Digest(), b.Seq())
		}
	}
	return ""
}

// converge waits until all see all and place alike, and returns how long it took.
func (w *World) converge(limit time.Duration) (time.Duration, error) {
	begin := time.Now()
	for {
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
	}
	return left
}

// savedState is a member.State in memory.
type savedState struct {
	mu    sync.Mutex
	saved member.Saved
}

// Load implements member.State.
func (s *savedState) Load() (member.Saved, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saved, nil
}

// Save implements member.State.
func (s *savedState) Save(saved member.Saved) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved = saved
	return nil
}

// logBuffer keeps what the processes of a machine log.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// logger returns a logger whose lines begin with the time since the start.
func (w *World) logger(m *machine) *slog.Logger {
	return slog.New(slog.NewTextHandler(m.logs, &slog.HandlerOptions{
		Level: slog.LevelInfo,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				return slog.String("t", fmt.Sprintf("%.3f", a.Value.Time().Sub(w.start).Seconds()))
			}
			return a
		},
	})).With("boot", m.boots.Load())
}

// views builds each view once for all processes of all worlds: they are pure
// functions of the members, and building them would take most of the time.
type views struct {
	mu    sync.Mutex
	known map[string]func() (*ring.View, error)
}

var sharedViews = &views{known: make(map[string]func() (*ring.View, error))} //nolint:gochecknoglobals // a memo of a pure function

// maxViews bounds the memo.
const maxViews = 512

// build is ring.NewView.
func (v *views) build(spec ring.Spec, table *ring.Members) (*ring.View, error) {
	key := fmt.Sprintf("%+v %d %+v", spec, table.Seq(), table.All())
	v.mu.Lock()
	if len(v.known) >= maxViews {
		clear(v.known)
	}
	once := v.known[key]
	if once == nil {
		once = sync.OnceValues(func() (*ring.View, error) { return ring.NewView(spec, table) })
		v.known[key] = once
	}
	v.mu.Unlock()
	return once()
}

// task is something that runs until its context is done.
type task func(ctx context.Context) error
