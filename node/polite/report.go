package polite

import (
	"cmp"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Report is how a host does, as one process has seen it.
type Report struct {
	Host     string
	State    State
	Left     time.Duration // for which it is not asked
	Requests uint64        // sent
	Rate     float64       // of those, a second, over the last 10 s or so
	Trouble  string        // the latest, one line; "" = none
	Troubled time.Time     // when that was
}

// Reports tells of at most so many hosts: those in trouble first, then those asked most.
func (s *Hosts) Reports(most int) []Report {
	var all []Report
	for _, h := range s.all() {
		if r := h.report(); r.Requests > 0 || r.State != OK {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b Report) int {
		return cmp.Or(-cmp.Compare(min(a.State, Held), min(b.State, Held)), -cmp.Compare(a.Requests, b.Requests), cmp.Compare(a.Host, b.Host))
	})
	return all[:min(len(all), most)]
}

func (h *Host) report() Report {
	hold := h.current()
	h.mu.Lock()
	defer h.mu.Unlock()
	return Report{
		Host: h.name, State: hold.State, Left: hold.Left, Requests: h.requests, Rate: h.fading(time.Now()), Trouble: h.trouble, Troubled: h.troubled,
	}
}

// maxLabels is how many hosts have metrics of their own, as their names come from who asks:
// the first that have answered, and never less than all proxies. The others are one.
const (
	maxLabels = 64
	otherHost = "other"
)

// label is what metrics call a host.
func (h *Host) label() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.labelled && (h.kind == Proxy || !h.answered.IsZero() && h.set.labels.Add(1) <= maxLabels) {
		h.labelled = true
	}
	if h.labelled {
		return h.name
	}
	return otherHost
}

// Register adds the metrics of s to reg.
func (s *Hosts) Register(reg prometheus.Registerer) {
	label := []string{"host"}
	reg.MustRegister(&collector{
		hosts:    s,
		state:    prometheus.NewDesc("ringmod_upstream_host_state", "How an upstream host does: 0 ok, 1 held (it asks to be left alone), 2 down.", label, nil),
		held:     prometheus.NewDesc("ringmod_upstream_host_held_seconds", "How long an upstream host is still not asked.", label, nil),
		requests: prometheus.NewDesc("ringmod_upstream_host_requests_total", "Requests, or commands of version control, to upstream hosts.", label, nil),
	})
}

type collector struct {
	hosts                 *Hosts
	state, held, requests *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{c.state, c.held, c.requests} {
		descs <- desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(metrics chan<- prometheus.Metric) {
	sums := make(map[string]Report)
	for _, h := range c.hosts.all() {
		r, label := h.report(), h.label()
		sum := sums[label]
		sum.State, sum.Left, sum.Requests = max(sum.State, r.State), max(sum.Left, r.Left), sum.Requests+r.Requests
		sums[label] = sum
	}
	for label, sum := range sums {
		metrics <- prometheus.MustNewConstMetric(c.state, prometheus.GaugeValue, float64(sum.State), label)
		metrics <- prometheus.MustNewConstMetric(c.held, prometheus.GaugeValue, sum.Left.Seconds(), label)
		metrics <- prometheus.MustNewConstMetric(c.requests, prometheus.CounterValue, float64(sum.Requests), label)
	}
}
