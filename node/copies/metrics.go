package copies

import (
	"errors"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// metrics count what a Keeper does.
type metrics struct {
	announcements *prometheus.CounterVec
	pulls         *prometheus.CounterVec
	bytes         prometheus.Counter
	secures       *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, k *Keeper) *metrics {
	m := &metrics{
		announcements: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmod_replication_announcements_total", Help: "Objects that replicas were told of by outcome (held, wanted, declined, conflict).",
		}, []string{"outcome"}),
		pulls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmod_replication_pulls_total", Help: "Objects that other nodes have announced by result of the pull (ok, held, changed, failed).",
		}, []string{"result"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ringmod_replication_pulled_bytes_total", Help: "Bytes pulled from other nodes.",
		}),
	}
	m.secures = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ringmod_replication_secured_total", Help: "Objects that were to be at a second node before they count as stored (--durability 2) by result (ok, alone: no other replica was in reach, failed).",
	}, []string{"result"})
	if reg != nil {
		reg.MustRegister(m.secures, m.announcements, m.pulls, m.bytes, hintCollector{k}, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ringmod_replication_lag_seconds", Help: "Age of the oldest stored object that a replica has not confirmed.",
		}, func() float64 { return k.Lag().Seconds() }))
	}
	return m
}

func (m *metrics) announced(o ringmodv1.Outcome) {
	name := ringmodv1.Outcome_OUTCOME_DECLINED.String()
	if _, known := ringmodv1.Outcome_name[int32(o)]; known && o != ringmodv1.Outcome_OUTCOME_UNSPECIFIED {
		name = o.String()
	}
	m.announcements.WithLabelValues(strings.ToLower(strings.TrimPrefix(name, "OUTCOME_"))).Inc()
}

func (m *metrics) secured(err error) {
	result := "ok"
	switch {
	case errors.Is(err, ErrAlone):
		result = "alone"
	case err != nil:
		result = "failed"
	}
	m.secures.WithLabelValues(result).Inc()
}

func (m *metrics) pulled(result string) { m.pulls.WithLabelValues(result).Inc() }

func (m *metrics) moved(n int) { m.bytes.Add(float64(n)) }

// hintCollector shows the hints of each member that has any.
type hintCollector struct{ keeper *Keeper }

func hintsDesc() *prometheus.Desc {
	return prometheus.NewDesc("ringmod_replication_hints", "Objects that wait for a member that was down.", []string{"member"}, nil)
}

// Describe implements prometheus.Collector.
func (hintCollector) Describe(ch chan<- *prometheus.Desc) { ch <- hintsDesc() }

// Collect implements prometheus.Collector.
func (c hintCollector) Collect(ch chan<- prometheus.Metric) {
	for _, b := range c.keeper.all() {
		if n := b.hints(); n > 0 {
			ch <- prometheus.MustNewConstMetric(hintsDesc(), prometheus.GaugeValue, float64(n), b.id)
		}
	}
}
