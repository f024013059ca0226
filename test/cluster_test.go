package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// noSpool keeps a gateway from keeping zips for a while, so that each request for
// one goes to a node.
var noSpool = []string{"TMPDIR=/nonexistent"} //nolint:gochecknoglobals // a constant in all but name

// startCluster starts nodes n1, n2 … and gateways g1, g2 … on loopback, every
// second one without a spool, and waits until they know each other.
func startCluster(t *testing.T, fake *upstreamtest.Server, nodes, gateways int, flags ...string) (*harness.Cluster, []*harness.Process) {
	t.Helper()
	c := harness.NewCluster(t, slices.Concat([]string{"--upstream", fake.URL}, flags)...)
	for i := range nodes {
		c.StartNode(harness.Spec{Name: fmt.Sprintf("n%d", i+1)})
	}
	var front []*harness.Process
	for i := range gateways {
		s := harness.Spec{Name: fmt.Sprintf("g%d", i+1)}
		if i%2 == 1 {
			s.Env = noSpool
		}
		front = append(front, c.StartGateway(s))
	}
	c.WaitConverged()
	return c, front
}

// TestNodesDieUnderLoad kills a node and freezes another while clients read what
// both ranks hold. No client notices, and nothing is fetched of which a copy is
// left.
func TestNodesDieUnderLoad(t *testing.T) { //nolint:paralleltest // a long one reports latencies
	frozen, mods := 30*time.Second, 120
	if testing.Short() {
		t.Parallel()
		frozen, mods = 3*time.Second, 20
	}
	fake := upstreamtest.New(t)
	c, gateways := startCluster(t, fake, 5, 2)
	objects := place(t, c, fake, modules(t, fake, "m", mods, 300<<10))
	orphan := func(name string) bool { // of which n2 and n4 have the only copies
		return slices.Equal(slices.Sorted(slices.Values(c.Replicas("default", name))), []string{"n2", "n4"})
	}
	held := func(name string) bool { return !orphan(name) }
	l := startLoad(t, 20, objects.any(), gateways...)
	l.more(t, 300)
	for _, step := range []struct {
		name  string
		do    func()
		lasts time.Duration
	}{
		{"all nodes", func() {}, 0},
		{"n2 killed", c.Member("n2").Kill, 0},
		{"n4 frozen too", c.Member("n4").Freeze, frozen},
		{"n4 thawed", c.Member("n4").Thaw, 0},
		{"n2 restarted", func() { c.Restart("n2") }, 0},
	} {
		start := time.Now()
		step.do()
		time.Sleep(step.lasts)
		l.more(t, 300)
		l.report(t, step.name, start, time.Now(), held)
		l.report(t, step.name+", objects of n2 and n4 alone", start, time.Now(), orphan)
	}
	c.WaitConverged()
	l.more(t, 300)
	l.finish(t)
	for _, request := range fake.Requests() {
		if name := strings.TrimPrefix(request, "GET /"); held(name) {
			t.Errorf("upstream was asked for %s, which %v hold", name, c.Replicas("default", name))
		}
	}
	if c.Member("n4").Metric("ringmod_node_answers_total") == 0 {
		t.Error("the node that was frozen has answered nothing; the test shows nothing")
	}
}
