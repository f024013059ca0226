package ring_test

import (
	"fmt"
	"testing"

	"github.com/ringmod/ringmod/ring"
)

// node returns an active node of the spec's cluster.
func node(spec ring.Spec, id, zone string, weight int) ring.Member {
	return ring.Member{
		ID: id, Epoch: 1, State: ring.Active, Role: ring.Node, Region: "default",
		Zone: zone, Weight: weight, Addr: "192.0.2.1:8082", Spec: spec.Hash(),
	}
}

// nodes returns n active nodes, dealt to zones z0, z1 … in turn.
func nodes(spec ring.Spec, n, zones int) []ring.Member {
	members := make([]ring.Member, n)
	for i := range members {
		members[i] = node(spec, fmt.Sprintf("node-%03d", i), fmt.Sprintf("z%d", i%zones), 1)
	}
	return members
}

func table(t testing.TB, members ...ring.Member) *ring.Members {
	t.Helper()
	var table ring.Members
	for _, m := range members {
		if _, err := table.Put(m); err != nil {
			t.Fatal(err)
		}
	}
	return &table
}

func view(t testing.TB, spec ring.Spec, members ...ring.Member) *ring.View {
	t.Helper()
	v, err := ring.NewView(spec, table(t, members...))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func replicas(n int) ring.Spec {
	spec := ring.DefaultSpec()
	spec.Replicas = n
	return spec
}

// counts returns how many partitions a region's members have among their first n
// ranks, by id.
func counts(t *ring.Table, region string, n int) map[string]int {
	counts := make(map[string]int)
	for p := range ring.Partition(ring.Partitions) {
		for _, i := range t.Ranks(region, p)[:n] {
			counts[t.Member(i).ID]++
		}
	}
	return counts
}

func largest(counts map[string]int) int {
	most := 0
	for _, n := range counts {
		most = max(most, n)
	}
	return most
}
