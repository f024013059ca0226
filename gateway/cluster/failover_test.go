package cluster_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/ring"
)

var (
	unavailable = &wire.PeerError{Node: "n", Code: codes.Unavailable, Err: errors.New("connection refused")}
	crowded     = &wire.PeerError{Node: "n", Code: codes.ResourceExhausted, Err: wire.ErrCrowded}
	corrupt     = &wire.PeerError{Node: "n", Code: codes.DataLoss, Err: wire.ErrProtocol}
)

func said(r cache.Reason) error { return &cache.Error{Reason: r, Source: "somebody", Text: r.String()} }

// three is a region of three nodes, the first replica in our zone, so that it is
// read from: rank 0 when first is 0, rank 1 when it is 1.
func three(t testing.TB, name string, first int) (f *fakeNodes, ranks []string) {
	t.Helper()
	var members []ring.Member
	for _, id := range []string{"n1", "n2", "n3"} {
		members = append(members, ring.Member{ID: id, Region: "eu", State: ring.Active, Role: ring.Node, Weight: 1, Addr: id + ":1"})
	}
	ranks = newNodesOf(t, members...).ranks(name) // zones may move ranks, so all share one zone but the chosen
	for try := range 3 {
		for i := range members {
			members[i].Zone = "z"
			if members[i].ID == ranks[first] {
				members[i].Zone = "a"
			}
		}
		f = newNodesOf(t, members...)
		if now := f.ranks(name); now[first] == ranks[first] {
			return f, now
		} else if try == 2 {
			t.Fatalf("ranks move with zones: %v, %v", ranks, now)
		} else {
			ranks = now
		}
	}
	return f, ranks
}

// translate writes calls of nodes as calls of ranks.
func translate(ranks []string, calls []string) []string {
	for i := range calls {
		for rank, id := range ranks {
			calls[i] = strings.Replace(calls[i], id, fmt.Sprintf("r%d", rank), 1)
		}
	}
	return calls
}

// TestFailover is the table of failover.go, seen from outside, for what an only
// replica answers that is no coordinator, and what a coordinator does.
func TestFailover(t *testing.T) {
	t.Parallel()
	data := []byte("module example.com/m\n")
	tests := []struct {
		name   string
		target string
		first  int // the rank that is read from
		setup  func(ranks []*fakeNode)
		asked  []string
		want   cache.Reason // of the error
		ok     bool
	}{
		{"held by who is near", modName, 1, func(r []*fakeNode) { r[1].holds[modName] = data }, []string{"r1 cached"}, 0, true},
		{"held by the coordinator", modName, 0, func(r []*fakeNode) { r[0].holds[modName] = data }, []string{"r0 fill"}, 0, true},
		{"held by nobody", modName, 1, func([]*fakeNode) {}, []string{"r1 cached", "r0 fill"}, 0, true},
		{"held by nobody, coordinator near", modName, 0, func([]*fakeNode) {}, []string{"r0 fill"}, 0, true},
		{"list", listName, 1, func(r []*fakeNode) { r[1].holds[listName] = []byte("old") }, []string{"r0 fill"}, 0, true},
		// What a node that may not fill says of an object is never the answer.
		{"reader: not found", modName, 1, func(r []*fakeNode) { r[1].caches = said(cache.NotFound) }, []string{"r1 cached", "r0 fill"}, 0, true},
		{"reader: gone", modName, 1, func(r []*fakeNode) { r[1].caches = said(cache.Gone) }, []string{"r1 cached", "r0 fill"}, 0, true},
		{"reader: denied", modName, 1, func(r []*fakeNode) { r[1].caches = said(cache.Denied) }, []string{"r1 cached", "r0 fill"}, 0, true},
		{"reader: broken", modName, 1, func(r []*fakeNode) { r[1].caches = said(cache.Broken) }, []string{"r1 cached", "r0 fill"}, 0, true},
		{"reader: slow", modName, 1, func(r []*fakeNode) { r[1].caches = said(cache.Slow) }, []string{"r1 cached", "r0 fill"}, 0, true},
		{"reader: mismatch", modName, 1, func(r []*fakeNode) { r[1].caches = said(cache.Mismatch) }, []string{"r1 cached", "r0 fill"}, 0, true},
		{"reader: malformed", modName, 1, func(r []*fakeNode) { r[1].caches = said(cache.Malformed) }, []string{"r1 cached"}, cache.Malformed, false},
		{"reader: busy", modName, 1, func(r []*fakeNode) { r[1].fails = said(cache.Busy) }, []string{"r1 cached", "r0 fill"}, 0, true},
		{"reader: crowded", modName, 1, func(r []*fakeNode) { r[1].fails = crowded }, []string{"r1 cached", "r0 fill"}, 0, true},
		{"reader: internal", modName, 1, func(r []*fakeNode) { r[1].fails = said(cache.Internal) }, []string{"r1 cached", "r0 fill"}, 0, true},
		{"reader: dead", modName, 1, func(r []*fakeNode) { r[1].fails = unavailable }, []string{"r1 cached", "r0 fill"}, 0, true},
		{"reader: bad copy", modName, 1, func(r []*fakeNode) { r[1].fails = corrupt }, []string{"r1 cached", "r0 fill"}, 0, true},
		{"reader: unknown error", modName, 1, func(r []*fakeNode) { r[1].fails = errors.New("?") }, []string{"r1 cached", "r0 fill"}, 0, true},
		{"reader: unknown reason", modName, 1, func(r []*fakeNode) { r[1].fails = said(99) }, []string{"r1 cached", "r0 fill"}, 0, true},
		// What a coordinator says is, once nobody else has a copy.
		{"reader: purged", modName, 1, func(r []*fakeNode) { r[1].caches, r[0].holds[modName] = said(cache.Purged), data }, []string{"r1 cached"}, cache.Purged, false},
		{"coordinator: purged", modName, 0, func(r []*fakeNode) { r[0].says, r[1].holds[modName] = said(cache.Purged), data }, []string{"r0 fill"}, cache.Purged, false},
		{"coordinator: not found", modName, 0, func(r []*fakeNode) { r[0].says = said(cache.NotFound) }, []string{"r0 fill", "r1 cached"}, cache.NotFound, false},
		{"coordinator: gone", modName, 0, func(r []*fakeNode) { r[0].says = said(cache.Gone) }, []string{"r0 fill", "r1 cached"}, cache.Gone, false},
		{"coordinator: offline", modName, 0, func(r []*fakeNode) { r[0].says = said(cache.NotCached) }, []string{"r0 fill", "r1 cached"}, cache.NotCached, false},
		{"coordinator: denied", modName, 0, func(r []*fakeNode) { r[0].says = said(cache.Denied) }, []string{"r0 fill", "r1 cached"}, cache.Denied, false},
		{"coordinator: broken", modName, 0, func(r []*fakeNode) { r[0].says = said(cache.Broken) }, []string{"r0 fill", "r1 cached"}, cache.Broken, false},
		{"coordinator: slow", modName, 0, func(r []*fakeNode) { r[0].says = said(cache.Slow) }, []string{"r0 fill", "r1 cached"}, cache.Slow, false},
		{"coordinator: mismatch", modName, 0, func(r []*fakeNode) { r[0].says = said(cache.Mismatch) }, []string{"r0 fill", "r1 cached"}, cache.Mismatch, false},
		{"coordinator: malformed", modName, 0, func(r []*fakeNode) { r[0].says = said(cache.Malformed) }, []string{"r0 fill"}, cache.Malformed, false},
		{"coordinator: not found, but held", modName, 0, func(r []*fakeNode) {
			r[0].says, r[1].holds[modName] = said(cache.NotFound), data
		}, []string{"r0 fill", "r1 cached"}, 0, true},
		{"both: not found", modName, 1, func(r []*fakeNode) { r[0].says = said(cache.NotFound) }, []string{"r1 cached", "r0 fill"}, cache.NotFound, false},
		{"coordinator: busy", modName, 0, func(r []*fakeNode) { r[0].fails = said(cache.Busy) }, []string{"r0 fill", "r1 fill"}, 0, true},
		{"coordinator: crowded", modName, 0, func(r []*fakeNode) { r[0].fails = crowded }, []string{"r0 fill", "r1 fill"}, 0, true},
		{"coordinator: internal", modName, 0, func(r []*fakeNode) { r[0].fails = said(cache.Internal) }, []string{"r0 fill", "r1 fill"}, 0, true},
		{"coordinator: dead", modName, 0, func(r []*fakeNode) { r[0].fails = unavailable }, []string{"r0 fill", "r1 fill"}, 0, true},
		{"coordinator: bad copy", modName, 0, func(r []*fakeNode) { r[0].fails = corrupt }, []string{"r0 fill", "r1 fill"}, 0, true},
		{"both dead", modName, 0, func(r []*fakeNode) { r[0].fails, r[1].fails = unavailable, unavailable }, []string{"r0 fill", "r1 fill", "r2 fill"}, 0, true},
		{"reader has not, coordinator dead", modName, 1, func(r []*fakeNode) { r[0].fails = unavailable }, []string{"r1 cached", "r0 fill", "r1 fill"}, 0, true},
		{"coordinator known to be down", modName, 1, func(r []*fakeNode) { r[0].down = true }, []string{"r1 fill"}, 0, true},
		{"coordinator full", modName, 1, func(r []*fakeNode) { r[0].member.ReadOnly = true }, []string{"r1 cached", "r0 fill"}, 0, true}, // the view has not heard yet
		{"reader has not, nobody fills", modName, 1, func(r []*fakeNode) {
			for _, n := range r {
				n.says = said(cache.Internal)
			}
		}, nil, cache.Busy, false},
		{"all busy", modName, 0, func(r []*fakeNode) {
			for _, n := range r {
				n.fails = said(cache.Busy)
			}
		}, []string{"r0 fill", "r1 fill", "r2 fill"}, cache.Busy, false},
		// What changes.
		{"list: not found", listName, 1, func(r []*fakeNode) {
			r[0].says, r[1].holds[listName] = said(cache.NotFound), []byte("old")
		}, []string{"r0 fill"}, cache.NotFound, false},
		{"list: denied", listName, 1, func(r []*fakeNode) { r[0].says = said(cache.Denied) }, []string{"r0 fill"}, cache.Denied, false},
		{"list: broken", listName, 1, func(r []*fakeNode) { r[0].says = said(cache.Broken) }, []string{"r0 fill", "r1 cached"}, cache.Broken, false},
		{"list: broken, but held", listName, 1, func(r []*fakeNode) {
			r[0].says, r[1].holds[listName] = said(cache.Slow), data
		}, []string{"r0 fill", "r1 cached"}, 0, true},
		{"list: dead", listName, 1, func(r []*fakeNode) { r[0].fails = unavailable }, []string{"r0 fill", "r1 fill"}, 0, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f, ranks := three(t, test.target, test.first)
				f.upstream[test.target] = data
				var nodes []*fakeNode
				for _, id := range ranks {
					nodes = append(nodes, f.nodes[id])
				}
				test.setup(nodes)
				got, _, err := get(t, newCluster(t, f, nil), request(t, test.target))
				if test.ok && (err != nil || !bytes.Equal(got, data)) || !test.ok && !reasonIs(err, test.want) {
					t.Errorf("got %q, %v, want ok %t, %v", got, err, test.ok, test.want)
				}
				if calls := translate(ranks, f.asked()); !slices.Equal(calls, test.asked) && test.asked != nil {
					t.Errorf("asked %q, want %q", calls, test.asked)
				}
			})
		})
	}
}

// Of what changes the coordinator knows best, also for who may not fill.
func TestOnlyIfCachedOfWhatChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, ranks := three(t, listName, 1)
		f.nodes[ranks[0]].holds[listName], f.nodes[ranks[1]].holds[listName] = []byte("new"), []byte("old")
		req := request(t, listName)
		req.Mode = cache.OnlyIfCached
		checkGet(t, newCluster(t, f, nil), req, []byte("new"))
	})
}

// Who may not fill asks everybody who may have a copy, and never lets anybody
// fill.
func TestOnlyIfCached(t *testing.T) {
	t.Parallel()
	data := []byte("module example.com/m\n")
	for _, name := range []string{modName, listName} {
		for holder := -1; holder < 4; holder++ {
			synctest.Test(t, func(t *testing.T) {
				f := newNodes(t, "eu/a/n1", "eu/b/n2", "eu/c/n3", "us//u1")
				f.upstream[name], f.most = data, 0
				holders := append(f.ranks(name), "u1")
				if holder >= 0 {
					f.nodes[holders[holder]].holds[name] = data
				}
				req := request(t, name)
				req.Mode = cache.OnlyIfCached
				got, obj, err := get(t, newCluster(t, f, nil), req)
				switch {
				case holder < 0:
					if !reasonIs(err, cache.NotCached) {
						t.Errorf("%s: got %v, want NotCached", name, err)
					}
				case err != nil || !bytes.Equal(got, data):
					t.Errorf("%s at %s: got %q, %v", name, holders[holder], got, err)
				case (obj.Source == cache.Region) != (holder == 3):
					t.Errorf("%s at %s: source %v", name, holders[holder], obj.Source)
				}
			})
		}
	}
}

// The silence of several nodes does not add up, and still only one has leave to fill.
func TestSilentNodesDoNotAddUp(t *testing.T) {
	t.Parallel()
	for _, name := range []string{zipName, modName, listName} {
		synctest.Test(t, func(t *testing.T) {
			f := newNodes(t, "eu/a/n1", "eu/a/n2", "eu/b/n3", "eu/b/n4", "eu/c/n5")
			f.upstream[name] = pattern(100)
			ranks := f.ranks(name)
			for _, id := range ranks[:4] {
				f.nodes[id].silent = true
			}
			c := newCluster(t, f, nil)
			start := time.Now()
			checkGet(t, c, request(t, name), pattern(100))
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("%s took %v, want one silence and half of one at most", name, took)
			}
			if f.fetched != 1 {
				t.Errorf("%s: upstream was asked %d times", name, f.fetched)
			}
		})
	}
}
