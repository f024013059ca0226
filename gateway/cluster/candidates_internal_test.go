package cluster

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/ring"
)

// looks is Peers for those who only look.
type looks map[string]peers.Stats // of the usable ones

func (looks) Get(context.Context, string, cache.Request, wire.Options) (*cache.Object, error) {
	panic("nobody is to be asked")
}
func (looks) Answers(context.Context, string) bool { panic("nobody is to be asked") }
func (l looks) Usable(id string) bool              { _, ok := l[id]; return ok }
func (l looks) Stats(id string) peers.Stats        { return l[id] }

// viewOf makes a view of "region/zone/id[/state]" with 2 replicas; state "full"
// is an active member with a full disk.
func viewOf(t *testing.T, names ...string) *ring.View {
	t.Helper()
	spec := ring.DefaultSpec()
	var table ring.Members
	for _, name := range names {
		f := append(strings.Split(name, "/"), "active")
		state := map[string]ring.State{"joining": ring.Joining, "leaving": ring.Leaving}[f[3]]
		_, err := table.Put(ring.Member{
			ID: f[2], Region: f[0], Zone: f[1], State: max(state, ring.Active), Role: ring.Node, Weight: 1, Addr: "x:1",
			Spec: spec.Hash(), Epoch: table.NextEpoch(), ReadOnly: f[3] == "full",
		})
		if f[3] == "joining" {
			m, _ := table.Get(f[2])
			m.State, m.Epoch = ring.Joining, table.NextEpoch()
			_, err = table.Put(m)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	v, err := ring.NewView(spec, &table)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func all(v *ring.View) looks {
	l := looks{}
	for _, m := range v.Members() {
		l[m.ID] = peers.Stats{}
	}
	return l
}

func idsOf(ranks []candidate) []string {
	var ids []string
	for _, n := range ranks {
		ids = append(ids, n.id)
	}
	return ids
}

func rankIDs(v *ring.View, table *ring.Table, region string, p ring.Partition) []string {
	var ids []string
	for _, i := range table.Ranks(region, p) {
		ids = append(ids, v.Member(i).ID)
	}
	return ids
}

// Where nobody joins or leaves, candidates are the ranks in their order.
func TestGroupIsTheRanks(t *testing.T) {
	t.Parallel()
	v := viewOf(t, "eu/a/n1", "eu/a/n2", "eu/b/n3", "eu/b/n4", "eu/c/n5", "eu/c/n6", "us//u1")
	a := atlas{"eu", "a", all(v)}
	for p := range ring.Partition(200) {
		g := a.group(v, "eu", p)
		if got, want := idsOf(g.ranks), rankIDs(v, v.Current(), "eu", p); !slices.Equal(got, want) {
			t.Fatalf("partition %d: got %v, want %v", p, got, want)
		}
		for i, n := range g.ranks {
			m := v.Member(v.Current().Ranks("eu", p)[i])
			if n.replica != (i < 2) || n.far || n.local != (m.Zone == "a") || !n.usable {
				t.Errorf("partition %d, rank %d: %+v", p, i, n)
			}
		}
		if g.coordinator().id != g.ranks[0].id {
			t.Errorf("partition %d: coordinator %s", p, g.coordinator().id)
		}
		if us := a.group(v, "us", p); len(us.ranks) != 1 || !us.ranks[0].far || us.ranks[0].local {
			t.Errorf("partition %d: us %+v", p, us)
		}
	}
	if g := a.group(v, "asia", 0); len(g.ranks) != 0 || g.usable() {
		t.Errorf("a region without nodes: %+v", g)
	}
}

// The coordinator is the one that the nodes choose: the lowest rank that is coming and
// active, also where those that would hold copies all join; who leaves comes last.
func TestCoordinatorInTransition(t *testing.T) {
	t.Parallel()
	v := viewOf(t, "eu//n1", "eu//n2", "eu//n3", "eu//n4/leaving", "eu//n5/joining", "eu//n6/joining", "eu//n7/joining")
	a := atlas{"eu", "", all(v)}
	spare, held := 0, 0
	for p := range ring.Partition(1000) {
		want := ""
		for rank, i := range v.Next().Ranks("eu", p) {
			if m := v.Member(i); m.State == ring.Active {
				want = m.ID
				if rank >= v.Next().ReplicaCount("eu") {
					spare++
				}
				break
			}
		}
		g := a.group(v, "eu", p)
		if want != "" && g.coordinator().id != want {
			t.Errorf("partition %d: %s coordinates, want %s of %v", p, g.coordinator().id, want, idsOf(g.ranks))
		}
		if g.ranks[0].id == "n4" {
			held++
		}
		alone := group{ranks: []candidate{{id: "n4", turn: leaving}, {id: "n1", turn: rankless + full}}}
		if got := alone.coordinator().id; got != "n1" {
			t.Errorf("%s coordinates while it leaves, want n1 though its disk is full", got)
		}
	}
	if spare == 0 || held == 0 {
		t.Errorf("%d spare ranks coordinate, n4 comes first %d times; the test shows nothing", spare, held)
	}
}

// Who joins is not asked before it is active; who leaves is asked after those who
// take over, but before spare ranks, since only it may hold what it held.
func TestGroupInTransition(t *testing.T) {
	t.Parallel()
	v := viewOf(t, "eu//n1", "eu//n2", "eu//n3", "eu//n4", "eu//n5/leaving", "eu//n6/joining")
	a := atlas{"eu", "", all(v)}
	left, joins := 0, 0
	for p := range ring.Partition(500) {
		g := a.group(v, "eu", p)
		ids := idsOf(g.ranks)
		if slices.Contains(ids, "n6") {
			t.Fatalf("partition %d: %v has n6, which joins", p, ids)
		}
		if slices.Sort(slices.Clone(ids)); len(slices.Compact(slices.Sorted(slices.Values(ids)))) != len(ids) {
			t.Fatalf("partition %d: %v has somebody twice", p, ids)
		}
		if g.coordinator().id == "n5" {
			t.Errorf("partition %d: n5 coordinates while it leaves", p)
		}
		replica := func(table *ring.Table, id string) bool {
			return slices.Contains(rankIDs(v, table, "eu", p)[:2], id)
		}
		if replica(v.Next(), "n6") {
			joins++
		}
		for _, n := range g.ranks {
			if want := replica(v.Next(), n.id) || replica(v.Current(), n.id); n.replica != want {
				t.Errorf("partition %d: %s is replica: %t, want %t", p, n.id, n.replica, want)
			}
		}
		if !slices.IsSortedFunc(g.ranks, func(a, b candidate) int { return strings.Compare(fmt.Sprint(!a.replica), fmt.Sprint(!b.replica)) }) {
			t.Errorf("partition %d: a spare rank before a replica", p)
		}
		if replica(v.Current(), "n5") {
			left++
			if !slices.Contains(ids[:min(len(ids), 4)], "n5") {
				t.Errorf("partition %d: n5 held it and is not among the first of %v", p, ids)
			}
		}
	}
	if left == 0 || joins == 0 {
		t.Errorf("n5 had %d partitions and n6 will have %d, want some", left, joins)
	}
}

func TestGroupUsable(t *testing.T) {
	t.Parallel()
	v := viewOf(t, "eu//n1", "eu//n2", "eu//n3", "eu//n4/full")
	const p = 7
	ranks := rankIDs(v, v.Current(), "eu", p)
	tests := []struct {
		name string
		down []int // ranks
		want []int
	}{
		{"all up", nil, []int{0, 1, 2, 3}},
		{"owner down", []int{0}, []int{1, 2, 3}},
		{"replicas down", []int{0, 1}, []int{2, 3}},
		{"all down", []int{0, 1, 2, 3}, []int{0, 1}},
	}
	for _, test := range tests {
		up := all(v)
		for _, rank := range test.down {
			delete(up, ranks[rank])
		}
		var want []string
		for _, rank := range test.want {
			want = append(want, ranks[rank])
		}
		g := (atlas{"eu", "", up}).group(v, "eu", p)
		if got := idsOf(g.ranks); !slices.Equal(got, want) || g.usable() != (len(test.down) < 4) {
			t.Errorf("%s: got %v, usable %t, want %v", test.name, got, g.usable(), want)
		}
	}
	g := group{ranks: []candidate{{id: "a", turn: full}, {id: "b", turn: 1}, {id: "c", turn: 2}}}
	if got := g.coordinator().id; got != "b" {
		t.Errorf("a has a full disk: coordinator %s, want b", got)
	}
	g = group{ranks: []candidate{{id: "a", turn: full}, {id: "b", turn: full + 1}}}
	if got := g.coordinator().id; got != "a" {
		t.Errorf("all have full disks: coordinator %s, want a", got)
	}
	if got := idsOf(g.without([]string{"a"}).ranks); !slices.Equal(got, []string{"b"}) || len(g.ranks) != 2 {
		t.Errorf("without a: %v of %v", got, g.ranks)
	}
}

func TestReaders(t *testing.T) {
	t.Parallel()
	stats := func(inFlight int, latency time.Duration) peers.Stats {
		return peers.Stats{InFlight: inFlight, Latency: latency}
	}
	fast, slow := stats(0, time.Millisecond), stats(0, 2*time.Millisecond)
	tests := []struct {
		name  string
		ranks []candidate
		want  map[string]float64 // how often each is first
	}{
		{"one", []candidate{{id: "a", replica: true}}, map[string]float64{"a": 1}},
		{"our zone first", []candidate{{id: "a", replica: true}, {id: "b", replica: true, local: true, stats: stats(9, time.Second)}}, map[string]float64{"b": 1}},
		{"replicas before spare ranks of our zone", []candidate{{id: "a", replica: true, stats: stats(9, time.Second)}, {id: "b", local: true}}, map[string]float64{"a": 1}},
		{"the faster of two", []candidate{{id: "a", replica: true, stats: slow}, {id: "b", replica: true, stats: fast}}, map[string]float64{"a": 0.2, "b": 0.8}},
		{"the idler of two", []candidate{{id: "a", replica: true, stats: stats(1, time.Millisecond)}, {id: "b", replica: true, stats: fast}}, map[string]float64{"a": 0.2, "b": 0.8}},
		{"never asked", []candidate{{id: "a", replica: true, stats: stats(0, 300*time.Microsecond)}, {id: "b", replica: true}}, map[string]float64{"a": 0.1, "b": 0.9}},
		{"never asked, but waited for", []candidate{{id: "a", replica: true, stats: stats(0, time.Millisecond)}, {id: "b", replica: true, stats: stats(19, 0)}}, map[string]float64{"a": 0.8, "b": 0.2}},
		{"alike", []candidate{{id: "a", replica: true}, {id: "b", replica: true}, {id: "c", replica: true}}, map[string]float64{"a": 0.33, "b": 0.33, "c": 0.33}},
		{"two of three, never the worst", []candidate{
			{id: "a", replica: true, stats: stats(0, time.Second)}, {id: "b", replica: true, stats: fast}, {id: "c", replica: true, stats: fast},
		}, map[string]float64{"b": 0.5, "c": 0.5}},
	}
	for _, test := range tests {
		g := group{ranks: test.ranks}
		first := map[string]float64{}
		const rounds = 5000
		random := rand.New(rand.NewPCG(1, 2))
		for range rounds {
			order := g.readers(0, random.IntN)
			if len(order) != len(test.ranks) {
				t.Fatalf("%s: %d of %d", test.name, len(order), len(test.ranks))
			}
			first[order[0].id] += 1.0 / rounds
		}
		for _, n := range test.ranks {
			if got, want := first[n.id], test.want[n.id]; math.Abs(got-want) > 0.03 || want == 0 && got > 0 {
				t.Errorf("%s: %s is first in %.3f of the cases, want %.3f", test.name, n.id, got, want)
			}
		}
	}
}

func TestRegionsInOrder(t *testing.T) {
	t.Parallel()
	v := viewOf(t, "eu//e1", "eu//e2", "us//u1", "us//u2", "asia//a1", "brazil//b1/leaving")
	rtt := func(ms int) peers.Stats { return peers.Stats{RTT: time.Duration(ms) * time.Millisecond} }
	tests := []struct {
		name string
		up   looks
		want []string
	}{
		{"by distance", looks{"e1": {}, "e2": {}, "u1": rtt(80), "u2": rtt(90), "a1": rtt(200), "b1": rtt(100)}, []string{"eu", "us", "brazil", "asia"}},
		{"by latency where there is no rtt", looks{"e1": {}, "u1": {Latency: time.Second}, "a1": rtt(200), "b1": rtt(900)}, []string{"eu", "asia", "brazil", "us"}},
		{"our own is down", looks{"u1": rtt(80), "a1": rtt(200), "b1": rtt(100)}, []string{"us", "brazil", "asia", "eu"}},
		{"another is down", looks{"e1": {}, "a1": rtt(200), "b1": rtt(100)}, []string{"eu", "brazil", "asia", "us"}},
	}
	for _, test := range tests {
		var got []string
		for g := range (atlas{"eu", "", test.up}).groups(v, 3) {
			got = append(got, g.region)
			if len(g.ranks) == 0 {
				t.Errorf("%s: nobody in %s", test.name, g.region)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
	var got []string
	for g := range (atlas{"mars", "", all(v)}).groups(v, 3) {
		got = append(got, g.region)
	}
	if len(got) != 4 {
		t.Errorf("from a region without nodes: %v, want all 4", got)
	}
	for g := range (atlas{"eu", "", all(v)}).groups(v, 3) {
		if g.region != "eu" {
			t.Errorf("first is %s, want eu", g.region)
		}
		break
	}
}

func TestFirstLimitAndHedgeDelay(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	p95 := func(d time.Duration) peers.Stats { return peers.Stats{P95: d} }
	tests := []struct {
		name  string
		n     candidate
		mode  cache.Mode
		limit time.Duration
		hedge time.Duration
	}{
		{"nothing known", candidate{usable: true}, cache.OnlyIfCached, 1500 * ms, 15 * ms},
		{"our zone", candidate{usable: true, local: true}, cache.OnlyIfCached, 1500 * ms, 5 * ms},
		{"slow", candidate{usable: true, local: true, stats: p95(400 * ms)}, cache.OnlyIfCached, 2100 * ms, 400 * ms},
		{"very slow", candidate{usable: true, stats: p95(2000 * ms)}, cache.OnlyIfCached, 3000 * ms, 2000 * ms},
		{"may fill", candidate{usable: true, local: true, stats: p95(400 * ms)}, cache.AllowFill, 0, 400 * ms},
		{"far", candidate{usable: true, far: true, stats: peers.Stats{RTT: 80 * ms}}, cache.OnlyIfCached, 0, 160 * ms},
		{"nobody there", candidate{}, cache.AllowFill, 1500 * ms, 15 * ms},
		{"far, nobody there", candidate{far: true}, cache.OnlyIfCached, 1500 * ms, 100 * ms},
		{"far, nothing known", candidate{usable: true, far: true}, cache.OnlyIfCached, 0, 100 * ms},
	}
	for _, test := range tests {
		if limit, hedge := firstLimit(test.n, test.mode), hedgeDelay(test.n); limit != test.limit || hedge != test.hedge {
			t.Errorf("%s: got %v and %v, want %v and %v", test.name, limit, hedge, test.limit, test.hedge)
		}
	}
}

func TestBudget(t *testing.T) {
	t.Parallel()
	b := newBudget()
	count := func(take func() bool, most int) int {
		for i := range most {
			if !take() {
				return i
			}
		}
		return most
	}
	if got := count(b.hedge, 1000); got != hedgeSaved {
		t.Errorf("%d hedges at once, want %d", got, hedgeSaved)
	}
	if got := count(b.retry, 1000); got != retrySaved-hedgeSaved {
		t.Errorf("then %d retries, want %d: hedges count", got, retrySaved-hedgeSaved)
	}
	hedges, retries := 0, 0
	for range 10000 {
		b.earn()
		hedges += count(b.hedge, 1)
	}
	for range 10000 {
		b.earn()
		retries += count(b.retry, 1)
	}
	if hedges < 490 || hedges > 500 || retries < 990 || retries > 1050 {
		t.Errorf("of 10000 requests: %d hedges and %d retries, want 5 %% and 10 %%", hedges, retries)
	}
	for range 10000 {
		b.earn()
	}
	for range 100 {
		b.spend()
	}
	if b.hedge() || b.retry() {
		t.Error("somebody may ask more after what was saved is spent on failovers")
	}
}
