package test

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// TestRollingUpgrade restarts all nodes one after the other under load, each on
// other ports than before and as soon as the one before is ready. No client notices,
// and no object moves.
func TestRollingUpgrade(t *testing.T) { //nolint:paralleltest // reports latencies
	for _, nodes := range []int{3, 6} {
		if nodes == 3 || !testing.Short() {
			t.Run(fmt.Sprint(nodes, " nodes"), func(t *testing.T) { upgrade(t, nodes) })
		}
	}
}

func upgrade(t *testing.T, nodes int) {
	t.Helper()
	mods := 40 * nodes
	if testing.Short() {
		mods = 20
	}
	fake := upstreamtest.New(t)
	c, gateways := startCluster(t, fake, nodes, 2)
	objects := place(t, c, fake, modules(t, fake, "m", mods, 300<<10))
	before := holders(c, objects)
	l := startLoad(t, 20, objects.any(), gateways...)
	start := time.Now()
	for i := range nodes {
		name := fmt.Sprintf("n%d", i+1)
		l.more(t, 200)
		c.Member(name).Stop()
		l.more(t, 200)
		ready := c.Restart(name).WaitReady(time.Minute)
		t.Logf("%s was ready %v after its start", name, ready.Round(10*time.Millisecond))
	}
	l.more(t, 200)
	l.finish(t)
	l.report(t, "rolling upgrade", start, time.Now(), nil)
	if got := fake.Requests(); len(got) > 0 {
		t.Errorf("upstream requests %q, want none", got)
	}
	if after := holders(c, objects); !reflect.DeepEqual(after, before) {
		t.Errorf("objects are on %v, want them where they were, on %v", after, before)
	}
}

// holders tells where each object lies.
func holders(c *harness.Cluster, objects library) map[string][]string {
	all := map[string][]string{}
	for name := range objects {
		all[name] = c.Holders(name)
	}
	return all
}
