package scrub

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/node/store"
)

// metrics count what a Scrubber does.
type metrics struct {
	objects   *prometheus.CounterVec
	bytes     prometheus.Counter
	repairs   *prometheus.CounterVec
	conflicts *prometheus.CounterVec
	losses    prometheus.Gauge
	oldest    atomic.Int64 // unix seconds of the oldest check; 0 = nothing waits
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		objects: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmod_scrub_objects_total", Help: "Objects that were compared with their entries by result (good, bad, gone, unreadable).",
		}, []string{"result"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ringmod_scrub_bytes_total", Help: "Bytes that were compared.",
		}),
		repairs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmod_scrub_repairs_total", Help: "Bad copies by where a good one came from (peer, peer_other: other bytes than were recorded, upstream, request: fetched for a client, failed).",
		}, []string{"from"}),
		conflicts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmod_scrub_conflicts_total", Help: "Copies that disagree with another node's or upstream's by outcome (kept, replaced, undecided, refused).",
		}, []string{"outcome"}),
		losses: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ringmod_scrub_lost_objects", Help: "Objects whose copy was bad and that are not back yet.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.objects, m.bytes, m.repairs, m.conflicts, m.losses, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ringmod_scrub_oldest_check_seconds", Help: "Age of the check that lies back longest, as of the last look; 0 below 18 days.",
		}, m.oldestAge))
	}
	for _, v := range verdicts {
		m.objects.WithLabelValues(v)
	}
	return m
}

func (m *metrics) oldestAge() float64 {
	at := m.oldest.Load()
	if at == 0 {
		return 0
	}
	return time.Since(time.Unix(at, 0)).Seconds()
}

// waits notes what is to be checked.
func (m *metrics) waits(b store.Backlog, now time.Time) {
	at := int64(0)
	if len(b.Oldest) > 0 {
		at = min(b.Oldest[0].Checked.Unix(), now.Unix())
	}
	m.oldest.Store(at)
}

func (m *metrics) checked(v verdict) { m.objects.WithLabelValues(v.String()).Inc() }

func (m *metrics) read(n int) { m.bytes.Add(float64(n)) }

func (m *metrics) repaired(from string) { m.repairs.WithLabelValues(from).Inc() }

func (m *metrics) conflict(outcome string) { m.conflicts.WithLabelValues(outcome).Inc() }

func (m *metrics) lost(n int) { m.losses.Set(float64(n)) }
