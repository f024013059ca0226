package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// told notes what nodes are told.
type told struct {
	t *testing.T

	mu    sync.Mutex
	lines []string
	fails error
}

func (f *told) Conn(id string) (grpc.ClientConnInterface, error) { return &toldConn{f: f, id: id}, nil }

type toldConn struct {
	grpc.ClientConnInterface

	f  *told
	id string
}

// Invoke implements grpc.ClientConnInterface.
func (c *toldConn) Invoke(_ context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	req, ok := args.(*ringmodv1.AnnounceRequest)
	if !ok || method != ringmodv1.PeerService_Announce_FullMethodName || len(req.GetCopies()) > 1024 || req.GetViewSeq() == 0 {
		c.f.t.Errorf("call of %s with %v", method, args)
		return nil
	}
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	resp := &ringmodv1.AnnounceResponse{}
	for _, each := range req.GetCopies() {
		if len(each.GetSha256()) != 32 || each.GetSize() == 0 {
			c.f.t.Errorf("told of %v", each)
		}
		c.f.lines = append(c.f.lines, fmt.Sprintf("%s: %s at %s", c.id, each.GetTarget(), req.GetHolder()))
		resp.Outcomes = append(resp.Outcomes, ringmodv1.Outcome(len(c.f.lines))) // also what there is not
	}
	proto.Merge(reply.(proto.Message), resp)
	return c.f.fails
}

func (f *told) check(want ...string) {
	f.t.Helper()
	time.Sleep(time.Second) // it comes behind the answer
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(f.lines, want) {
		f.t.Errorf("told %q, want %q", f.lines, want)
	}
	f.lines = nil
}

// repairing returns a cluster that runs.
func repairing(t *testing.T, nodes *fakeNodes) (*cluster.Cluster, *told) {
	t.Helper()
	f := &told{t: t}
	c := newCluster(t, nodes, func(cfg *cluster.Config) { cfg.Conns = f })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return c, f
}

// A replica that lacks what another one holds is told, once a minute, whatever kind
// of immutable object it is.
func TestReadRepair(t *testing.T) {
	t.Parallel()
	for _, name := range []string{modName, zipName} {
		synctest.Test(t, func(t *testing.T) {
			nodes, ranks := three(t, name, 1)
			nodes.nodes[ranks[0]].holds[name] = pattern(1000)
			c, f := repairing(t, nodes)
			want := fmt.Sprintf("%s: %s at %s", ranks[1], name, ranks[0])
			checkGet(t, c, request(t, name), pattern(1000))
			f.check(want)
			for range 10 {
				time.Sleep(5 * time.Second)
				checkGet(t, c, request(t, name), pattern(1000))
			}
			f.check()
			f.fails = errors.New("gone")
			time.Sleep(time.Minute)
			checkGet(t, c, request(t, name), pattern(1000))
			f.check(want)
		})
	}
}

// Nobody is told of what is being fetched, may change or was found at once, or when a
// replica has not said that it lacks anything.
func TestNothingToRepair(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		what, name string
		setUp      func(nodes *fakeNodes, ranks []string)
	}{
		{"a fill", modName, func(f *fakeNodes, _ []string) { f.upstream[modName] = pattern(10) }},
		{"a list", listName, func(f *fakeNodes, ranks []string) { f.nodes[ranks[0]].holds[listName] = pattern(10) }},
		{"a hit", modName, func(f *fakeNodes, ranks []string) { f.nodes[ranks[1]].holds[modName] = pattern(10) }},
		{"a node that is down", modName, func(f *fakeNodes, ranks []string) {
			f.nodes[ranks[0]].holds[modName], f.nodes[ranks[1]].down = pattern(10), true
		}},
		{"trouble", modName, func(f *fakeNodes, ranks []string) {
			f.nodes[ranks[0]].holds[modName], f.nodes[ranks[1]].fails = pattern(10), unavailable
		}},
	} {
		synctest.Test(t, func(t *testing.T) {
			nodes, ranks := three(t, test.name, 1)
			test.setUp(nodes, ranks)
			c, f := repairing(t, nodes)
			if _, _, err := get(t, c, request(t, test.name)); err != nil {
				t.Fatalf("%s: %v", test.what, err)
			}
			f.check()
		})
	}
}

// However much is lacking, what waits is bounded, and readers do not wait for it.
func TestRepairsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes := newNodes(t, "eu/a/n1", "eu/a/n2")
		nodes.most = 10000
		c, f := repairing(t, nodes)
		for i := range 9000 {
			name := fmt.Sprintf("example.com/m%d/@v/v1.0.0.mod", i)
			nodes.nodes[nodes.ranks(name)[0]].holds[name] = pattern(10)
			if _, err := c.Get(t.Context(), cache.Request{Target: mustParse(t, name)}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		f.mu.Lock()
		defer f.mu.Unlock()
		if n := len(f.lines); n < 1000 || n > 2100 { // what does not fit is dropped: no time has passed
			t.Errorf("told of %d objects", n)
		}
	})
}
