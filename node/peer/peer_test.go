package peer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/peer"
	"github.com/ringmod/ringmod/ring"
)

const (
	zipName  = "example.com/m/@v/v1.0.0.zip"
	listName = "example.com/m/@v/list"
)

func parse(t testing.TB, name string) target.Target {
	t.Helper()
	parsed, err := target.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// member returns an entry; the id begins with its region and a dash.
func member(id string, state ring.State) ring.Member {
	region, _, _ := strings.Cut(id, "-")
	return ring.Member{
		ID: id, Epoch: 1, State: state, Role: ring.Node, Region: region, Weight: 1, Addr: id, Spec: ring.DefaultSpec().Hash(),
	}
}

func viewOf(t testing.TB, members ...ring.Member) *ring.View {
	t.Helper()
	var table ring.Members
	for _, m := range members {
		if _, err := table.Put(m); err != nil {
			t.Fatal(err)
		}
	}
	view, err := ring.NewView(ring.DefaultSpec(), &table)
	if err != nil {
		t.Fatal(err)
	}
	return view
}

// fakeNodes answer as a test says. They check how they are asked, and that what
// they gave is closed.
type fakeNodes struct {
	t      *testing.T
	answer func(ctx context.Context, id string) (*cache.Object, error)

	mu    sync.Mutex
	down  []string
	asked []string
	open  int
}

func newNodes(t *testing.T) *fakeNodes {
	t.Helper()
	f := &fakeNodes{t: t}
	t.Cleanup(func() {
		if f.open != 0 {
			t.Errorf("%d bodies were not closed", f.open)
		}
	})
	return f
}

func (f *fakeNodes) Usable(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !slices.Contains(f.down, id)
}

func (f *fakeNodes) Answers(context.Context, string) bool { return true }

func (f *fakeNodes) setDown(ids ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = ids
}

func (f *fakeNodes) Get(ctx context.Context, id string, req cache.Request, o wire.Options) (*cache.Object, error) {
	f.mu.Lock()
	f.asked = append(f.asked, id)
	f.mu.Unlock()
	limit := 500 * time.Millisecond
	if !strings.HasPrefix(id, "a-") { // all tests ask from region a
		limit = 2 * time.Second
	}
	if req.Mode != cache.Peek || req.Hops != 1 || o.First != limit {
		f.t.Errorf("%s is asked %+v with a limit of %v", id, req, o.First)
	}
	obj, err := f.answer(ctx, id)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open++
	obj.Body = &counted{obj.Body, ctx, f}
	return obj, nil
}

// counted fails when its call was given up, as a stream does.
type counted struct {
	io.ReadCloser

	ctx   context.Context //nolint:containedctx // of the call
	nodes *fakeNodes
}

func (c *counted) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.ReadCloser.Read(p)
}

func (c *counted) Close() error {
	c.nodes.mu.Lock()
	defer c.nodes.mu.Unlock()
	c.nodes.open--
	return c.ReadCloser.Close()
}

func object(data string, age time.Duration) *cache.Object {
	return &cache.Object{Size: int64(len(data)), SHA256: [32]byte{1}, Age: age, Body: io.NopCloser(bytes.NewReader([]byte(data)))}
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Who cannot store what it fills comes last, though it be the first rank.
func TestFullCoordinators(t *testing.T) {
	t.Parallel()
	name := parse(t, zipName)
	order := func(full int) (ranks []string, got []node.Coordinator) {
		var members []ring.Member
		for i := range 4 {
			m := member([]string{"a-1", "a-2", "a-3", "a-4"}[i], ring.Active)
			members = append(members, m)
		}
		table := viewOf(t, members...).Next()
		for _, i := range table.Ranks("a", ring.OfTarget(name)) {
			ranks = append(ranks, table.Member(i).ID)
		}
		for i := range members {
			members[i].ReadOnly = slices.Index(ranks, members[i].ID) < full
		}
		view := viewOf(t, members...)
		p := peer.New(peer.Config{Self: ranks[0], Region: "a", View: func() *ring.View { return view }, Nodes: newNodes(t)})
		return ranks, p.Coordinators(name)
	}
	for full, want := range [][]int{{0, 1}, {1, 2}, {2, 3}, {3, 0}, {0, 1}} {
		ranks, got := order(full)
		if len(got) != 2 || got[0].ID != ranks[want[0]] || got[1].ID != ranks[want[1]] || got[0].Self != (want[0] == 0) {
			t.Errorf("%d of %q are full: %v, want ranks %v", full, ranks, got, want)
		}
	}
}

func TestCoordinators(t *testing.T) {
	t.Parallel()
	view := viewOf(t, member("a-1", ring.Active), member("a-2", ring.Active), member("a-3", ring.Active), member("a-4", ring.Active),
		member("b-1", ring.Active), member("b-2", ring.Active), member("c-1", ring.Active), member("c-2", ring.Leaving), member("c-3", ring.Joining))
	nodes := newNodes(t)
	name := parse(t, zipName)
	partition := ring.OfTarget(name)
	homes := view.Next().Homes(partition)
	ranks := map[string][]string{}
	for _, region := range homes {
		for _, i := range view.Next().Ranks(region, partition) {
			if m := view.Member(i); m.State == ring.Active {
				ranks[region] = append(ranks[region], m.ID)
			}
		}
	}
	coordinators := func(self string, down ...string) []node.Coordinator {
		nodes.down = down
		region, _, _ := strings.Cut(self, "-")
		p := peer.New(peer.Config{Self: self, Region: region, View: func() *ring.View { return view }, Nodes: nodes})
		return p.Coordinators(name)
	}
	for self := range slices.Values([]string{"a-1", "b-2", "c-1", "c-2", "c-3", "x-1"}) {
		var want []node.Coordinator
		for _, region := range homes {
			for _, id := range ranks[region][:min(2, len(ranks[region]))] {
				want = append(want, node.Coordinator{ID: id, Self: id == self, Far: region != self[:1]})
			}
		}
		if got := coordinators(self); !slices.Equal(got, want[:4]) {
			t.Errorf("seen by %s: %v, want %v", self, got, want[:4])
		}
	}
	first := ranks[homes[0]]
	if len(first) > 2 {
		got := coordinators("x-1", first[0])
		if got[0].ID != first[1] || got[1].ID != first[2] {
			t.Errorf("without %s: %v, want %s and %s first", first[0], got, first[1], first[2])
		}
	}
	if got := coordinators("x-1", first...); got[0].ID != ranks[homes[1]][0] {
		t.Errorf("without %v: %v, want %s first", first, got, ranks[homes[1]][0])
	}
	if got := coordinators(first[0], first[0]); !got[0].Self {
		t.Errorf("a node is away for itself: %v", got)
	}
	none := peer.New(peer.Config{Self: "a-1", Region: "a", View: func() *ring.View { return nil }, Nodes: nodes})
	if got := none.Coordinators(name); got != nil {
		t.Errorf("without a view: %v", got)
	}
	if _, err := none.Peek(t.Context(), name); cache.ReasonOf(err) != cache.NotCached {
		t.Errorf("without a view: %v, want NotCached", err)
	}
}

func TestPeek(t *testing.T) {
	t.Parallel()
	absent := &cache.Error{Reason: cache.NotCached}
	silent := &wire.PeerError{Code: codes.Unavailable, Err: wire.ErrSilent}
	type says struct {
		after time.Duration
		obj   *cache.Object
		err   error
	}
	for _, test := range []struct {
		name, target string
		says         map[string]says
		want         string // "" is an error
		took         time.Duration
	}{
		{"nobody", zipName, map[string]says{"a-2": {0, nil, absent}, "a-3": {0, nil, absent}, "a-4": {0, nil, absent}}, "", 0},
		{"nobody, one silent", zipName, map[string]says{"a-2": {0, nil, absent}, "a-3": {500 * time.Millisecond, nil, silent}, "a-4": {0, nil, absent}}, "", 500 * time.Millisecond},
		{"the first", zipName, map[string]says{"a-2": {50 * time.Millisecond, object("x", 0), nil}, "a-3": {20 * time.Millisecond, object("y", 0), nil}, "a-4": {time.Minute, object("z", 0), nil}}, "y", 20 * time.Millisecond},
		{"all at once", zipName, map[string]says{"a-2": {0, object("x", 0), nil}, "a-3": {0, object("x", 0), nil}, "a-4": {0, object("x", 0), nil}}, "x", 0},
		{"a spare rank", zipName, map[string]says{"a-2": {0, nil, absent}, "a-3": {0, nil, silent}, "a-4": {0, object("z", 0), nil}}, "z", 0},
		{"the youngest list", listName, map[string]says{"a-2": {10 * time.Millisecond, object("x", time.Hour), nil}, "a-3": {20 * time.Millisecond, object("y", time.Minute), nil}, "a-4": {time.Millisecond, object("z", 2*time.Minute), nil}}, "y", 20 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				nodes := newNodes(t)
				nodes.down = []string{"a-5"}
				nodes.answer = func(ctx context.Context, id string) (*cache.Object, error) {
					s := test.says[id]
					if err := wait(ctx, s.after); err != nil {
						return nil, err
					}
					return s.obj, s.err
				}
				view := viewOf(t, member("a-1", ring.Active), member("a-2", ring.Active), member("a-3", ring.Leaving), member("a-4", ring.Joining),
					member("a-5", ring.Active), member("b-1", ring.Active))
				p := peer.New(peer.Config{Self: "a-1", Region: "a", View: func() *ring.View { return view }, Nodes: nodes})
				start := time.Now()
				obj, err := p.Peek(t.Context(), parse(t, test.target))
				if d := time.Since(start); d != test.took {
					t.Errorf("took %v, want %v", d, test.took)
				}
				slices.Sort(nodes.asked)
				if want := []string{"a-2", "a-3", "a-4"}; !slices.Equal(nodes.asked, want) {
					t.Errorf("asked %v, want %v", nodes.asked, want)
				}
				if test.want == "" {
					if e, ok := errors.AsType[*cache.Error](err); !ok || e.Reason != cache.NotCached {
						t.Errorf("got %v, %v, want NotCached", obj, err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(obj.Body)
				if err != nil || string(got) != test.want {
					t.Errorf("got %q, %v, want %q", got, err, test.want)
				}
				obj.Body.Close()
			})
		})
	}
}

// TestPeekAtRegionThatIsBack has a region come back that may have filled by itself
// meanwhile.
func TestPeekAtRegionThatIsBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes := newNodes(t)
		nodes.answer = func(context.Context, string) (*cache.Object, error) {
			return nil, &cache.Error{Reason: cache.NotCached}
		}
		view := viewOf(t, member("a-1", ring.Active), member("a-2", ring.Active), member("b-1", ring.Active), member("c-1", ring.Active), member("c-2", ring.Active))
		p := peer.New(peer.Config{Self: "a-1", Region: "a", View: func() *ring.View { return view }, Nodes: nodes})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		asks := func(when string, want ...string) {
			t.Helper()
			nodes.asked = nil
			if _, err := p.Peek(ctx, parse(t, zipName)); cache.ReasonOf(err) != cache.NotCached {
				t.Errorf("%s: %v, want NotCached", when, err)
			}
			slices.Sort(nodes.asked)
			if !slices.Equal(nodes.asked, want) {
				t.Errorf("%s: asked %v, want %v", when, nodes.asked, want)
			}
		}
		asks("at first", "a-2")
		nodes.setDown("b-1", "c-1") // c has another node
		time.Sleep(2 * time.Second)
		asks("while b is away", "a-2")
		nodes.setDown()
		asks("when b is back", "a-2", "b-1")
		time.Sleep(29 * time.Minute)
		asks("29 min later", "a-2", "b-1")
		time.Sleep(2 * time.Minute)
		asks("31 min later", "a-2")
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run ended with %v", err)
		}
	})
}

// A panic over what one node sends is that node's answer; the others count.
func TestPeekOutlivesABadAnswer(t *testing.T) {
	t.Parallel()
	nodes := newNodes(t)
	nodes.answer = func(_ context.Context, id string) (*cache.Object, error) {
		if id == "a-2" {
			panic("nobody has thought of this")
		}
		return object("x", 0), nil
	}
	view := viewOf(t, member("a-1", ring.Active), member("a-2", ring.Active), member("a-3", ring.Active))
	p := peer.New(peer.Config{Self: "a-1", Region: "a", View: func() *ring.View { return view }, Nodes: nodes})
	obj, err := p.Peek(t.Context(), parse(t, listName))
	if err != nil {
		t.Fatal(err)
	}
	obj.Body.Close()
}
