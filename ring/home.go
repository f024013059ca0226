package ring

// homeTable is the order of all regions for each partition.
type homeTable struct {
	eligible int      // regions that may be home; they come first in each row
	width    int      // all regions
	order    []string // Partitions rows of width
}

// Home returns the home region of p, the one that talks to upstream for all, or
// "" if no region may.
func (t *Table) Home(p Partition) string {
	if t.homes.eligible == 0 || p >= Partitions {
		return ""
	}
	return t.homes.order[int(p)*t.homes.width]
}

// Homes returns all regions that may be home of p, the home region first, then
// those that take its place when nothing of it can be reached.
func (t *Table) Homes(p Partition) []string {
	if p >= Partitions {
		return nil
	}
	start := int(p) * t.homes.width
	return t.homes.order[start : start+t.homes.eligible : start+t.homes.eligible]
}

// RegionOrder returns all regions for p: those of Homes, then those that are
// never home but may hold a copy.
func (t *Table) RegionOrder(p Partition) []string {
	if p >= Partitions {
		return nil
	}
	start := int(p) * t.homes.width
	return t.homes.order[start : start+t.homes.width : start+t.homes.width]
}

// newHomeTable orders regions, whose names are sorted.
func newHomeTable(spec Spec, names []string) homeTable {
	var may, never []Index
	for i, name := range names {
		if spec.homeWeight(name) > 0 {
			may = append(may, Index(i))
		} else {
			never = append(never, Index(i))
		}
	}
	t := homeTable{eligible: len(may), width: len(names)}
	t.order = make([]string, 0, Partitions*t.width)
	first, weighted := contenders(may, func(i Index) int { return spec.homeWeight(names[i]) })
	last, _ := contenders(never, func(Index) int { return 1 })
	for p := range Partition(Partitions) {
		hash := func(i Index) uint64 { return hashScore(domainRegion, p, names[i]) }
		rendezvous(first, weighted, hash)
		rendezvous(last, false, hash)
		for _, cs := range [][]contender{first, last} {
			for _, c := range cs {
				t.order = append(t.order, names[c.index])
			}
		}
	}
	return t
}
