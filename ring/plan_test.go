package ring_test

import (
	"slices"
	"testing"

	"github.com/ringmod/ringmod/ring"
)

// TestPlanTurnsOneTableIntoTheOther applies a plan to the copies of the first
// table: what comes out must be the copies of the second.
func TestPlanTurnsOneTableIntoTheOther(t *testing.T) {
	t.Parallel()
	spec := replicas(3)
	two := view(t, spec, nodes(spec, 2, 1)...).Current()
	six := view(t, spec, nodes(spec, 6, 2)...).Current()
	moved := nodes(spec, 6, 2)
	moved[1].Region, moved[2].Zone, moved[3].Weight = "eu", "z9", 3
	seven := view(t, spec, append(moved, node(spec, "a-first", "", 1))...).Current()
	tables := map[string]*ring.Table{"nil": nil, "empty": view(t, spec).Current(), "two": two, "six": six, "seven": seven}
	for from, prev := range tables {
		for to, next := range tables {
			moves := ring.Plan(prev, next)
			got := copies(prev)
			for _, gain := range moves.Gains {
				c := place{gain.Region, gain.Partition, gain.Member}
				if got[c] {
					t.Fatalf("%s to %s: %v is there already", from, to, c)
				}
				if slices.Contains(gain.From, gain.Member) {
					t.Fatalf("%s to %s: %s gives to itself", from, to, gain.Member)
				}
				checkGivers(t, prev, gain)
				got[c] = true
			}
			for _, drop := range moves.Drops {
				c := place{drop.Region, drop.Partition, drop.Member}
				if !got[c] {
					t.Fatalf("%s to %s: %v is not there", from, to, c)
				}
				delete(got, c)
			}
			if want := copies(next); !sameSet(got, want) {
				t.Errorf("%s to %s: got %d copies, want %d", from, to, len(got), len(want))
			}
			if from == to && len(moves.Gains)+len(moves.Drops) > 0 {
				t.Errorf("%s to itself moves", from)
			}
		}
	}
}

type place struct {
	region    string
	partition ring.Partition
	member    string
}

func copies(table *ring.Table) map[place]bool {
	copies := make(map[place]bool)
	if table == nil {
		return copies
	}
	for _, region := range table.Regions() {
		for p := range ring.Partition(ring.Partitions) {
			for _, i := range table.Replicas(region, p) {
				copies[place{region, p, table.Member(i).ID}] = true
			}
		}
	}
	return copies
}

func sameSet(a, b map[place]bool) bool {
	for c := range a {
		if !b[c] {
			return false
		}
	}
	return len(a) == len(b)
}

// checkGivers wants the givers to be the previous ranks in their order.
func checkGivers(t *testing.T, prev *ring.Table, gain ring.Gain) {
	t.Helper()
	var want []string
	if prev != nil {
		for _, i := range prev.Ranks(gain.Region, gain.Partition) {
			if id := prev.Member(i).ID; id != gain.Member {
				want = append(want, id)
			}
		}
	}
	if !slices.Equal(gain.From, want) {
		t.Fatalf("%s %d to %s: got givers %v, want %v", gain.Region, gain.Partition, gain.Member, gain.From, want)
	}
}

func TestPlanIsOrdered(t *testing.T) {
	t.Parallel()
	spec := ring.DefaultSpec()
	members := nodes(spec, 8, 1)
	for i := range members {
		members[i].Region = []string{"us", "eu"}[i%2]
	}
	before := view(t, spec, members[:6]...).Current()
	after := view(t, spec, members...).Current()
	first := ring.Plan(before, after)
	sorted := slices.IsSortedFunc(first.Gains, func(a, b ring.Gain) int {
		if a.Region != b.Region {
			return map[bool]int{true: -1, false: 1}[a.Region < b.Region]
		}
		return int(a.Partition) - int(b.Partition)
	})
	if !sorted {
		t.Errorf("gains are not in order of region and partition")
	}
	again := ring.Plan(before, after)
	if !slices.EqualFunc(first.Gains, again.Gains, func(a, b ring.Gain) bool {
		return a.Region == b.Region && a.Partition == b.Partition && a.Member == b.Member && slices.Equal(a.From, b.From)
	}) || !slices.Equal(first.Drops, again.Drops) {
		t.Errorf("two plans of the same tables differ")
	}
}
