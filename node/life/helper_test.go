package life_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/ringmod/ringmod/node/antientropy"
	"github.com/ringmod/ringmod/node/life"
	"github.com/ringmod/ringmod/node/member"
	"github.com/ringmod/ringmod/node/member/membertest"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// world is a cluster of memberships in one bubble, each with a life.
type world struct {
	t   *testing.T
	net *membertest.Network
	all map[string]*proc // of the test's goroutine

	byID sync.Map // of *proc, for those that call each other
}

// proc is a process: its data are what its copies say.
type proc struct {
	*member.Membership
	*life.Life

	w      *world
	copies *copies
	saved  *state
	end    func()
	done   chan struct{}
}

// inBubble runs f in virtual time and ends all that it started.
func inBubble(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: membertest.New(1), all: map[string]*proc{}}
		defer func() {
			for _, p := range w.all {
				p.end()
			}
			time.Sleep(time.Minute) // for the timers of memberlist
		}()
		f(w)
	})
}

// start runs node n at its address; all know the first.
func (w *world) start(n int, c *copies) *proc { return w.startSaved(n, c, &state{}) }

func (w *world) startSaved(n int, c *copies, saved *state) *proc {
	w.t.Helper()
	gossip := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 8083)
	transport, err := w.net.Listen(gossip)
	if err != nil {
		w.t.Fatal(err)
	}
	id := fmt.Sprintf("n%d", n)
	cfg := member.Config{
		Cluster: "test", Spec: ring.DefaultSpec(), Transport: transport, State: saved, Logger: slog.New(slog.DiscardHandler),
		Entry: ring.Member{ID: id, State: ring.Joining, Role: ring.Node, Region: "eu", Addr: id + ":8082"},
	}
	if n > 1 {
		cfg.Seeds = []string{"10.0.0.1:8083"}
	}
	p := &proc{w: w, copies: c, saved: saved, done: make(chan struct{})}
	if p.Membership, err = member.New(cfg); err != nil {
		w.t.Fatal(err)
	}
	c.view = p.Membership.View
	p.Life = life.New(life.Config{
		Membership: p.Membership, Conns: conns{w}, Copies: c, Streams: c.running, OnReady: c.ready,
	})
	ctx, cancel := context.WithCancel(w.t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = p.Membership.Run(ctx) })
	running.Go(func() {
		defer close(p.done)
		_ = p.Life.Run(ctx)
	})
	p.end = func() {
		cancel()
		running.Wait()
	}
	w.all[id] = p
	w.byID.Store(id, p)
	return p
}

// copies say what a test wants of a node's data.
type copies struct {
	view func() *ring.View

	mu      sync.Mutex
	known   bool
	missing int64 // of 1000 bytes
	left    int64
	streams int
	wakes   int
	told    []bool // whether the node is ready
}

func (c *copies) set(change func(c *copies)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c)
}

func (c *copies) Progress() (antientropy.Progress, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	parts := 0
	if c.missing > 0 {
		parts = ring.Partitions
	}
	return antientropy.Progress{Missing: c.missing, Total: 1000, Partitions: parts}, c.known
}

func (c *copies) Left() (objects, bytes int64, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left, 100 * c.left, c.known
}

func (c *copies) Wake() { c.set(func(c *copies) { c.wakes++ }) }

func (c *copies) running() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams
}

// ready is told whether the node is ready.
func (c *copies) ready(now bool) { c.set(func(c *copies) { c.told = append(c.told, now) }) }

// want checks what was told so far.
func (c *copies) want(t *testing.T, told ...bool) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.told, told) {
		t.Errorf("told to be ready: %v, want %v", c.told, told)
	}
}

func all() *copies { return &copies{known: true} }

// state keeps what a data folder would.
type state struct {
	mu    sync.Mutex
	saved member.Saved
}

func (s *state) Load() (member.Saved, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saved, nil
}

func (s *state) Save(saved member.Saved) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved = saved
	return nil
}

// conns answers GetView out of the other process.
type conns struct{ w *world }

func (c conns) Conn(id string) (grpc.ClientConnInterface, error) {
	if p, ok := c.w.byID.Load(id); ok {
		return conn{p: p.(*proc)}, nil
	}
	return nil, errors.New("unknown")
}

type conn struct {
	grpc.ClientConnInterface

	p *proc
}

func (c conn) Invoke(_ context.Context, method string, _, reply any, _ ...grpc.CallOption) error {
	if method != ringmodv1.ClusterService_GetView_FullMethodName {
		c.p.w.t.Errorf("call of %s", method)
	}
	proto.Merge(reply.(proto.Message), &ringmodv1.GetViewResponse{View: c.p.Snapshot()})
	return nil
}

// is waits until every process that runs sees the node in that state.
func (w *world) is(id string, want ring.State, limit time.Duration) time.Duration {
	w.t.Helper()
	start := time.Now()
	for {
		seen := 0
		for _, p := range w.all {
			for _, s := range p.Members() {
				if s.Entry.ID == id && s.Entry.State == want {
					seen++
				}
			}
		}
		if seen == len(w.all) {
			return time.Since(start)
		}
		if time.Since(start) > limit {
			w.t.Fatalf("%s is %s for %d of %d after %s", id, want, seen, len(w.all), limit)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
