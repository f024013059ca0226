package cluster_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
)

// A node that is stopped costs the silence of the protocol where a fill may have
// begun; where a copy is read, no more than its p95 while there is budget to
// hedge, and then what a first message may take.
func TestSilentNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, ranks := three(t, modName, 0)
		f.nodes[ranks[0]].silent, f.nodes[ranks[1]].down = true, true // nobody to hedge with
		f.nodes[ranks[2]].holds[modName] = []byte("m")
		start := time.Now()
		checkGet(t, newCluster(t, f, nil), request(t, modName), []byte("m"))
		if got := time.Since(start); got != wire.Silence {
			t.Errorf("after %v, want %v", got, wire.Silence)
		}
	})
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

// A hedge that the budget denies is asked for again while the node stays silent, as
// others may have earned it meanwhile.
func TestHedgeLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, ranks := three(t, modName, 0)
		f.nodes[ranks[0]].silent = true
		f.nodes[ranks[1]].holds[modName] = []byte("m")
		c := newCluster(t, f, nil)
		for range 21 { // all hedges that were saved up, and the one that these have earned
			checkGet(t, c, request(t, modName), []byte("m"))
			synctest.Wait() // the silent node is no longer asked
		}
		list := request(t, listName)
		list.Mode = cache.OnlyIfCached
		time.AfterFunc(100*time.Millisecond, func() {
			for range 20 { // which wait, but never hedge
				go func() { _, _ = c.Get(t.Context(), list) }()
			}
		})
		start := time.Now()
		checkGet(t, c, request(t, modName), []byte("m"))
		if got, want := time.Since(start), 5*time.Millisecond+wire.Heartbeat; got != want {
			t.Errorf("hedged after %v, want %v", got, want)
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

// Dead nodes are left without any budget, but leave none for hedges.
func TestFailoverHasNoBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, ranks := three(t, modName, 0)
		f.nodes[ranks[0]].fails, f.nodes[ranks[1]].fails = unavailable, unavailable
		f.nodes[ranks[2]].holds[modName] = []byte("m")
		reg := prometheus.NewRegistry()
		c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Metrics = reg })
		for range 500 {
			checkGet(t, c, request(t, modName), []byte("m"))
		}
		const late = 40 * time.Millisecond
		f.nodes[ranks[0]].fails, f.nodes[ranks[0]].delay, f.nodes[ranks[0]].holds[modName] = nil, late, []byte("m")
		start := time.Now()
		checkGet(t, c, request(t, modName), []byte("m"))
		if took := time.Since(start); took != late {
			t.Errorf("took %v, want %v without a hedge", took, late)
		}
		for name, want := range map[string]float64{"failovers_total": 1000, "hedges_total": 1, "retries_denied_total": 0, "requests_total": 501} {
			if got := valueOf(t, reg, "ringmod_cluster_"+name); got != want {
				t.Errorf("%s is %v, want %v", name, got, want)
			}
		}
		if got := valueOf(t, reg, "ringmod_cluster_hedges_total", "denied"); got != 1 {
			t.Errorf("%v hedges were denied, want 1", got)
		}
	})
}
