package cluster

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/internal/cache"
)

// metrics count what a Cluster does.
type metrics struct {
	requests  *prometheus.CounterVec
	hedges    *prometheus.CounterVec
	resumes   *prometheus.CounterVec
	failovers *prometheus.CounterVec
	repairs   *prometheus.CounterVec
	spreads   *prometheus.CounterVec
	denied    prometheus.Counter
}

// newMetrics registers with to, unless that is nil.
func newMetrics(to prometheus.Registerer, ss *spools) *metrics {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ringmod_cluster_" + name, Help: help}, labels)
	}
	m := &metrics{
		requests:  counters("requests_total", "Requests to the cluster by result (ok or the reason of the failure) and source.", "result", "source"),
		hedges:    counters("hedges_total", "Second requests to a slow node's replica by result: won, lost, or denied by the budget.", "result"),
		resumes:   counters("resumes_total", "Streams that broke, by result: ok when another node went on, failed.", "result"),
		failovers: counters("failovers_total", "Requests that a node could not serve and another was asked, by reason.", "reason"),
		repairs:   counters("repairs_total", "Copies that a replica lacked by what it said when it was told (wanted, held, declined, conflict), failed, or dropped.", "result"),
		spreads:   counters("spread_total", "Requests for hot objects that went to spare ranks by result: ok, missing when a replica was asked then, failed.", "result"),
		denied: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ringmod_cluster_retries_denied_total", Help: "Requests that were not tried elsewhere after a node was busy, for want of budget.",
		}),
	}
	if to == nil {
		return m
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ringmod_cluster_" + name, Help: help}, func() float64 {
			ss.mu.Lock()
			defer ss.mu.Unlock()
			return value()
		})
	}
	to.MustRegister(m.requests, m.hedges, m.resumes, m.failovers, m.repairs, m.spreads, m.denied,
		gauge("spool_bytes", "Bytes reserved for zips on their way to clients.", func() float64 { return float64(ss.used) }),
		gauge("spools", "Files of zips on their way to clients.", func() float64 { return float64(ss.files) }))
	return m
}

func (m *metrics) request(obj *cache.Object, err error) {
	if err != nil {
		m.requests.WithLabelValues(cache.ReasonOf(err).String(), "").Inc()
		return
	}
	m.requests.WithLabelValues("ok", obj.Source.String()).Inc()
}

func (m *metrics) failover(err error) { m.failovers.WithLabelValues(why(err)).Inc() }

func (m *metrics) repaired(result string) { m.repairs.WithLabelValues(result).Inc() }

// spread counts how a spare rank did.
func (m *metrics) spread(err error) {
	result := "ok"
	switch {
	case err != nil && cache.ReasonOf(err) == cache.NotCached:
		result = "missing"
	case err != nil:
		result = "failed"
	}
	m.spreads.WithLabelValues(result).Inc()
}

func (m *metrics) hedge(result string) { m.hedges.WithLabelValues(result).Inc() }

// hedged counts how a hedge ended, if there was one.
func (m *metrics) hedged(was, won bool) {
	switch {
	case !was:
	case won:
		m.hedge("won")
	default:
		m.hedge("lost")
	}
}

func (m *metrics) resumed(err error) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	m.resumes.WithLabelValues(result).Inc()
}
