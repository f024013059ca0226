package test

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// TestDurabilityTwo kills the node that has fetched a module the moment that its client
// has it: another node has it by then, and upstream is not asked again.
func TestDurabilityTwo(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t)
	c := harness.NewCluster(t, "--upstream", fake.URL)
	for _, name := range []string{"n1", "n2", "n3"} {
		c.StartNode(harness.Spec{Name: name, Flags: []string{"--durability", "2"}})
	}
	front := c.StartGateway(harness.Spec{Name: "g1", Env: noSpool})
	other := c.StartGateway(harness.Spec{Name: "g2", Env: noSpool})
	c.WaitConverged()
	objects := libraryOf(fake, modules(t, fake, "m", 8, 1<<20))
	maps.DeleteFunc(objects, func(name string, _ [32]byte) bool { return c.Replicas("default", name)[0] != "n1" })
	if len(objects) == 0 {
		t.Fatal("n1 owns none of the modules")
	}
	readAll(t, front, objects)
	c.Member("n1").Kill()
	readAll(t, other, objects)
	for name := range objects {
		if got := fake.Count("/" + name); got != 1 {
			t.Errorf("%s: upstream was asked %d times, want once", name, got)
		}
	}
}

// TestDurabilityTwoWithOneNode fetches while no second node is there: the client gets
// what it asks for and may see that there is one copy, which gets its second when it can.
func TestDurabilityTwoWithOneNode(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t)
	c := harness.NewCluster(t, "--upstream", fake.URL)
	for _, name := range []string{"n1", "n2"} {
		c.StartNode(harness.Spec{Name: name, Flags: []string{"--durability", "2"}})
	}
	front := c.StartGateway(harness.Spec{Name: "g1", Env: noSpool})
	c.WaitConverged()
	c.Member("n2").Kill()
	objects := libraryOf(fake, modules(t, fake, "m", 1, 300<<10))
	for name, sum := range objects {
		start := time.Now()
		if err := fetchWhole(front, name, sum); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Logf("%s took %v", name, time.Since(start))
	}
	m := modules(t, fake, "small", 1, 0)[0]
	resp, err := front.Client().Get(front.URL() + "/" + m.Path + "/@v/" + m.Version + ".mod")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got, want := resp.Header.Get("Cache-Status"), `ringmod; fwd=miss; detail="upstream, one copy"`; resp.StatusCode != http.StatusOK || got != want {
		t.Errorf("%s, Cache-Status %s, want %s", resp.Status, got, want)
	}
	n1 := c.Member("n1")
	if got := n1.Metric(`ringmod_replication_secured_total{result="alone"}`) + n1.Metric(`ringmod_replication_secured_total{result="failed"}`); got != float64(len(objects)+1) {
		t.Errorf("%v objects are counted as not secured, want %d", got, len(objects)+1)
	}
	if !strings.Contains(n1.Log(), "stored at this node only") {
		t.Error("the log does not tell")
	}
	c.Restart("n2")
	for name := range objects {
		eventually(t, name+" at both nodes", func() bool {
			return slices.Equal(slices.Sorted(slices.Values(c.Holders(name))), []string{"n1", "n2"})
		})
	}
}

// TestReplicationLag fetches many modules at once: the lag, as metrics have it, stays
// below 5 s and is 0 when all copies are there; status shows it meanwhile.
func TestReplicationLag(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t)
	c, gateways := startCluster(t, fake, 3, 1)
	lag := func() (longest float64) {
		for _, p := range c.Running() {
			if p.GRPC != "" {
				longest = max(longest, p.Metric("ringmod_replication_lag_seconds"))
			}
		}
		return longest
	}
	objects := libraryOf(fake, modules(t, fake, "m", 40, 1<<20))
	readTogether(t, gateways[0], objects)
	start, most, shown := time.Now(), 0., false
	eventually(t, "all copies", func() bool {
		now := lag()
		most = max(most, now)
		if now > 0 && !shown {
			_, text, _ := harness.Run(t, nil, "status", "--addr", c.Member("n1").GRPC)
			shown = strings.Contains(text, "COPIES LAG")
		}
		for name := range objects {
			if len(c.Holders(name)) < 2 {
				return false
			}
		}
		return now == 0
	})
	t.Logf("all copies %v after the last answer, longest lag %.1f s, status has shown it: %t", time.Since(start), most, shown)
	if most > 5 {
		t.Errorf("a lag of %.1f s, want 5 s at most", most)
	}
	if most > 0 && !shown {
		t.Error("status has never shown a lag")
	}
}

// TestDurabilityTwoAtASpareRank fetches while one of three nodes is away: the two others
// have everything, and the one that comes back gets its copies from either.
func TestDurabilityTwoAtASpareRank(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t)
	c := harness.NewCluster(t, "--upstream", fake.URL)
	for _, name := range []string{"n1", "n2", "n3"} {
		c.StartNode(harness.Spec{Name: name, Flags: []string{"--durability", "2"}})
	}
	front := c.StartGateway(harness.Spec{Name: "g1", Env: noSpool})
	c.WaitConverged()
	c.Member("n3").Kill()
	objects := libraryOf(fake, modules(t, fake, "m", 4, 300<<10))
	readAll(t, front, objects)
	for name := range objects {
		if got := c.Holders(name); len(got) != 2 {
			t.Errorf("%s is at %q when its client has it, want two nodes", name, got)
		}
	}
	c.Restart("n3")
	for name := range objects {
		if slices.Contains(c.Replicas("default", name), "n3") {
			eventually(t, name+" at n3", func() bool { return slices.Contains(c.Holders(name), "n3") })
		}
	}
	if got := len(fake.Requests()); got != len(objects) {
		t.Errorf("%d upstream requests, want %d", got, len(objects))
	}
}
