package test

import (
	"crypto/rand"
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// small starts a cluster of two nodes and a gateway around a module that
// upstream has, and returns a check that it works and that its members know so
// many nodes.
func small(t *testing.T, flags ...string) (_ *harness.Cluster, works func(nodes int)) {
	t.Helper()
	fake := upstreamtest.New(t)
	c, gateways := startCluster(t, fake, 2, 1, flags...)
	objects, all := libraryOf(fake, modules(t, fake, "m", 3, 10<<10)), c.Running()
	return c, func(nodes int) {
		t.Helper()
		readAll(t, gateways[0], objects)
		for _, p := range all {
			if err := p.Knows(nodes, nodes); err != nil {
				t.Errorf("a member of the cluster was disturbed: %v", err)
			}
		}
	}
}

// stays checks for a while that a node knows nobody but itself.
func stays(t *testing.T, p *harness.Process) {
	t.Helper()
	for range 50 {
		if err := p.Knows(1, 1); err != nil {
			t.Fatalf("a stranger got in: %v", err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func TestOtherCluster(t *testing.T) {
	t.Parallel()
	c, works := small(t)
	stranger := c.StartNode(harness.Spec{Name: "n9", Flags: []string{"--cluster", "other"}})
	stays(t, stranger)
	works(2)
}

func TestOtherGossipKey(t *testing.T) {
	t.Parallel()
	keyFile := func() string {
		key := make([]byte, 32)
		_, _ = rand.Read(key)
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, []byte(base64.StdEncoding.EncodeToString(key)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	c, works := small(t, "--gossip-key-file", keyFile())
	stays(t, c.StartNode(harness.Spec{Name: "n8", Flags: []string{"--gossip-key-file", keyFile()}}))
	stays(t, c.StartNode(harness.Spec{Name: "n9", Flags: []string{"--gossip-key-file", ""}}))
	works(2)
}

// TestSameNodeID starts a second process with the id of another: it goes, and says
// why.
func TestSameNodeID(t *testing.T) {
	t.Parallel()
	c, works := small(t)
	time.Sleep(6 * time.Second) // processes that start at the same time draw lots
	twin := c.StartNode(harness.Spec{Name: "twin", Flags: []string{"--node-id", "n1"}})
	if err := twin.Wait(); err == nil || !strings.Contains(twin.Log(), "node id is in use by another process") {
		t.Errorf("the second process of the id ended with %v, want it to say that the id is in use", err)
	}
	if !c.Member("n1").Running() {
		t.Error("the first process of the id gave way to the second")
	}
	works(2)
}

// TestUnknownSeed starts a node whose seed has no address: it works alone, says
// what it misses, and meets others when they come to it.
func TestUnknownSeed(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t)
	c := harness.NewCluster(t, "--upstream", fake.URL)
	c.StartNode(harness.Spec{Name: "n1", Flags: []string{"--join", "seed.invalid:8083"}})
	gateway := c.StartGateway(harness.Spec{Name: "g1", Flags: []string{"--join", "seed.invalid:8083"}})
	c.WaitConverged()
	readAll(t, gateway, libraryOf(fake, modules(t, fake, "m", 1, 10<<10)))
	eventually(t, "a line about the seed", func() bool {
		return strings.Contains(c.Member("n1").Log(), "seed cannot be resolved")
	})
}

// TestGatewayBeforeNodes starts a gateway alone: it says that it knows no node,
// and works when one comes.
func TestGatewayBeforeNodes(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t)
	c := harness.NewCluster(t)
	gateway := c.StartGateway(harness.Spec{Name: "g1", Flags: []string{"--upstream", "off"}})
	objects := libraryOf(fake, modules(t, fake, "m", 1, 10<<10))
	for name := range objects {
		got, err := fetch(t, gateway.URL()+"/"+name)
		if err != nil || got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, "node") || got.header.Get("Retry-After") == "" {
			t.Errorf("without a node: %d %q, %v, want 503 with Retry-After and a text that says so", got.status, got.body, err)
		}
		if got, want := got.header.Get("Cache-Control"), "no-store"; got != want {
			t.Errorf("without a node: Cache-Control %q, want %q", got, want)
		}
	}
	if ready, err := fetch(t, gateway.URL()+"/readyz"); err != nil || ready.status != http.StatusServiceUnavailable {
		t.Errorf("/readyz without a node: %d %q, %v, want 503", ready.status, ready.body, err)
	}
	c.StartNode(harness.Spec{Name: "n1", Flags: []string{"--upstream", fake.URL}})
	c.WaitConverged()
	readAll(t, gateway, objects)
	if ready, err := fetch(t, gateway.URL()+"/readyz"); err != nil || ready.status != http.StatusOK {
		t.Errorf("/readyz with a node: %d %q, %v, want 200", ready.status, ready.body, err)
	}
}

// TestLastResort takes the only node away from a gateway that has an upstream: it
// fetches itself.
func TestLastResort(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t)
	c, gateways := startCluster(t, fake, 1, 1)
	c.Member("n1").Kill()
	readAll(t, gateways[0], libraryOf(fake, modules(t, fake, "m", 2, 10<<10)))
}

// TestOtherRingSpec starts a node that places objects otherwise than its cluster: it
// owns nothing and says so, and the others are not disturbed.
func TestOtherRingSpec(t *testing.T) {
	t.Parallel()
	c, works := small(t)
	odd := c.StartNode(harness.Spec{Name: "n9", Flags: []string{"--replicas", "3"}})
	eventually(t, "all to know of it", func() bool {
		return c.Member("n1").Knows(3, 3) == nil && c.Member("n2").Knows(3, 3) == nil && c.Member("g1").Knows(3, 3) == nil
	})
	for _, p := range []*harness.Process{odd, c.Member("n1")} {
		eventually(t, "a line about it of "+p.Name, func() bool { return strings.Contains(p.Log(), "owns nothing") })
	}
	works(3)
	if got := odd.Metric("ringmod_node_answers_total"); got > 0 {
		t.Errorf("the odd node was asked for %v objects, want none", got)
	}
}
