package audit

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count what an Auditor does.
type metrics struct {
	looks  *prometheus.CounterVec
	events *prometheus.CounterVec
	open   *prometheus.GaugeVec
	kept   atomic.Int64 // findings, closed ones included
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		looks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmod_audit_looks_total", Help: "Versions that upstream was asked about by result (same, there: without a commit, untold, moved, vanished, gone: not held any more, trouble).",
		}, []string{"result"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmod_audit_events_total", Help: "Versions that upstream was seen to have changed (moved, vanished) or to have again as before (restored).",
		}, []string{"change"}),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ringmod_audit_findings", Help: "Held versions that upstream has changed (moved, vanished).",
		}, []string{"change"}),
	}
	if reg != nil {
		reg.MustRegister(m.looks, m.events, m.open)
	}
	for _, v := range verdicts {
		m.looks.WithLabelValues(v)
	}
	for _, change := range []string{moved.String(), vanished.String(), "restored"} {
		m.events.WithLabelValues(change)
	}
	return m
}

func (m *metrics) looked(v verdict) { m.looks.WithLabelValues(v.String()).Inc() }

func (m *metrics) event(change string) { m.events.WithLabelValues(change).Inc() }

func (m *metrics) count(kept int64, open map[verdict]int) {
	m.kept.Store(kept)
	for v, n := range open {
		m.open.WithLabelValues(v.String()).Set(float64(n))
	}
}
