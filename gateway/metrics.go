package gateway

import (
	"errors"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/internal/target"
)

// Kinds of requests beside those of targets. 0 is a request that names nothing.
const (
	kindPage   = uint8(target.SumdbTile) + 1
	kindHealth = kindPage + 1
	kindHook   = kindHealth + 1
	kinds      = kindHook + 1
)

func kindName(kind uint8) string {
	switch kind {
	case 0:
		return "none"
	case kindPage:
		return "page"
	case kindHealth:
		return "health"
	case kindHook:
		return "hook"
	default:
		return target.Kind(kind).String()
	}
}

// statuses are those that a gateway gives, in rising order.
var statuses = [...]int{200, 206, 304, 400, 403, 404, 405, 410, 412, 414, 416, 499, 500, 502, 503, 504}

// metrics counts requests. What a request touches is looked up once in the life
// of the process.
type metrics struct {
	requests *prometheus.CounterVec
	inFlight prometheus.Gauge
	bytes    prometheus.Counter
	duration [kinds]prometheus.Observer

	counters [kinds][len(statuses)][outcomes]atomic.Pointer[prometheus.Counter]
}

func newMetrics(to prometheus.Registerer, g *Gateway) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmod_http_requests_total",
			Help: "Requests finished, by what they asked for, status and what the cache did.",
		}, []string{"kind", "status", "cache"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ringmod_http_requests_in_flight", Help: "Requests being answered.",
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ringmod_http_response_bytes_total", Help: "Bytes of bodies sent.",
		}),
	}
	duration := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "ringmod_http_request_duration_seconds",
		Help:    "Time from a request's header to the end of its answer.",
		Buckets: []float64{.0001, .0005, .001, .005, .01, .05, .1, .5, 1, 5, 10, 60},
	}, []string{"kind"})
	for kind := range m.duration {
		m.duration[kind] = duration.WithLabelValues(kindName(uint8(kind)))
	}
	memory := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ringmod_http_memory_bytes", Help: "Bytes of small objects kept in memory.",
	}, func() float64 { return float64(g.immutable.used() + g.mutable.used()) })
	if to == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.requests, m.inFlight, m.bytes, duration, memory} {
		errs = append(errs, to.Register(c))
	}
	return m, errors.Join(errs...)
}

// observe counts a finished request.
func (m *metrics) observe(x *exchange, took time.Duration) {
	m.duration[x.kind].Observe(took.Seconds())
	m.bytes.Add(float64(x.bytes))
	m.counter(x.kind, x.status, x.outcome).Inc()
}

func (m *metrics) counter(kind uint8, status int, o outcome) prometheus.Counter {
	i, known := slices.BinarySearch(statuses[:], status)
	if !known {
		return m.requests.WithLabelValues(kindName(kind), strconv.Itoa(status), o.String())
	}
	slot := &m.counters[kind][i][o]
	if c := slot.Load(); c != nil {
		return *c
	}
	c := m.requests.WithLabelValues(kindName(kind), strconv.Itoa(status), o.String())
	slot.Store(&c)
	return c
}
