package peers

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics count what peers answer. The nil metrics counts nothing.
type metrics struct {
	requests *prometheus.CounterVec
}

func newMetrics(to prometheus.Registerer, s *Set) *metrics {
	if to == nil {
		return nil
	}
	m := &metrics{requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ringmod_peer_requests_total",
		Help: "Objects asked of peers by result: ok, failed, flawed, overloaded, canceled or the reason that the peer gave.",
	}, []string{"result"})}
	to.MustRegister(m.requests, collector{s})
	return m
}

func (m *metrics) count(result string) {
	if m != nil {
		m.requests.WithLabelValues(result).Inc()
	}
}

var (
	breakerDesc = prometheus.NewDesc("ringmod_peer_breaker", "State of the breaker: 0 closed, 1 on trial, 2 open.", []string{"peer"}, nil)
	flightDesc  = prometheus.NewDesc("ringmod_peer_in_flight", "Objects being received from the peer.", []string{"peer"}, nil)
	p95Desc     = prometheus.NewDesc("ringmod_peer_p95_seconds", "95th percentile of recent times to a first message of what the peer had at hand; 0: none.", []string{"peer"}, nil)
)

// collector shows peers as they are.
type collector struct{ set *Set }

// Describe implements prometheus.Collector.
func (collector) Describe(to chan<- *prometheus.Desc) {
	to <- breakerDesc
	to <- flightDesc
	to <- p95Desc
}

// Collect implements prometheus.Collector.
func (c collector) Collect(to chan<- prometheus.Metric) {
	c.set.mu.RLock()
	peers := make([]*peer, 0, len(c.set.peers))
	for _, p := range c.set.peers {
		peers = append(peers, p)
	}
	c.set.mu.RUnlock()
	for _, p := range peers {
		st := p.stats()
		to <- prometheus.MustNewConstMetric(breakerDesc, prometheus.GaugeValue, float64(p.breaker.look()), p.id)
		to <- prometheus.MustNewConstMetric(flightDesc, prometheus.GaugeValue, float64(st.InFlight), p.id)
		to <- prometheus.MustNewConstMetric(p95Desc, prometheus.GaugeValue, st.P95.Seconds(), p.id)
	}
}
