package member

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ringmod/ringmod/node/member/membertest"
	"github.com/ringmod/ringmod/ring"
)

// observed is a cluster as a process might see it.
type observed struct{ view *ring.View }

func (observed) Members() []Status {
	status := func(role ring.Role, state ring.State, up bool) Status {
		return Status{Entry: ring.Member{Role: role, State: state}, Up: up}
	}
	return []Status{
		status(ring.Node, ring.Active, true), status(ring.Node, ring.Active, false), status(ring.Node, ring.Active, true),
		status(ring.Node, ring.Forgotten, false), status(ring.Gateway, ring.Active, true),
	}
}

func (observed) Stats() Stats {
	return Stats{ViewChanges: 1, ViewErrors: 2, Refused: 3, Joins: 5, JoinFailures: 4, Health: 6}
}

func (o observed) View() *ring.View { return o.view }

func TestMetrics(t *testing.T) {
	t.Parallel()
	view, err := ring.NewView(ring.DefaultSpec(), &ring.Members{})
	if err != nil {
		t.Fatal(err)
	}
	want := `
ringmod_gossip_health_score 6
ringmod_members{role="gateway",state="active"} 1
ringmod_members{role="gateway",state="forgotten"} 0
ringmod_members{role="gateway",state="joining"} 0
ringmod_members{role="gateway",state="leaving"} 0
ringmod_members{role="gateway",state="left"} 0
ringmod_members{role="node",state="active"} 3
ringmod_members{role="node",state="forgotten"} 1
ringmod_members{role="node",state="joining"} 0
ringmod_members{role="node",state="leaving"} 0
ringmod_members{role="node",state="left"} 0
ringmod_members_up{role="gateway",state="active"} 1
ringmod_members_up{role="gateway",state="joining"} 0
ringmod_members_up{role="gateway",state="leaving"} 0
ringmod_members_up{role="node",state="active"} 2
ringmod_members_up{role="node",state="joining"} 0
ringmod_members_up{role="node",state="leaving"} 0
ringmod_membership_refused_total 3
ringmod_rejoin_failures_total 4
ringmod_rejoins_total 5
ringmod_view{digest="81fda63de87b7211"} 1
ringmod_view_changes_total 1
ringmod_view_errors_total 2
ringmod_view_moving_nodes 0
`
	if got := "\n" + exposed(t, observed{view}); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	lines := strings.Count(want, "\n") - 1
	tr, err := membertest.New(1).Listen(at(1))
	if err != nil {
		t.Fatal(err)
	}
	cfg := (&world{}).config(1)
	cfg.Transport = tr
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f, err := NewFollower(FollowerConfig{Cluster: "c", From: []string{"h:1"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []Observed{m, f} {
		if got := strings.Count(exposed(t, o), "\n"); got != lines {
			t.Errorf("%T has %d metrics, want %d", o, got, lines)
		}
	}
}

// exposed returns what Prometheus gets, without the words.
func exposed(t *testing.T, o Observed) string {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(NewCollector(o)); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	var b strings.Builder
	for line := range strings.Lines(w.Body.String()) {
		if !strings.HasPrefix(line, "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}
