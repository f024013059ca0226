package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ringmod/ringmod/gateway/cluster"
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
func three(t *testing.T, name string, first int) (f *fakeNodes, ranks []string) {
	t.Helper()
	var members []ring.Member
	for _, id := range []string{"n1", "n2", "n3"} {
		members = append(members, ring.Member{ID: id, Region: "eu", State: ring.Active, Role: ring.Node, Weight: 1, Addr: id + ":1"})
	}
	ranks = newNodesOf(t, members...).ranks("eu", name) // zones may move ranks, so all share one zone but the chosen
	for try := range 3 {
		for i := range members {
			members[i].Zone = "z"
			if members[i].ID == ranks[first] {
				members[i].Zone = "a"
			}
		}
		f = newNodesOf(t, members...)
		if now := f.ranks("eu", name); now[first] == ranks[first] {
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
				if calls := translate(ranks, f.asked()); !slices.Equal(calls, test.asked) {
					t.Errorf("asked %q, want %q", calls, test.asked)
				}
			})
		})
	}
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
				holders := append(f.ranks("eu", name), "u1")
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

// A node that is stopped costs what a first message may take where a copy is
// read, and the silence of the protocol where a fill may have begun.
func TestSilentNode(t *testing.T) {
	t.Parallel()
	for first, want := range map[int]time.Duration{0: wire.Silence, 1: 1500 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			f, ranks := three(t, modName, first)
			f.nodes[ranks[first]].silent = true
			f.nodes[ranks[2]].holds[modName] = []byte("m")
			for _, id := range ranks {
				f.nodes[id].down = id != ranks[first] && id != ranks[2] // no replica is left to hedge with
			}
			start := time.Now()
			c := newCluster(t, f, nil)
			checkGet(t, c, request(t, modName), []byte("m"))
			if first == 1 {
				want = wire.Silence // it is the lowest that is usable
			}
			if got := time.Since(start); got != want {
				t.Errorf("rank %d: after %v, want %v", first, got, want)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		f, ranks := three(t, modName, 1)
		f.nodes[ranks[1]].silent = true
		f.nodes[ranks[0]].holds[modName] = []byte("m")
		c := newCluster(t, f, nil)
		for range 20 { // all hedges that were saved up
			start := time.Now()
			checkGet(t, c, request(t, modName), []byte("m"))
			if got := time.Since(start); got != 5*time.Millisecond {
				t.Errorf("hedged after %v, want 5ms", got)
			}
		}
		checkGet(t, c, request(t, modName), []byte("m")) // earned by 20 requests
		start := time.Now()
		checkGet(t, c, request(t, modName), []byte("m"))
		if got := time.Since(start); got != 1500*time.Millisecond {
			t.Errorf("without a hedge after %v, want 1.5s", got)
		}
	})
}

func TestHedge(t *testing.T) {
	t.Parallel()
	data := pattern(200 << 10)
	const late = 40 * time.Millisecond
	tests := []struct {
		name  string
		first int
		setup func(ranks []*fakeNode)
		asked []string
		took  time.Duration
	}{
		{"in time", 1, func(r []*fakeNode) { r[1].delay = 4 * time.Millisecond }, []string{"r1 cached"}, 4 * time.Millisecond},
		{"late", 1, func(r []*fakeNode) { r[1].delay = late }, []string{"r1 cached", "r0 cached"}, 5 * time.Millisecond},
		{"late as usual", 1, func(r []*fakeNode) { r[1].delay, r[1].stats.P95 = late, late+1 }, []string{"r1 cached"}, late},
		{"coordinator late", 0, func(r []*fakeNode) { r[0].delay = late }, []string{"r0 fill", "r1 cached"}, 5 * time.Millisecond},
		{"hedge is later", 1, func(r []*fakeNode) { r[1].delay, r[0].delay = late, late }, []string{"r1 cached", "r0 cached"}, late},
		{"hedge has not got it", 1, func(r []*fakeNode) { r[1].delay = late; clear(r[0].holds) }, []string{"r1 cached", "r0 cached"}, late},
		{"hedge fails", 1, func(r []*fakeNode) { r[1].delay, r[0].fails = late, unavailable }, []string{"r1 cached", "r0 cached"}, late},
		{"first fails while the hedge runs", 1, func(r []*fakeNode) {
			r[1].delay, r[1].fails, r[0].delay = late, unavailable, 2*late
		}, []string{"r1 cached", "r0 cached"}, 2*late + 5*time.Millisecond},
		{"first is busy while the hedge runs", 1, func(r []*fakeNode) {
			r[1].delay, r[1].fails, r[0].delay = late, said(cache.Busy), 2*late
		}, []string{"r1 cached", "r0 cached"}, 2*late + 5*time.Millisecond},
		{"first has not got it while the hedge runs", 1, func(r []*fakeNode) {
			clear(r[1].holds)
			r[1].delay, r[0].delay = late, 2*late
		}, []string{"r1 cached", "r0 cached", "r0 fill"}, 3 * late},
		{"both fail", 1, func(r []*fakeNode) {
			r[1].delay, r[1].fails, r[0].fails = late, unavailable, unavailable
		}, []string{"r1 cached", "r0 cached", "r2 fill"}, late},
		{"both have not got it", 1, func(r []*fakeNode) {
			clear(r[1].holds)
			clear(r[0].holds)
			r[1].delay = late
		}, []string{"r1 cached", "r0 cached", "r0 fill"}, late},
		{"first fails, hedge has not got it", 0, func(r []*fakeNode) {
			clear(r[1].holds)
			r[0].delay, r[0].fails = late, unavailable
		}, []string{"r0 fill", "r1 cached", "r1 fill"}, late},
		{"no replica left", 1, func(r []*fakeNode) { r[1].delay, r[0].down = late, true }, []string{"r1 fill"}, late},
	}
	for _, test := range tests {
		for _, name := range []string{modName, zipName} {
			t.Run(test.name+" "+name[len(name)-3:], func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					f, ranks := three(t, name, test.first)
					f.upstream[name] = data
					var nodes []*fakeNode
					for _, id := range ranks {
						f.nodes[id].holds[name] = data
						nodes = append(nodes, f.nodes[id])
					}
					test.setup(nodes)
					start := time.Now()
					checkGet(t, newCluster(t, f, nil), request(t, name), data)
					if got := time.Since(start); got != test.took {
						t.Errorf("took %v, want %v", got, test.took)
					}
					if calls := translate(ranks, f.asked()); !slices.Equal(calls, test.asked) {
						t.Errorf("asked %q, want %q", calls, test.asked)
					}
				})
			})
		}
	}
	t.Run("never of what changes", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			f, ranks := three(t, listName, 0)
			for _, id := range ranks {
				f.nodes[id].holds[listName], f.nodes[id].delay = []byte("v1.0.0\n"), late
			}
			checkGet(t, newCluster(t, f, nil), request(t, listName), []byte("v1.0.0\n"))
			if calls := translate(ranks, f.asked()); !slices.Equal(calls, []string{"r0 fill"}) {
				t.Errorf("asked %q", calls)
			}
		})
	})
}

// A cluster that is busy is not asked all the more.
func TestBudgetOfTheBusy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _ := three(t, modName, 0)
		for _, n := range f.nodes {
			n.fails = &cache.Error{Reason: cache.Busy, RetryAfter: 7 * time.Second}
		}
		c := newCluster(t, f, nil)
		for range 1000 {
			_, _, err := get(t, c, request(t, modName))
			if e, ok := errors.AsType[*cache.Error](err); !ok || e.Reason != cache.Busy || e.RetryAfter != 7*time.Second {
				t.Fatalf("got %v, want Busy as the node said it", err)
			}
		}
		// 1000 first calls, 50 saved up, 10 % earned.
		if got := len(f.asked()); got < 1140 || got > 1160 {
			t.Errorf("%d calls for 1000 requests, want 1150", got)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		f, _ := three(t, modName, 0)
		for _, n := range f.nodes {
			n.fails = crowded
		}
		if _, _, err := get(t, newCluster(t, f, nil), request(t, modName)); !reasonIs(err, cache.Busy) {
			t.Errorf("got %v, want Busy", err)
		}
	})
}

// Dead nodes are left without any budget.
func TestFailoverHasNoBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, ranks := three(t, modName, 0)
		f.nodes[ranks[0]].fails, f.nodes[ranks[1]].fails = unavailable, unavailable
		f.nodes[ranks[2]].holds[modName] = []byte("m")
		c := newCluster(t, f, nil)
		for range 500 {
			checkGet(t, c, request(t, modName), []byte("m"))
		}
	})
}

func TestOtherRegions(t *testing.T) {
	t.Parallel()
	data := pattern(300 << 10)
	tests := []struct {
		name   string
		target string
		setup  func(f *fakeNodes)
		source cache.Source
		want   cache.Reason
		took   time.Duration
		ok     bool
	}{
		{"our region is dead, another has it", zipName, func(f *fakeNodes) {
			f.nodes["e1"].fails, f.nodes["u1"].holds[zipName] = unavailable, data
		}, cache.Region, 0, 0, true},
		{"our region is down, another fills", zipName, func(f *fakeNodes) {
			f.nodes["e1"].down = true
		}, cache.Upstream, 0, 0, true},
		{"the nearest first", zipName, func(f *fakeNodes) {
			f.nodes["e1"].down, f.nodes["u1"].fails = true, said(cache.Internal)
			f.nodes["a1"].holds[zipName] = data
		}, cache.Region, 0, 0, true},
		{"upstream has lost it, another region has not", zipName, func(f *fakeNodes) {
			f.nodes["e1"].says, f.nodes["a1"].holds[zipName] = said(cache.NotFound), data
		}, cache.Region, 0, 0, true},
		{"upstream is broken, another region has it", modName, func(f *fakeNodes) {
			f.nodes["e1"].says, f.nodes["a1"].holds[modName], f.nodes["a1"].delay = said(cache.Broken), data, time.Second
		}, cache.Region, 0, time.Second, true},
		{"upstream is broken, the others are silent", modName, func(f *fakeNodes) {
			f.nodes["e1"].says, f.nodes["a1"].silent, f.nodes["u1"].silent = said(cache.Broken), true, true
		}, 0, cache.Broken, 2 * time.Second, false},
		{"upstream is broken, nobody has it", modName, func(f *fakeNodes) {
			f.nodes["e1"].says, f.nodes["u1"].fails = said(cache.Slow), unavailable
		}, 0, cache.Slow, 0, false},
		{"another region says no while a third has it", modName, func(f *fakeNodes) {
			f.nodes["e1"].fails, f.nodes["u1"].says, f.nodes["a1"].holds[modName] = unavailable, said(cache.Gone), data
		}, cache.Region, 0, 0, true},
		{"an absent list is absent", listName, func(f *fakeNodes) {
			f.nodes["e1"].says, f.nodes["a1"].holds[listName] = said(cache.NotFound), data
		}, 0, cache.NotFound, 0, false},
		{"the youngest list", listName, func(f *fakeNodes) {
			f.nodes["e1"].says = said(cache.Broken)
			f.nodes["u1"].holds[listName], f.nodes["u1"].age = data[:100], time.Hour
			f.nodes["a1"].holds[listName], f.nodes["a1"].age, f.nodes["a1"].delay = data, time.Minute, time.Second
		}, cache.Region, 0, time.Second, true},
		{"the youngest list that comes in time", listName, func(f *fakeNodes) {
			f.nodes["e1"].says = said(cache.Busy)
			f.nodes["e1"].fails = said(cache.Broken)
			f.nodes["u1"].holds[listName], f.nodes["u1"].age = data, time.Hour
			f.nodes["a1"].holds[listName], f.nodes["a1"].age, f.nodes["a1"].delay = data[:100], time.Minute, time.Minute
		}, cache.Region, 0, 2 * time.Second, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newNodes(t, "eu/a/e1", "us/a/u1", "asia/a/a1")
				f.nodes["u1"].stats.RTT, f.nodes["a1"].stats.RTT = 80*time.Millisecond, 200*time.Millisecond
				f.upstream[test.target] = data
				test.setup(f)
				start := time.Now()
				got, obj, err := get(t, newCluster(t, f, nil), request(t, test.target))
				if test.ok && (err != nil || !bytes.Equal(got, data) || obj.Source != test.source) {
					t.Errorf("got %d bytes, %+v, %v, want source %v", len(got), obj, err, test.source)
				}
				if !test.ok && !reasonIs(err, test.want) {
					t.Errorf("got %v, want %v", err, test.want)
				}
				if took := time.Since(start); took != test.took {
					t.Errorf("took %v, want %v", took, test.took)
				}
			})
		})
	}
}

// fakeUpstream is the last resort.
type fakeUpstream struct {
	objects map[string][]byte
	asked   int
	panics  bool
}

func (u *fakeUpstream) Get(_ context.Context, req cache.Request) (*cache.Object, error) {
	u.asked++
	data, ok := u.objects[req.Target.String()]
	switch {
	case u.panics:
		panic("upstream")
	case !ok:
		return nil, said(cache.NotFound)
	}
	return &cache.Object{Size: int64(len(data)), Source: cache.Upstream, Body: io.NopCloser(bytes.NewReader(data))}, nil
}

func TestLastResort(t *testing.T) {
	t.Parallel()
	data := pattern(300 << 10)
	tests := []struct {
		name  string
		req   cache.Request
		setup func(f *fakeNodes)
		want  cache.Reason
		ok    bool
		asked int
	}{
		{"zip", request(t, zipName), func(*fakeNodes) {}, 0, true, 1},
		{"list", request(t, listName), func(*fakeNodes) {}, 0, true, 1},
		{"absent", request(t, modName), func(*fakeNodes) {}, cache.NotFound, false, 1},
		{"private", request(t, "corp.example.com/x/@v/v1.0.0.zip"), func(*fakeNodes) {}, cache.Busy, false, 0},
		{"private lookup", request(t, "sumdb/sum.golang.org/lookup/corp.example.com/x@v1.0.0"), func(*fakeNodes) {}, cache.Busy, false, 0},
		{"no fill", cache.Request{Target: mustParse(t, zipName), Mode: cache.OnlyIfCached}, func(*fakeNodes) {}, cache.Busy, false, 0},
		{"busy is not dead", request(t, zipName), func(f *fakeNodes) { f.nodes["n1"].fails = said(cache.Busy) }, cache.Busy, false, 0},
		{"somebody answers", request(t, zipName), func(f *fakeNodes) { f.nodes["n1"].fails = said(cache.Slow) }, cache.Slow, false, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newNodes(t, "eu/a/n1", "eu/a/n2", "us/a/u1")
				for _, n := range f.nodes {
					n.fails = unavailable
				}
				for _, id := range f.ranks("eu", test.req.Target.String())[:1] { // so that it is asked with leave to fill
					f.nodes["n1"], f.nodes[id] = f.nodes[id], f.nodes["n1"]
				}
				u := &fakeUpstream{objects: map[string][]byte{zipName: data, listName: data, "corp.example.com/x/@v/v1.0.0.zip": data}}
				test.setup(f)
				c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Upstream, cfg.Private = u, "corp.example.com" })
				got, obj, err := get(t, c, test.req)
				if test.ok && (err != nil || !bytes.Equal(got, data) || obj.Source != cache.Upstream) || !test.ok && !reasonIs(err, test.want) {
					t.Errorf("got %d bytes, %v, want ok %t, %v", len(got), err, test.ok, test.want)
				}
				if u.asked != test.asked {
					t.Errorf("upstream was asked %d times, want %d", u.asked, test.asked)
				}
			})
		})
	}
}

func TestNobody(t *testing.T) {
	t.Parallel()
	text := func(err error) string {
		e, _ := errors.AsType[*cache.Error](err)
		if e == nil || e.Reason != cache.Busy || e.RetryAfter == 0 {
			t.Errorf("got %v, want Busy with a pause", err)
			return ""
		}
		return e.Text
	}
	for _, name := range []string{zipName, modName, listName} {
		synctest.Test(t, func(t *testing.T) {
			f := newNodes(t, "eu/a/n1", "eu/a/n2", "us/a/u1")
			for _, n := range f.nodes {
				n.fails, n.down = unavailable, true
			}
			c := newCluster(t, f, nil)
			_, _, err := get(t, c, request(t, name))
			if got, want := text(err), "no node of cluster test can be reached (3 known, 0 up)"; got != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
			if !errors.Is(err, unavailable) {
				t.Errorf("%s: %v does not tell why", name, err)
			}
			if got, want := text(c.Ready()), "no node of cluster test can be reached (3 known, 0 up)"; got != want {
				t.Errorf("ready: got %q, want %q", got, want)
			}
			f.change("u1", func(n *fakeNode) { n.down = false })
			if err := c.Ready(); err != nil {
				t.Errorf("ready: got %v with a node that is up", err)
			}
			_, _, err = get(t, c, request(t, name))
			if got, want := text(err), "no node of cluster test can answer (3 known, 1 up)"; got != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		})
		synctest.Test(t, func(t *testing.T) {
			u := &fakeUpstream{objects: map[string][]byte{name: []byte("x")}}
			for what, f := range map[string]*fakeNodes{"no view": {t: t}, "an empty view": newNodes(t)} {
				c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Upstream = u })
				_, _, err := get(t, c, request(t, name))
				if got := text(err); !strings.Contains(got, "--join") || text(c.Ready()) != got {
					t.Errorf("%s: got %q, ready %v", what, got, c.Ready())
				}
			}
			if u.asked > 0 {
				t.Error("upstream was asked by a gateway that knows no node")
			}
		})
	}
}

// A node that is away for a moment is waited for.
func TestPersistence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.nodes["n1"].holds[modName] = []byte("m")
		f.nodes["n1"].fails = unavailable
		time.AfterFunc(200*time.Millisecond, func() { f.change("n1", func(n *fakeNode) { n.fails = nil }) })
		start := time.Now()
		checkGet(t, newCluster(t, f, nil), request(t, modName), []byte("m"))
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// A caller that leaves gets its own error, and nobody is asked on its behalf any
// more.
func TestCallerLeaves(t *testing.T) {
	t.Parallel()
	for _, name := range []string{zipName, modName, listName} {
		for _, whole := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				f := newNodes(t, "eu/a/n1", "eu/a/n2")
				for _, n := range f.nodes {
					n.silent = true
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				req := request(t, name)
				req.Whole = whole
				if obj, err := newCluster(t, f, nil).Get(ctx, req); !errors.Is(err, context.DeadlineExceeded) || obj != nil {
					t.Errorf("%s: got %v, %v, want the caller's deadline", name, obj, err)
				}
				synctest.Wait()
				before := len(f.asked())
				time.Sleep(time.Minute)
				if after := len(f.asked()); before == 0 || after != 0 {
					t.Errorf("%s: asked %d times, then %d times more", name, before, after)
				}
			})
		}
	}
}

// What is small has a limit in all, and one that a slow upstream does not meet.
func TestSmallLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.upstream[modName] = []byte("m")
		f.nodes["n1"].delay = 100 * time.Second
		checkGet(t, newCluster(t, f, nil), request(t, modName), []byte("m"))
	})
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.upstream[modName] = []byte("m")
		f.nodes["n1"].delay = 200 * time.Second
		if _, _, err := get(t, newCluster(t, f, nil), request(t, modName)); !reasonIs(err, cache.Slow) {
			t.Errorf("got %v, want Slow", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.upstream[zipName] = []byte("z")
		f.nodes["n1"].delay = time.Hour
		checkGet(t, newCluster(t, f, nil), request(t, zipName), []byte("z"))
	})
}

// A panic in there ends one call.
func TestPanic(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Peers = panicking{f} })
		for _, name := range []string{modName, zipName} {
			if _, _, err := get(t, c, request(t, name)); !reasonIs(err, cache.Busy) {
				t.Errorf("%s: got %v, want Busy", name, err)
			}
		}
		c = newCluster(t, f, func(cfg *cluster.Config) { cfg.Peers, cfg.Upstream = panicking{f}, &fakeUpstream{panics: true} })
		if _, _, err := get(t, c, request(t, zipName)); err == nil {
			t.Error("got no error from what panics")
		}
	})
}

type panicking struct{ *fakeNodes }

func (panicking) Get(context.Context, string, cache.Request, wire.Options) (*cache.Object, error) {
	panic("peers")
}
