package member

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/ring"
)

// Observed is what a collector reads; *Membership and *Follower are ones.
type Observed interface {
	Members() []Status
	Stats() Stats
	View() *ring.View
}

// NewCollector returns the metrics of a process's view of its cluster, read at each
// collection.
func NewCollector(o Observed) prometheus.Collector {
	describe := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("ringmod_"+name, help, labels, nil)
	}
	c := &collector{
		observed: o,
		members:  describe("members", "Members in the table by state and role.", "state", "role"),
		up:       describe("members_up", "Members that are in and reachable, by state and role.", "state", "role"),
		view:     describe("view", "Always 1; the digest is the same wherever placement is.", "digest"),
		moving:   describe("view_moving_nodes", "Nodes that join or leave, as the placement in use has them."),
	}
	add := func(name, help string, kind prometheus.ValueType, value func(Stats) float64) {
		c.stats = append(c.stats, stat{describe(name, help), kind, value})
	}
	add("view_changes_total", "Changes of the placement.", prometheus.CounterValue,
		func(s Stats) float64 { return float64(s.ViewChanges) })
	add("view_errors_total", "Views that could not be built; the one before stayed in use.", prometheus.CounterValue,
		func(s Stats) float64 { return float64(s.ViewErrors) })
	add("rejoins_total", "Attempts to join members that should be there and are not.", prometheus.CounterValue,
		func(s Stats) float64 { return float64(s.Joins) })
	add("rejoin_failures_total", "Those attempts that failed.", prometheus.CounterValue,
		func(s Stats) float64 { return float64(s.JoinFailures) })
	add("membership_refused_total", "Entries and tables from others that were refused.", prometheus.CounterValue,
		func(s Stats) float64 { return float64(s.Refused) })
	add("gossip_health_score", "How late this process is at gossip: 0 is well.", prometheus.GaugeValue,
		func(s Stats) float64 { return float64(s.Health) })
	return c
}

type collector struct {
	observed                  Observed
	members, up, view, moving *prometheus.Desc
	stats                     []stat
}

type stat struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(Stats) float64
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, out) }

// Collect implements prometheus.Collector. States and roles without members are
// there too, so that their end is seen.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	type group struct {
		state ring.State
		role  ring.Role
	}
	all, up := make(map[group]int), make(map[group]int)
	for _, s := range c.observed.Members() {
		g := group{s.Entry.State, s.Entry.Role}
		all[g]++
		if s.Up {
			up[g]++
		}
	}
	for role := ring.Node; role <= ring.Gateway; role++ {
		for state := ring.Joining; state <= ring.Forgotten; state++ {
			g := group{state, role}
			labels := []string{state.String(), role.String()}
			out <- prometheus.MustNewConstMetric(c.members, prometheus.GaugeValue, float64(all[g]), labels...)
			if !state.IsTombstone() {
				out <- prometheus.MustNewConstMetric(c.up, prometheus.GaugeValue, float64(up[g]), labels...)
			}
		}
	}
	view, moving := c.observed.View(), 0
	for _, m := range view.Members() {
		if m.State != ring.Active {
			moving++
		}
	}
	out <- prometheus.MustNewConstMetric(c.view, prometheus.GaugeValue, 1, fmt.Sprintf("%016x", view.Digest()))
	out <- prometheus.MustNewConstMetric(c.moving, prometheus.GaugeValue, float64(moving))
	stats := c.observed.Stats()
	for _, s := range c.stats {
		out <- prometheus.MustNewConstMetric(s.desc, s.kind, s.value(stats))
	}
}
