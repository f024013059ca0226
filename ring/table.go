package ring

import (
	"fmt"
	"strconv"

	"github.com/buraksezer/consistent"
)

// maxUnits keeps at least 16 partitions for each unit of weight; with fewer the
// units differ too much from each other.
const maxUnits = Partitions / 16

// Index is the position of a member in View.Members. It means nothing in another
// view.
type Index uint16

// Table is where every partition lies in every region, for one set of members.
// It never changes; its methods take no lock and do not allocate, and the slices
// they return are shared and must not be written to.
type Table struct {
	members []Member // of the view, sorted by id
	names   []string // of the regions, sorted
	regions map[string]*regionTable
	homes   homeTable
}

// regionTable is one ring.
type regionTable struct {
	in       []Index // members of the region, in id order
	replicas int     // Spec.Replicas, at most len(in)
	width    int     // Spec.Replicas+3, at most len(in)
	ranks    []Index // Partitions rows of width
}

// Ranks returns the members that hold partition p in a region, the owner first,
// then the other replicas, then the spare ones: Spec.Replicas+3 in all, or as
// many as there are. It returns nil for a region without members and for a p
// that is no partition.
func (t *Table) Ranks(region string, p Partition) []Index {
	r := t.regions[region]
	if r == nil || p >= Partitions {
		return nil
	}
	start := int(p) * r.width
	return r.ranks[start : start+r.width : start+r.width]
}

// Replicas returns those of Ranks that should hold a copy.
func (t *Table) Replicas(region string, p Partition) []Index {
	ranks := t.Ranks(region, p)
	return ranks[:min(len(ranks), t.ReplicaCount(region))]
}

// ReplicaCount returns how many copies a region keeps: Spec.Replicas, limited to
// the members it has.
func (t *Table) ReplicaCount(region string) int {
	if r := t.regions[region]; r != nil {
		return r.replicas
	}
	return 0
}

// CountMissing counts the partitions of a region whose replicas are not all up:
// short are all of those, lost are those without any that is. It asks up once for
// each member.
func (t *Table) CountMissing(region string, up func(Member) bool) (short, lost int) {
	r := t.regions[region]
	if r == nil {
		return 0, 0
	}
	down := make([]bool, len(t.members))
	for _, i := range r.in {
		down[i] = !up(t.members[i])
	}
	for p := range Partition(Partitions) {
		missing := 0
		for _, i := range t.Replicas(region, p) {
			if down[i] {
				missing++
			}
		}
		if missing > 0 {
			short++
		}
		if missing == r.replicas {
			lost++
		}
	}
	return short, lost
}

// Size returns the number of members that a region has in this table.
func (t *Table) Size(region string) int {
	if r := t.regions[region]; r != nil {
		return len(r.in)
	}
	return 0
}

// Regions returns the regions that have members, sorted.
func (t *Table) Regions() []string { return t.names }

// Member returns the member that an index of this table stands for.
func (t *Table) Member(i Index) Member { return t.members[i] }

// newRegionTable places all partitions on the members of one region; in is in
// id order and not empty.
func newRegionTable(spec Spec, members []Member, in []Index) (*regionTable, error) {
	owners, err := owners(spec, members, in)
	if err != nil {
		return nil, err
	}
	r := &regionTable{
		in:       in,
		replicas: min(spec.Replicas, len(in)),
		width:    min(spec.ranks(), len(in)),
	}
	r.ranks = make([]Index, 0, Partitions*r.width)
	pick := newPicker(members, in)
	cs, weighted := contenders(in, func(i Index) int { return members[i].Weight })
	for p, owner := range owners {
		rendezvous(cs, weighted, func(i Index) uint64 {
			return hashScore(domainNode, Partition(p), members[i].ID)
		})
		r.ranks = pick.append(r.ranks, r.width, owner, cs)
	}
	return r, nil
}

// unit is a pseudo-member: one unit of a member's weight.
type unit struct {
	name  string
	index Index
}

func (u unit) String() string { return u.name }

// owners asks consistent for the owner of each partition. The library panics
// where it cannot place one; that must not end a process.
func owners(spec Spec, members []Member, in []Index) (owners []Index, err error) {
	units := units(members, in)
	if len(units) > maxUnits {
		return nil, fmt.Errorf("weights add up to %d, at most %d fit %d partitions: give all nodes of the region lower weights",
			len(units), maxUnits, Partitions)
	}
	defer func() {
		if r := recover(); r != nil {
			owners, err = nil, fmt.Errorf("placing %d members: %v", len(in), r)
		}
	}()
	circle := consistent.New(units, consistent.Config{
		Hasher:            hasher{},
		PartitionCount:    Partitions,
		ReplicationFactor: spec.VirtualNodes,
		Load:              float64(spec.LoadPermille) / 1000,
	})
	owners = make([]Index, Partitions)
	for p := range owners {
		owners[p] = circle.GetPartitionOwner(p).(unit).index //nolint:errcheck // it has no other members
	}
	return owners, nil
}

func units(members []Member, in []Index) []consistent.Member {
	var units []consistent.Member
	for _, i := range in {
		for n := range members[i].Weight {
			units = append(units, unit{name: members[i].ID + "|" + strconv.Itoa(n), index: i})
		}
	}
	return units
}

// picker applies the zone rule.
type picker struct {
	zone  []int   // by Index: its zone's number
	used  []bool  // by zone number
	spare []Index // passed over because their zone was used
}

func newPicker(members []Member, in []Index) *picker {
	numbers := make(map[string]int)
	k := &picker{zone: make([]int, len(members))}
	for _, i := range in {
		n, ok := numbers[members[i].Zone]
		if !ok {
			n = len(numbers)
			numbers[members[i].Zone] = n
		}
		k.zone[i] = n
	}
	k.used = make([]bool, len(numbers))
	return k
}

// append appends n ranks: the owner, then from the rendezvous order those in
// zones not used yet, then those it passed over.
func (k *picker) append(ranks []Index, n int, owner Index, order []contender) []Index {
	clear(k.used)
	k.spare = k.spare[:0]
	end := len(ranks) + n
	ranks = append(ranks, owner)
	k.used[k.zone[owner]] = true
	for _, c := range order {
		zone := k.zone[c.index]
		switch {
		case len(ranks) == end:
			return ranks
		case c.index == owner:
		case k.used[zone]:
			k.spare = append(k.spare, c.index)
		default:
			ranks = append(ranks, c.index)
			k.used[zone] = true
		}
	}
	return append(ranks, k.spare[:end-len(ranks)]...)
}
