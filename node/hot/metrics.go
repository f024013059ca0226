package hot

import "github.com/prometheus/client_golang/prometheus"

// metrics count what Keys does.
type metrics struct {
	pulls *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, k *Keys) *metrics {
	m := &metrics{pulls: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ringmod_hot_pulls_total", Help: "Copies of hot objects of other nodes by result (ok, failed).",
	}, []string{"result"})}
	if reg != nil {
		reg.MustRegister(m.pulls, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ringmod_hot_versions", Help: "Module versions that many ask this node for, so that callers are told to ask others, too.",
		}, func() float64 { return float64(k.count()) }))
	}
	return m
}

func (m *metrics) pulled(err error) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	m.pulls.WithLabelValues(result).Inc()
}
