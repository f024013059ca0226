package antientropy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/antientropy"
	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// modName is the name of a go.mod.
func modName(i int) string { return fmt.Sprintf("example.com/m%d/@v/v1.0.0.mod", i) }

func partition(t testing.TB, name string) ring.Partition {
	t.Helper()
	parsed, err := target.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return ring.OfTarget(parsed)
}

// world is a region of nodes that are nothing but stores and Comparers.
type world struct {
	t      *testing.T
	period time.Duration // of the nodes that are added from now on; 0 = the usual

	mu       sync.Mutex
	states   map[string]ring.State
	readOnly map[string]bool
	view     *ring.View
	changed  chan struct{}
	nodes    map[string]*node
	down     map[string]bool
	calls    map[string]int // of each method
}

// newWorld has nodes that are Active.
func newWorld(t *testing.T, ids ...string) *world {
	t.Helper()
	w := &world{t: t, states: map[string]ring.State{}, nodes: map[string]*node{}, down: map[string]bool{}, calls: map[string]int{}, changed: make(chan struct{})}
	for _, id := range ids {
		w.states[id] = ring.Active
	}
	w.place(nil)
	for _, id := range ids {
		w.add(id)
	}
	return w
}

// place changes states; 0 takes a node out.
func (w *world) place(states map[string]ring.State) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var table ring.Members
	for id, state := range states {
		if w.states[id] = state; state == 0 {
			delete(w.states, id)
		}
	}
	for id, state := range w.states {
		m := ring.Member{ID: id, Epoch: 1, State: state, Role: ring.Node, Region: "a", Weight: 1, Addr: id, Spec: ring.DefaultSpec().Hash(), ReadOnly: w.readOnly[id]}
		if _, err := table.Put(m); err != nil {
			w.t.Fatal(err)
		}
	}
	var err error
	if w.view, err = ring.NewView(ring.DefaultSpec(), &table); err != nil {
		w.t.Fatal(err)
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *world) currentView() *ring.View {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.view
}

func (w *world) changes() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *world) count(method string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls[method]
}

// node is one node of a world. It has room for so many objects, if that is not 0.
type node struct {
	*antientropy.Comparer
	*store.Mem

	w       *world
	id      string
	orphans *antientropy.Orphans
	server  node0 // what others see of it

	mu        sync.Mutex
	room      int
	evicted   map[string]time.Time
	used      map[string]time.Time
	pulled    []string // in order
	pulling   int
	refuses   bool            // Announce declines
	told      map[string]bool // what was announced
	fails     error
	conflicts []string
}

// node0 is the service of a node.
type node0 interface {
	Digests(ctx context.Context, req *ringmodv1.DigestsRequest) (*ringmodv1.DigestsResponse, error)
	Keys(req *ringmodv1.KeysRequest, stream grpc.ServerStreamingServer[ringmodv1.KeysResponse]) error
}

// add makes and runs a node.
func (w *world) add(id string) *node {
	w.t.Helper()
	n := &node{Mem: store.NewMem(), w: w, id: id, orphans: &antientropy.Orphans{}, evicted: map[string]time.Time{}, used: map[string]time.Time{}, told: map[string]bool{}}
	n.Place = antientropy.Place
	n.Comparer = antientropy.New(antientropy.Config{
		Self: id, Region: "a", Period: w.period, View: w.currentView, Changed: w.changes, Nodes: w, Store: n, Pulls: n, Orphans: n.orphans, Declines: n.declines,
		Logger: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
		OnConflict: func(t target.Target, _ string, _ *ringmodv1.Copy) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.conflicts = append(n.conflicts, t.String())
		},
	})
	n.server = n.Comparer
	w.set(func() { w.nodes[id] = n })
	return n
}

// run runs the Comparers of all nodes until the test ends.
func (w *world) run() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.nodes {
		w.start(n)
	}
}

func (w *world) start(n *node) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = n.Run(ctx)
	}()
	w.t.Cleanup(func() {
		cancel()
		<-done
	})
}

// put stores an object.
func (n *node) put(name, data string) {
	n.w.t.Helper()
	p, err := n.Create(name)
	if err == nil {
		_, err = io.WriteString(p, data)
	}
	if err == nil {
		_, err = p.Commit(store.Proof{})
	}
	if err != nil {
		n.w.t.Error(err)
	}
}

func (n *node) holds(name string) bool {
	_, err := n.Stat(name)
	return err == nil
}

// names returns what it holds, sorted.
func (n *node) names() []string {
	var names []string
	_ = n.Walk(context.Background(), "", func(e store.Entry) bool {
		names = append(names, e.Name)
		return true
	})
	return names
}

func (n *node) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

// taken returns what has been pulled since the last call.
func (n *node) taken() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	pulled := n.pulled
	n.pulled = nil
	return pulled
}

// Keys implements antientropy.Store.
func (n *node) Keys(ctx context.Context, p int, after store.Key, most int) ([]store.Key, error) {
	keys, err := n.Mem.Keys(ctx, p, after, most)
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, k := range keys {
		if used, ok := n.used[k.Name]; ok {
			keys[i].Used = used
		}
	}
	return keys, err
}

// HasRoom implements antientropy.Store.
func (n *node) HasRoom() bool {
	held := len(n.names())
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.room == 0 || held < n.room
}

// declines tells of what was evicted while the other node had it.
func (n *node) declines(t target.Target, theirs *ringmodv1.Copy) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	gone, ok := n.evicted[t.String()]
	return ok && theirs.GetStoredAge().AsDuration() >= time.Since(gone)
}

// evict removes an object for want of room.
func (n *node) evict(name string) {
	_ = n.Remove(name)
	n.set(func() { n.evicted[name] = time.Now() })
}

// Pull implements antientropy.Puller. It takes a millisecond.
func (n *node) Pull(ctx context.Context, t target.Target, sum [32]byte, holder string) (bool, error) {
	n.mu.Lock()
	n.pulling++
	most, err := n.pulling, n.fails
	n.mu.Unlock()
	defer n.set(func() { n.pulling-- })
	if most > 4 {
		n.w.t.Errorf("%d pulls at once", most)
	}
	time.Sleep(time.Millisecond)
	if err != nil {
		return false, err
	}
	if n.holds(t.String()) {
		n.mu.Lock()
		defer n.mu.Unlock()
		if !n.told[t.String()] {
			n.w.t.Errorf("%s is pulled by %s, which holds it", t, n.id)
		}
		return false, nil // it was announced meanwhile
	}
	err = n.fetch(ctx, t, sum, holder)
	return err == nil, err
}

func (n *node) fetch(ctx context.Context, t target.Target, sum [32]byte, holder string) error {
	n.w.mu.Lock()
	from := n.w.nodes[holder]
	n.w.mu.Unlock()
	obj, err := from.Open(ctx, t.String())
	if err != nil {
		return err
	}
	defer obj.File.Close()
	data, err := io.ReadAll(obj.File)
	if err != nil {
		return err
	}
	if obj.SHA256 != sum {
		return errors.New("other bytes")
	}
	n.put(t.String(), string(data))
	n.set(func() { n.pulled = append(n.pulled, t.String()) })
	return nil
}

// announce is what node/copies does: it pulls at once what it is told of.
func (n *node) announce(ctx context.Context, req *ringmodv1.AnnounceRequest) *ringmodv1.AnnounceResponse {
	resp := &ringmodv1.AnnounceResponse{ViewDigest: req.GetViewDigest(), ViewSeq: req.GetViewSeq()}
	n.mu.Lock()
	refuses := n.refuses
	n.mu.Unlock()
	for _, c := range req.GetCopies() {
		outcome := ringmodv1.Outcome_OUTCOME_WANTED
		t, err := target.Parse(c.GetTarget())
		switch {
		case err != nil || len(c.GetSha256()) != 32:
			n.w.t.Errorf("announced: %v", c)
		case refuses:
			outcome = ringmodv1.Outcome_OUTCOME_DECLINED
		case n.holds(t.String()):
			outcome = ringmodv1.Outcome_OUTCOME_HELD
		default:
			n.set(func() { n.told[t.String()] = true })
			_ = n.fetch(ctx, t, [32]byte(c.GetSha256()), req.GetHolder())
		}
		resp.Outcomes = append(resp.Outcomes, outcome)
	}
	return resp
}
