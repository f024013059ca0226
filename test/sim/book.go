package sim

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/member/membertest"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// answer is what a client got for one request.
type answer struct {
	gateway string
	boot    int // of the gateway
	target  target.Target
	cached  bool // the client forbade fetching
	left    bool // the client left before the end
	part    bool // the client wanted a part
	start   time.Time
	end     time.Time

	status   int    // of HTTP, 0 for none
	source   string // Cache-Status
	stale    bool
	age      time.Duration
	whole    bool     // the body came to its end
	wrong    string   // what is not right with a whole body
	astray   bool     // what came of a broken body is not how the object begins
	state    int      // of a mutable target: see state
	text     string   // of an answer that is no object
	held     holders  // at the start; at the end too
	versions []string // of a list
	err      error    // none came, or not to its end
}

// call is one request that a node's service took.
type call struct {
	node   string
	target string
	mode   ringmodv1.Mode
	hops   uint32 // that were left
	region string // of the caller
	at     time.Time
}

// epoch is how things were from one change to the next.
type epoch struct {
	at    time.Time
	alive map[string]int                // boot of what runs and is not frozen
	links map[[2]string]membertest.Kind // what passes from the first to the second
	out   map[string]bool               // who reaches upstream
	blind map[string]bool               // whose disk cannot be read
	away  map[string]bool               // for good
	full  map[string]bool               // whose disk takes nothing, or may have no room
	view  *ring.View                    // of who ought to be in
	moods [len(zipSizes)]mood
	// weight is how many more opinions about who coordinates the change may have
	// brought into the cluster.
	weight int
}

// book keeps what happened, for the checks.
type book struct {
	w *World

	mu        sync.Mutex // guards what follows
	answers   []answer
	calls     []call
	epochs    []epoch
	pulls     []pulled
	nodes     []*machine
	takedowns []*takedown
}

// pulled are bytes that one node has got from another in the background.
type pulled struct {
	by   string
	boot int
	n    int
	at   time.Time
}

func newBook(w *World) *book { return &book{w: w} }

func (b *book) answer(a answer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answers = append(b.answers, a)
}

func (b *book) call(c call) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, c)
}

// pull notes what was pulled; what comes at the same time is one.
func (b *book) pull(p pulled) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.pulls); n > 0 && b.pulls[n-1].by == p.by && b.pulls[n-1].boot == p.boot && b.pulls[n-1].at.Equal(p.at) {
		b.pulls[n-1].n += p.n
		return
	}
	b.pulls = append(b.pulls, p)
}

// holders tells where an object is now. What is mutable is nowhere.
func (b *book) holders(t target.Target) holders {
	h := holders{since: make(map[string]time.Time)}
	if !t.Kind.Immutable() {
		return h
	}
	b.mu.Lock()
	nodes := b.nodes
	b.mu.Unlock()
	for _, m := range nodes {
		at, held, lost := m.disk.heldSince(t.String())
		if h.lost += lost; held {
			h.since[m.id] = at
		}
	}
	return h
}

// observe begins an epoch, see epoch.weight.
func (b *book) observe(weight int) {
	e := b.w.look()
	e.weight = weight
	nodes := b.w.nodes("")
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nodes = nodes
	b.epochs = append(b.epochs, e)
}

// begin forgets how things came to be as they are.
func (b *book) begin() {
	e := b.w.look()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.epochs = []epoch{e}
}

// look tells how things are.
func (w *World) look() epoch {
	e := epoch{
		at: time.Now(), alive: make(map[string]int), links: make(map[[2]string]membertest.Kind), out: make(map[string]bool),
		blind: make(map[string]bool), full: make(map[string]bool), away: make(map[string]bool), view: w.placement(),
	}
	for i := range e.moods {
		e.moods[i] = w.out.moodOf(i)
	}
	upstream := membertest.Host(w.out.host)
	pass := func(a, b *machine) (passes membertest.Kind) {
		for _, kind := range []membertest.Kind{membertest.Packets, membertest.Streams} {
			if !w.net.Blocked(membertest.Host(a.host), membertest.Host(b.host), kind) {
				passes |= kind
			}
		}
		return passes
	}
	for _, a := range w.machines {
		e.away[a.id] = a.away || a.boots.Load() == 0
		if a.running == nil || a.frozen {
			continue
		}
		e.alive[a.id] = int(a.boots.Load())
		e.blind[a.id], e.full[a.id] = a.disk.noReads.Load(), a.disk.noWrites.Load() || a.disk.limit > 0
		here := membertest.Host(a.host)
		e.out[a.id] = !w.net.Blocked(here, upstream, membertest.Streams) && !w.net.Blocked(upstream, here, membertest.Streams)
		for _, b := range w.machines {
			e.links[[2]string{a.id, b.id}] = pass(a, b)
		}
	}
	return e
}

// placement is what all members place by once they agree: nodes that were ever started
// are in, in the state that they had last, until they have left or are forgotten.
func (w *World) placement() *ring.View {
	table := &ring.Members{}
	for _, m := range w.nodes("") {
		if m.boots.Load() == 0 || m.forgot || m.life().IsTombstone() {
			continue
		}
		_, err := table.Put(ring.Member{
			ID: m.id, Boot: "0000000000000001", Epoch: 1, State: m.life(), Role: m.role, Region: m.region, Zone: m.zone,
			Weight: 1, Addr: "10.0.0.1:1", Spec: w.spec.Hash(),
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	view, err := w.views.build(w.spec, table)
	if err != nil {
		w.t.Fatal(err)
	}
	return view
}

// during returns the epochs that overlap a time.
func (b *book) during(from, to time.Time) []epoch {
	for i, e := range slices.Backward(b.epochs) {
		if !e.at.After(from) {
			return until(b.epochs[i:], to)
		}
	}
	return until(b.epochs, to)
}

func until(epochs []epoch, to time.Time) []epoch {
	for i, e := range epochs {
		if e.at.After(to) {
			return epochs[:i]
		}
	}
	return epochs
}

// always tells whether something was so all the time.
func (b *book) always(from, to time.Time, so func(epoch) bool) bool {
	for _, e := range b.during(from, to) {
		if !so(e) {
			return false
		}
	}
	return true
}

// connected tells whether two members could talk, whoever began.
func (e epoch) connected(a, b string) bool { return e.linked(a, b, membertest.Streams) }

// close tells whether two members could talk, and gossip: without that they take each
// other for dead sooner or later, and ask each other only when nobody else is left.
func (e epoch) close(a, b string) bool { return e.linked(a, b, membertest.All) }

func (e epoch) linked(a, b string, by membertest.Kind) bool {
	both := e.links[[2]string{a, b}] & e.links[[2]string{b, a}]
	return e.up(a) && e.up(b) && (a == b || both&by == by)
}

func (e epoch) up(id string) bool { return e.alive[id] > 0 }

// ranks returns the ids of the ranks of a target in a region: those that are ranks both
// now and when whoever joins or leaves will have done so.
func (e epoch) ranks(region string, t target.Target) []string {
	return e.both(region, t, (*ring.Table).Ranks)
}

// replicas are those who should hold it, likewise.
func (e epoch) replicas(region string, t target.Target) []string {
	return e.both(region, t, (*ring.Table).Replicas)
}

func (e epoch) both(region string, t target.Target, of func(*ring.Table, string, ring.Partition) []ring.Index) []string {
	var all []string
	current := of(e.view.Current(), region, ring.OfTarget(t))
	for _, i := range of(e.view.Next(), region, ring.OfTarget(t)) {
		if slices.Contains(current, i) {
			all = append(all, e.view.Member(i).ID)
		}
	}
	return all
}

// region carries the region of the caller in the context of a fill.
type regionKey struct{}

func regionOf(ctx context.Context) string {
	c, _ := ctx.Value(regionKey{}).(*spied)
	if c == nil {
		return ""
	}
	return c.region
}

// listenIn is an interceptor that writes down what a node is asked.
func (p *process) listenIn(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	s := &spied{ServerStream: stream, process: p}
	return handler(srv, s)
}

type spied struct {
	grpc.ServerStream

	process *process
	region  string
}

func (s *spied) Context() context.Context {
	return context.WithValue(s.ServerStream.Context(), regionKey{}, s)
}

func (s *spied) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if small, ok := m.(*ringmodv1.GetSmallRequest); ok {
		m = small.GetGet()
	}
	if req, ok := m.(*ringmodv1.GetRequest); ok && err == nil {
		s.region = req.GetCallerRegion()
		s.process.w.book.call(call{
			node: s.process.m.id, target: req.GetTarget(), mode: req.GetMode(), hops: req.GetHops(), region: s.region, at: time.Now(),
		})
	}
	return err
}
