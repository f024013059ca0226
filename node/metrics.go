package node

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

// Metrics count what a node does. The nil Metrics counts nothing.
type Metrics struct {
	answers  *prometheus.CounterVec
	fills    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	upstream *prometheus.CounterVec
}

// NewMetrics registers the node's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmod_node_answers_total", Help: "Objects answered by kind and source (disk, inflight, upstream).",
		}, []string{"kind", "source"}),
		fills: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmod_fills_total", Help: "Fills and refreshes by kind and result (ok or the reason of the failure).",
		}, []string{"kind", "result"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ringmod_fill_duration_seconds", Help: "How long fills and refreshes took.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2.5, 12),
		}, []string{"kind"}),
		upstream: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmod_upstream_requests_total", Help: "Requests sent to upstreams by host and status (0: no answer).",
		}, []string{"host", "status"}),
	}
	reg.MustRegister(m.answers, m.fills, m.duration, m.upstream)
	return m
}

// UpstreamRequest counts one request to an upstream; status 0 means that there
// was no answer.
func (m *Metrics) UpstreamRequest(host string, status int, _ time.Duration) {
	if m != nil {
		m.upstream.WithLabelValues(host, strconv.Itoa(status)).Inc()
	}
}

func (m *Metrics) answered(kind target.Kind, source cache.Source) {
	if m != nil {
		m.answers.WithLabelValues(kind.String(), source.String()).Inc()
	}
}

func (m *Metrics) filled(kind target.Kind, err error, took time.Duration) {
	if m == nil {
		return
	}
	result := "ok"
	if err != nil {
		result = cache.ReasonOf(err).String()
	}
	m.fills.WithLabelValues(kind.String(), result).Inc()
	m.duration.WithLabelValues(kind.String()).Observe(took.Seconds())
}
