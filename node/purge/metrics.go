package purge

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/node/store"
)

// metrics count what a Keeper does.
type metrics struct{ objects, bytes prometheus.Counter }

func newMetrics(reg prometheus.Registerer, set *Set) *metrics {
	m := &metrics{
		objects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ringmod_purged_objects_total", Help: "Objects removed because they were purged.",
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ringmod_purged_bytes_total", Help: "Bytes of the objects removed because they were purged.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.objects, m.bytes, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ringmod_tombstones", Help: "Purges that are remembered, lifted ones included.",
		}, func() float64 { return float64(set.Len()) }))
	}
	return m
}

func (m *metrics) removed(p store.Purged) {
	m.objects.Add(float64(p.Objects))
	m.bytes.Add(float64(p.Bytes))
}
