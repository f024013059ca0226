package antientropy

import (
	"maps"
	"math"
	"slices"

	"github.com/ringmod/ringmod/ring"
)

// plan is what one view means for this node.
type plan struct {
	view     *ring.View
	leaving  bool                        // this node is
	ours     []bool                      // by partition: a replica in Next
	foreign  []bool                      // by partition: what is here is for the heirs
	partners map[string][]ring.Partition // of those that are ours, by member
	heirs    map[string][]ring.Partition // of those that are foreign, by member
}

func newPlan(view *ring.View, self, region string) *plan {
	p := &plan{
		view: view, ours: make([]bool, ring.Partitions), foreign: make([]bool, ring.Partitions),
		partners: map[string][]ring.Partition{}, heirs: map[string][]ring.Partition{},
	}
	me, in := view.Find(self)
	if !in {
		me = math.MaxUint16 // nobody's
	}
	p.leaving = in && view.Member(me).State == ring.Leaving
	for part := range ring.Partition(ring.Partitions) {
		current, next := view.Current().Replicas(region, part), view.Next().Replicas(region, part)
		p.ours[part] = in && slices.Contains(next, me)
		p.foreign[part] = !p.ours[part] && (p.leaving || !in || !slices.Contains(current, me))
		switch {
		case p.ours[part]:
			add(p.partners, view, part, me, current, next)
		case p.foreign[part]:
			add(p.heirs, view, part, me, next)
		}
	}
	return p
}

// add notes a partition for each member of the lists but me.
func add(to map[string][]ring.Partition, view *ring.View, p ring.Partition, me ring.Index, lists ...[]ring.Index) {
	for _, list := range lists {
		for _, i := range list {
			id := view.Member(i).ID
			if known := to[id]; i != me && (len(known) == 0 || known[len(known)-1] != p) {
				to[id] = append(known, p)
			}
		}
	}
}

func members(of map[string][]ring.Partition) []string { return slices.Sorted(maps.Keys(of)) }
