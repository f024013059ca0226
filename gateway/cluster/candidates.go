package cluster

import (
	"cmp"
	"iter"
	"math"
	"slices"
	"time"

	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/ring"
)

// candidate is a node that may be asked for one partition.
type candidate struct {
	id      string
	rank    int  // of its region, from 0
	far     bool // in another region
	local   bool // in our zone
	replica bool // should hold a copy; else a spare rank
	turn    int  // among those that may coordinate, the lower first
	usable  bool
	stats   peers.Stats
}

// minLatency is what a node that was never asked counts as: little, so that it
// is tried, and not nothing, so that not everybody tries it at once.
const minLatency = 100 * time.Microsecond

// score is lower for who is likely to answer sooner.
func (n candidate) score() float64 {
	return float64(n.stats.InFlight+1) * float64(max(n.stats.Latency, minLatency))
}

// class is lower for who is to be read from first, whatever the score. The first
// spread ranks of what is hot are all alike.
func (n candidate) class(spread int) int {
	class := 0
	if n.rank < spread {
		return class
	}
	if !n.replica {
		class += 2
	}
	if !n.local {
		class++
	}
	return class
}

// distance orders other regions; what is not known is far away.
func (n candidate) distance() time.Duration {
	if d := cmp.Or(n.stats.RTT, n.stats.Latency); d > 0 {
		return d
	}
	return math.MaxInt64
}

// What counts more than a rank when it comes to coordinating.
const (
	rankless = 1 << (iota + 4) // has none in the table that is coming
	full                       // its disk takes nothing new
	leaving                    // takes no new work while there is anybody else
)

// group is the candidates of one region in the order of their ranks: those that
// are usable; where none is, the replicas all the same, for our own view may be
// what is wrong. It is empty for a region without nodes.
type group struct {
	region string
	ranks  []candidate
}

// usable tells whether anybody in g is.
func (g group) usable() bool { return len(g.ranks) > 0 && g.ranks[0].usable }

// coordinator is who fills for the region: the lowest rank of the table that is
// coming that is Active and can store what it fills. g must not be empty.
func (g group) coordinator() candidate {
	return slices.MinFunc(g.ranks, func(a, b candidate) int { return cmp.Compare(a.turn, b.turn) })
}

// without returns g as it is when those are left out.
func (g group) without(ids []string) group {
	if len(ids) == 0 {
		return g
	}
	g.ranks = slices.DeleteFunc(slices.Clone(g.ranks), func(n candidate) bool { return slices.Contains(ids, n.id) })
	return g
}

// readers are the candidates in the order in which to read from them: replicas
// before spare ranks, then our own zone, then two drawn at random, mostly the better
// one first. What is hot is read from the first spread ranks alike. draw(n) is a
// random number below n.
func (g group) readers(spread int, draw func(n int) int) []candidate {
	order := slices.Clone(g.ranks)
	for i := len(order) - 1; i > 0; i-- {
		j := draw(i + 1)
		order[i], order[j] = order[j], order[i]
	}
	slices.SortStableFunc(order, func(a, b candidate) int { return cmp.Compare(a.class(spread), b.class(spread)) })
	if len(order) > 1 && order[0].class(spread) == order[1].class(spread) && draw(1000) < order[1].odds(order[0]) {
		order[0], order[1] = order[1], order[0]
	}
	return order
}

// odds are in how many of 1000 cases n is asked before other: by the squares of their
// scores, so that who is twice as slow gets a fifth. Would the better one always go
// first, all gateways would wear out whoever is a little faster than the others.
func (n candidate) odds(other candidate) int {
	ours, theirs := n.score()*n.score(), other.score()*other.score()
	return int(math.Round(1000 * theirs / (ours + theirs)))
}

// atlas is how the nodes are seen from one place.
type atlas struct {
	region, zone string
	peers        Peers
}

// group returns who may be asked in a region: the ranks of the next table that
// are Active, which fill and take new copies, and those of the current one, who
// may be the only ones to hold what is asked for (cluster.md 4.5). Spare ranks
// of both come last.
func (a atlas) group(v *ring.View, region string, p ring.Partition) group {
	g := group{region: region, ranks: make([]candidate, 0, ring.MaxReplicas+3)}
	add := func(t *ring.Table, from int, ranks []ring.Index, active bool) {
		for rank, i := range ranks {
			m := v.Member(i)
			known := slices.ContainsFunc(g.ranks, func(n candidate) bool { return n.id == m.ID })
			if !known && (m.State == ring.Active || !active) {
				g.ranks = append(g.ranks, a.candidate(m, from+rank, t.ReplicaCount(region), turn(v, region, p, i)))
			}
		}
	}
	next, current := v.Next(), v.Current()
	add(next, 0, next.Replicas(region, p), true)
	add(current, 0, current.Replicas(region, p), false)
	n, c := next.ReplicaCount(region), current.ReplicaCount(region)
	add(next, n, next.Ranks(region, p)[n:], true)
	add(current, c, current.Ranks(region, p)[c:], false)

	out := func(n candidate) bool { return !n.usable }
	if !slices.ContainsFunc(g.ranks, func(n candidate) bool { return n.usable }) {
		out = func(n candidate) bool { return !n.replica }
	}
	g.ranks = slices.DeleteFunc(g.ranks, out)
	return g
}

// turn returns the place of a member among those that coordinate.
func turn(v *ring.View, region string, p ring.Partition, i ring.Index) int {
	m, rank := v.Member(i), slices.Index(v.Next().Ranks(region, p), i)
	if rank < 0 {
		rank = rankless
	}
	if m.ReadOnly {
		rank += full
	}
	if m.State == ring.Leaving {
		rank += leaving
	}
	return rank
}

func (a atlas) candidate(m ring.Member, rank, replicas, turn int) candidate {
	near := m.Region == a.region
	return candidate{
		id: m.ID, rank: rank, far: !near, local: near && m.Zone == a.zone, replica: rank < replicas, turn: turn,
		usable: a.peers.Usable(m.ID), stats: a.peers.Stats(m.ID),
	}
}

// groups yields the regions in the order in which to ask them: our own, then the
// others by distance; those without anybody usable last. What is not asked for
// is not looked up.
func (a atlas) groups(v *ring.View, p ring.Partition) iter.Seq[group] {
	return func(yield func(group) bool) {
		own := a.group(v, a.region, p)
		if own.usable() && !yield(own) {
			return
		}
		var groups []group
		if !own.usable() && len(own.ranks) > 0 {
			groups = append(groups, own)
		}
		for _, region := range regions(v, p) {
			if g := a.group(v, region, p); region != a.region && len(g.ranks) > 0 {
				groups = append(groups, g)
			}
		}
		slices.SortStableFunc(groups, a.nearer)
		for _, g := range groups {
			if !yield(g) {
				return
			}
		}
	}
}

// nearer compares regions: the usable ones, our own, the near ones.
func (a atlas) nearer(x, y group) int {
	rank := func(g group) (int, time.Duration) {
		distance := time.Duration(math.MaxInt64)
		for _, n := range g.ranks {
			distance = min(distance, n.distance())
		}
		switch {
		case g.usable():
			return 0, distance
		case g.region == a.region:
			return 1, distance
		default:
			return 2, distance
		}
	}
	i, dx := rank(x)
	j, dy := rank(y)
	return cmp.Or(cmp.Compare(i, j), cmp.Compare(dx, dy))
}

// regions returns all regions, those that are home of p first.
func regions(v *ring.View, p ring.Partition) []string {
	all := slices.Clone(v.Next().RegionOrder(p))
	for _, region := range v.Current().RegionOrder(p) {
		if !slices.Contains(all, region) {
			all = append(all, region)
		}
	}
	return all
}
