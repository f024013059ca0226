package antientropy

import "github.com/prometheus/client_golang/prometheus"

// metrics count what a Comparer does.
type metrics struct {
	rounds, compared, differing, pulled, bytes, conflicts prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, c *Comparer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "ringmod_antientropy_" + name, Help: help})
	}
	m := &metrics{
		rounds:    counter("rounds_total", "Rounds of comparisons with the other nodes of the region."),
		compared:  counter("compared_total", "Partitions whose digests were compared with those of another node."),
		differing: counter("differing_total", "Partitions whose digests differed."),
		pulled:    counter("pulled_objects_total", "Objects found missing in a comparison and pulled."),
		bytes:     counter("pulled_bytes_total", "Bytes of the objects found missing in a comparison and pulled."),
		conflicts: counter("conflicts_total", "Objects of which another node was found to hold other bytes."),
	}
	if reg != nil {
		reg.MustRegister(m.rounds, m.compared, m.differing, m.pulled, m.bytes, m.conflicts,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "ringmod_antientropy_missing_bytes", Help: "Bytes of recently used objects that this node should hold and only others do.",
			}, func() float64 {
				p, _ := c.Progress()
				return float64(p.Missing)
			}))
	}
	return m
}
