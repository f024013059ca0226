package node

import (
	"errors"
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
	refused  *prometheus.CounterVec
	bytes    prometheus.Counter

	supplies   *prometheus.CounterVec
	forwards   *prometheus.CounterVec
	takeovers  prometheus.Counter
	duplicates prometheus.Counter
}

// NewMetrics registers the node's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmod_node_answers_total", Help: "Objects answered by kind and source (disk, inflight, peer, region, upstream).",
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
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmod_sumdb_refused_total", Help: "Answers of checksum databases that were refused by database and reason (forked, altered, older).",
		}, []string{"sumdb", "reason"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ringmod_node_sent_bytes_total", Help: "Bytes of objects sent to other members.",
		}),
		supplies: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmod_fill_supplies_total", Help: "Objects that were filled by kind and origin (peer: a copy in the region, home: a coordinator, upstream).",
		}, []string{"kind", "origin"}),
		forwards: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmod_fill_forwards_total", Help: "Requests to coordinators by result (ok, trouble with the node, or the reason it gave).",
		}, []string{"result"}),
		takeovers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ringmod_fill_takeovers_total", Help: "Fills and refreshes that went on without a coordinator that failed.",
		}),
		duplicates: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ringmod_fill_duplicates_total", Help: "Fills that found their object stored when they were done.",
		}),
	}
	reg.MustRegister(m.answers, m.fills, m.duration, m.upstream, m.refused, m.bytes, m.supplies, m.forwards, m.takeovers, m.duplicates)
	return m
}

// UpstreamRequest counts one request to an upstream; status 0 means that there
// was no answer.
func (m *Metrics) UpstreamRequest(host string, status int, _ time.Duration) {
	if m != nil {
		m.upstream.WithLabelValues(host, strconv.Itoa(status)).Inc()
	}
}

// SumdbRefused counts one answer of a checksum database that was refused.
func (m *Metrics) SumdbRefused(db, why string) {
	if m != nil {
		m.refused.WithLabelValues(db, why).Inc()
	}
}

func (m *Metrics) answered(kind target.Kind, source cache.Source) {
	if m != nil {
		m.answers.WithLabelValues(kind.String(), source.String()).Inc()
	}
}

func (m *Metrics) sent(n int) {
	if m != nil {
		m.bytes.Add(float64(n))
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

func (m *Metrics) supplied(kind target.Kind, origin string) {
	if m != nil {
		m.supplies.WithLabelValues(kind.String(), origin).Inc()
	}
}

func (m *Metrics) forwarded(err error) {
	if m == nil {
		return
	}
	result := "ok"
	if e, said := errors.AsType[*cache.Error](err); said {
		result = e.Reason.String()
	} else if err != nil {
		result = "trouble"
	}
	m.forwards.WithLabelValues(result).Inc()
}

func (m *Metrics) takenOver() {
	if m != nil {
		m.takeovers.Inc()
	}
}

func (m *Metrics) duplicated() {
	if m != nil {
		m.duplicates.Inc()
	}
}
