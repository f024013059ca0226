package cluster_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

const (
	zipName  = "example.com/m/@v/v1.0.0.zip"
	modName  = "example.com/m/@v/v1.0.0.mod"
	listName = "example.com/m/@v/list"
)

func mustParse(t testing.TB, name string) target.Target {
	t.Helper()
	parsed, err := target.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// ranksOf returns the ids of those that may hold name in region eu.
func ranksOf(t testing.TB, v *ring.View, name string) []string {
	t.Helper()
	var ids []string
	for _, i := range v.Current().Ranks("eu", ring.OfTarget(mustParse(t, name))) {
		ids = append(ids, v.Member(i).ID)
	}
	return ids
}

// pattern returns n bytes that differ from place to place.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8*13 + i>>16)
	}
	return b
}

// asked is one call of Peers.Get as a test sees it.
type asked struct {
	id     string
	mode   cache.Mode
	offset int64 // of Resume
}

func (a asked) String() string {
	mode := map[cache.Mode]string{cache.AllowFill: "fill", cache.OnlyIfCached: "cached"}[a.mode]
	if a.offset > 0 {
		return fmt.Sprintf("%s %s@%d", a.id, mode, a.offset)
	}
	return a.id + " " + mode
}

// fakeNode is one node. Tests set it up before it is asked, or under fakeNodes.mu.
type fakeNode struct {
	member ring.Member
	down   bool // not usable
	stats  peers.Stats
	holds  map[string][]byte // copies on its disk

	fails   error         // what every call ends with
	says    error         // what a call with leave to fill ends with, where nothing is held
	caches  error         // what a call without it ends with
	silent  bool          // nothing comes, ever
	delay   time.Duration // before the answer
	age     time.Duration // of what it holds
	undated bool          // what it holds was put together and has no age
	// breakAt ends the bodies of this node, once each has yielded that many bytes
	// of the object, with broken; 0 = never.
	breakAt int64
	yields  int64 // the same, of a single body
	broken  error
	steps   time.Duration // between two pieces of a body
	unsized bool          // what it fills has no size yet
	fanout  uint32        // over how many ranks it says to spread what it holds
}

// fakeNodes is a cluster that keeps its callers to the rules: it answers what
// nodes would, and never lets two of them fill one object for one question.
type fakeNodes struct {
	t testing.TB
	v *ring.View

	mu       sync.Mutex
	nodes    map[string]*fakeNode
	upstream map[string][]byte
	calls    []asked
	narrow   int            // calls for what may be read slowly
	filling  map[string]int // calls with leave to fill that run, by target
	most     int            // of them that may at a time
	open     int            // bodies that are not closed
	spreads  map[string]int // what nodes were told of the spread of what they were asked for, the last time
	fetched  int            // times that upstream was asked
}

// newNodes makes nodes named by "region/zone/id"; zone may be empty.
func newNodes(t testing.TB, names ...string) *fakeNodes {
	t.Helper()
	var members []ring.Member
	for _, name := range names {
		parts := strings.Split(name, "/")
		members = append(members, ring.Member{
			ID: parts[2], Region: parts[0], Zone: parts[1], State: ring.Active, Role: ring.Node, Weight: 1, Addr: parts[2] + ":1",
		})
	}
	return newNodesOf(t, members...)
}

func newNodesOf(t testing.TB, members ...ring.Member) *fakeNodes {
	t.Helper()
	f := &fakeNodes{t: t, nodes: map[string]*fakeNode{}, upstream: map[string][]byte{}, filling: map[string]int{}, most: 1, spreads: map[string]int{}}
	f.v = viewOf(t, members...)
	for _, m := range members {
		f.nodes[m.ID] = &fakeNode{member: m, holds: map[string][]byte{}}
	}
	t.Cleanup(func() {
		for range 1000 {
			if f.opened() == 0 {
				return
			}
			time.Sleep(time.Millisecond)
		}
		t.Errorf("%d bodies were not closed", f.opened())
	})
	return f
}

// views are those built already: building one takes longer than most tests.
var views sync.Map

func viewOf(t testing.TB, members ...ring.Member) *ring.View {
	t.Helper()
	if v, ok := views.Load(fmt.Sprint(members)); ok {
		return v.(*ring.View)
	}
	spec := ring.DefaultSpec()
	var table ring.Members
	key := fmt.Sprint(members)
	for _, m := range members {
		m.Epoch, m.Spec = table.NextEpoch(), spec.Hash()
		if _, err := table.Put(m); err != nil {
			t.Fatal(err)
		}
	}
	v, err := ring.NewView(spec, &table)
	if err != nil {
		t.Fatal(err)
	}
	views.Store(key, v)
	return v
}

func (f *fakeNodes) View() *ring.View { return f.v }

// ranks returns the ids of those that may hold name in our region.
func (f *fakeNodes) ranks(name string) []string { return ranksOf(f.t, f.v, name) }

func (f *fakeNodes) Usable(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nodes[id] != nil && !f.nodes[id].down
}

func (f *fakeNodes) Answers(ctx context.Context, id string) bool {
	f.mu.Lock()
	n := *f.nodes[id]
	f.mu.Unlock()
	if n.silent {
		select {
		case <-time.After(wire.Silence / 2):
		case <-ctx.Done():
		}
	}
	return !n.silent && !n.down
}

func (f *fakeNodes) Stats(id string) peers.Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nodes[id].stats
}

// opened returns how many bodies are not closed.
func (f *fakeNodes) opened() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open
}

// change sets up a node while it is being asked.
func (f *fakeNodes) change(id string, apply func(*fakeNode)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	apply(f.nodes[id])
}

// asked returns the calls so far and forgets them.
func (f *fakeNodes) asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var calls []string
	for _, a := range f.calls {
		calls = append(calls, a.String())
	}
	f.calls = nil
	return calls
}

func (f *fakeNodes) Get(ctx context.Context, id string, req cache.Request, o wire.Options) (*cache.Object, error) {
	name := req.Target.String()
	f.mu.Lock()
	n, ok := f.nodes[id]
	if !ok {
		f.mu.Unlock()
		return nil, &wire.PeerError{Node: id, Code: codes.Unavailable, Err: peers.ErrUnknown}
	}
	a := asked{id: id, mode: req.Mode}
	if o.Resume != nil {
		a.offset = o.Resume.Offset
	}
	f.calls = append(f.calls, a)
	if o.Narrow {
		f.narrow++
	}
	f.spreads[id] = o.Fanout
	if req.Mode == cache.AllowFill {
		if f.filling[name]++; f.filling[name] > f.most {
			f.t.Errorf("%s: %d calls have leave to fill at a time", name, f.filling[name])
		}
	}
	now := *n
	f.mu.Unlock()
	defer func() {
		if req.Mode == cache.AllowFill {
			f.mu.Lock()
			f.filling[name]--
			f.mu.Unlock()
		}
	}()
	if err := now.wait(ctx, o); err != nil {
		return nil, err
	}
	return f.answer(ctx, id, &now, req, o)
}

// wait takes the time that the node takes.
func (n *fakeNode) wait(ctx context.Context, o wire.Options) error {
	limit := o.First
	if limit == 0 {
		limit = wire.Silence
	}
	if n.silent {
		select {
		case <-time.After(limit):
			return &wire.PeerError{Node: n.member.ID, Code: codes.Unavailable, Err: wire.ErrSilent}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case <-time.After(n.delay):
	case <-ctx.Done():
		return ctx.Err()
	}
	return n.fails
}

func (f *fakeNodes) answer(ctx context.Context, id string, n *fakeNode, req cache.Request, o wire.Options) (*cache.Object, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := req.Target.String()
	obj := &cache.Object{Source: cache.Disk, Age: n.age, Stale: n.undated || n.age > time.Minute}
	data, held := f.nodes[id].holds[name]
	switch {
	case held:
	case req.Mode != cache.AllowFill && n.caches != nil:
		return nil, n.caches
	case req.Mode != cache.AllowFill:
		return nil, &cache.Error{Reason: cache.NotCached, Source: id}
	case n.says != nil:
		return nil, n.says
	default:
		if data, held = f.upstream[name]; !held {
			return nil, &cache.Error{Reason: cache.NotFound, Source: "upstream", Text: "404 Not Found"}
		}
		f.fetched++
		f.nodes[id].holds[name] = data
		obj.Source = cache.Upstream
	}
	if o.OnHeader != nil {
		o.OnHeader(&ringmodv1.Header{Fanout: n.fanout})
	}
	filling := obj.Source == cache.Upstream && req.Target.Kind == target.Zip && !req.Whole && o.Resume == nil
	obj.Size = int64(len(data))
	if filling && n.unsized {
		obj.Size = -1
	}
	if !filling {
		obj.SHA256 = sha256.Sum256(data)
	}
	offset := int64(0)
	if o.Resume != nil {
		if o.Resume.SHA256 != obj.SHA256 {
			return nil, &cache.Error{Reason: cache.NotCached, Source: id, Text: "this node has other bytes"}
		}
		offset = o.Resume.Offset
	}
	if len(data) <= wire.MaxInline && o.Resume == nil && !filling && n.breakAt == 0 {
		obj.Body = inline{bytes.NewReader(data)}
		return obj, nil
	}
	if n.yields > 0 {
		n.breakAt = offset + n.yields
	}
	f.open++
	obj.Body = &fakeBody{f: f, gone: ctx.Done(), err: ctx.Err, node: *n, data: data, offset: offset, sum: obj.SHA256}
	return obj, nil
}
