package ring

import "slices"

// Gain is a partition that a member did not hold as a replica and now should.
type Gain struct {
	Region    string
	Partition Partition
	Member    string   // id of the one that gets it
	From      []string // ids of those that may have it, the most likely first
}

// Drop is a partition that a member held as a replica and now need not.
type Drop struct {
	Region    string
	Partition Partition
	Member    string
}

// Moves is what changes hands between two tables, ordered by region, partition
// and rank.
type Moves struct {
	Gains []Gain
	Drops []Drop
}

// Plan compares two tables, which may be of different views; nil is a table
// without members. The givers of a gain are the previous ranks of the partition
// in that region, spare ones included as they stood in for replicas that were
// down, but for the one that gains it. Whether they are up, or still members, is
// for the caller to see.
func Plan(prev, next *Table) Moves {
	prev, next = orEmpty(prev), orEmpty(next)
	regions := slices.Concat(prev.names, next.names)
	slices.Sort(regions)
	var moves Moves
	for _, region := range slices.Compact(regions) {
		for p := range Partition(Partitions) {
			moves.add(prev, next, region, p)
		}
	}
	return moves
}

func (m *Moves) add(prev, next *Table, region string, p Partition) {
	before, after := prev.Replicas(region, p), next.Replicas(region, p)
	for _, i := range after {
		if id := next.members[i].ID; !prev.has(before, id) {
			m.Gains = append(m.Gains, Gain{Region: region, Partition: p, Member: id, From: prev.givers(region, p, id)})
		}
	}
	for _, i := range before {
		if id := prev.members[i].ID; !next.has(after, id) {
			m.Drops = append(m.Drops, Drop{Region: region, Partition: p, Member: id})
		}
	}
}

func (t *Table) has(ranks []Index, id string) bool {
	return slices.ContainsFunc(ranks, func(i Index) bool { return t.members[i].ID == id })
}

// givers returns the ranks of p but for id.
func (t *Table) givers(region string, p Partition, id string) []string {
	var from []string
	for _, i := range t.Ranks(region, p) {
		if t.members[i].ID != id {
			from = append(from, t.members[i].ID)
		}
	}
	return from
}

func orEmpty(t *Table) *Table {
	if t == nil {
		return &Table{}
	}
	return t
}
