package node_test

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
)

func TestClassOf(t *testing.T) {
	t.Parallel()
	class := node.ClassOf("corp.example/*,*.secret.example")
	for name, want := range map[string]store.Class{
		"corp.example/m/@v/v1.0.0.zip":   store.Private,
		"corp.example/!m/v2/@v/v2.0.0.m": store.Private,
		"a.secret.example/@v/v1.0.0.mod": store.Private,
		"corp.example/@v/v1.0.0.zip":     store.Public,
		"example.com/m/@v/v1.0.0.zip":    store.Public,
		"corp.example/m":                 store.Public,
	} {
		if got := class(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

func TestDiskMetrics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	u := store.Usage{Objects: 1, Taken: 2, Reserved: 3, Limit: 4, ReadOnly: true}
	u.Evicted[store.Public] = store.Eviction{Objects: 5, Bytes: 6}
	node.RegisterDisk(reg, func() store.Usage { return u })
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			got[f.GetName()] += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"ringmod_disk_objects": 1, "ringmod_disk_bytes": 2, "ringmod_disk_reserved_bytes": 3, "ringmod_disk_limit_bytes": 4,
		"ringmod_disk_read_only": 1, "ringmod_disk_evicted_objects_total": 5, "ringmod_disk_evicted_bytes_total": 6,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}
