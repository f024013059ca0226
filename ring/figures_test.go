package ring_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/ringmod/ringmod/ring"
)

// TestFigures holds the placement to the figures that it was chosen for. A row
// that fails means that nodes fill unevenly, that a join copies too much, or
// that the death of a node overloads another.
func TestFigures(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		replicas, zones, nodes int
		owners                 float64 // partitions of the fullest owner / mean, at most
		copies                 float64 // partitions of the fullest replica / mean, at most
		join, leave            float64 // copies made / the least possible, at most
		death                  float64 // fullest survivor / mean before, on average over victims, at most
	}{
		{2, 1, 3, 1.16, 1.05, 1.10, 0, 1.75},
		{2, 1, 6, 1.16, 1.08, 1.15, 1.15, 1.40},
		{2, 1, 12, 1.16, 1.10, 1.15, 1.15, 1.30},
		{2, 1, 24, 1.17, 1.18, 1.20, 1.20, 1.25},
		{2, 3, 6, 1.16, 1.08, 1.15, 1.25, 1.40},
		{2, 3, 12, 1.16, 1.10, 1.20, 1.30, 1.30},
		{3, 3, 9, 1.16, 1.08, 1.15, 1.30, 1.35},
		{3, 3, 24, 1.17, 1.13, 1.30, 1.30, 1.25},
		{3, 3, 48, 1.17, 1.15, 1.30, 1.40, 1.25},
	} {
		t.Run(fmt.Sprintf("replicas=%d,zones=%d,nodes=%d", test.replicas, test.zones, test.nodes), func(t *testing.T) {
			t.Parallel()
			if testing.Short() && test.nodes > 12 {
				t.Skip("large")
			}
			f := measure(t, replicas(test.replicas), test.nodes, test.zones)
			for _, figure := range []struct {
				name      string
				got, most float64
			}{
				{"owners", f.owners, test.owners},
				{"copies", f.copies, test.copies},
				{"join", f.join, test.join},
				{"leave", f.leave, test.leave},
				{"death", f.death, test.death},
			} {
				t.Logf("%s %.3f", figure.name, figure.got)
				if figure.got > figure.most {
					t.Errorf("%s: got %.3f, want at most %.2f", figure.name, figure.got, figure.most)
				}
			}
		})
	}
}

type figures struct{ owners, copies, join, leave, death float64 }

func measure(t *testing.T, spec ring.Spec, n, zones int) figures {
	t.Helper()
	const rounds = 3
	all := nodes(spec, n, zones)
	before := view(t, spec, all...).Current()
	mean := float64(ring.Partitions) / float64(n)
	f := figures{
		owners: float64(largest(counts(before, "default", 1))) / mean,
		copies: float64(largest(counts(before, "default", spec.Replicas))) / mean / float64(spec.Replicas),
	}
	for i := range rounds {
		newcomer := node(spec, fmt.Sprintf("new-%d", i), fmt.Sprintf("z%d", n%zones), 1)
		joined := view(t, spec, append(slices.Clone(all), newcomer)...).Current()
		f.join += copied(before, joined) / (float64(spec.Replicas) / float64(n+1)) / rounds

		victim := i * (n - 1) / (rounds - 1)
		f.death += float64(largest(survivors(before, all[victim].ID))) / mean / rounds
		if n > spec.Replicas+1 {
			left := view(t, spec, slices.Delete(slices.Clone(all), victim, victim+1)...).Current()
			f.leave += copied(before, left) / (float64(spec.Replicas) / float64(n)) / rounds
		}
	}
	return f
}

// copied returns the copies that a change makes, for each partition.
func copied(before, after *ring.Table) float64 {
	return float64(len(ring.Plan(before, after).Gains)) / ring.Partitions
}

// survivors counts the partitions that each member answers for when one is dead:
// those it owns and those it is the second of.
func survivors(t *ring.Table, dead string) map[string]int {
	counts := make(map[string]int)
	for p := range ring.Partition(ring.Partitions) {
		ranks := t.Ranks("default", p)
		first := t.Member(ranks[0]).ID
		if first == dead {
			first = t.Member(ranks[1]).ID
		}
		counts[first]++
	}
	return counts
}
