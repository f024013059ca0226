package test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// TestCopiesComeBack takes the disk of a node away. When it is back with an empty one,
// it gets its copies again by itself, from the others and not from upstream.
func TestCopiesComeBack(t *testing.T) { //nolint:paralleltest // a long one reports a time
	mods := 200
	if testing.Short() {
		t.Parallel()
		mods = 30
	}
	fake := upstreamtest.New(t)
	c, gateways := startCluster(t, fake, 3, 1)
	objects := libraryOf(fake, modules(t, fake, "m", mods, 200<<10))
	readTogether(t, gateways[0], objects)
	waitForCopies(t, c, objects)
	fetched := len(fake.Requests())
	c.Member("n2").Kill()
	if err := os.RemoveAll(c.DataDir("n2")); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	c.Restart("n2")
	waitForCopies(t, c, objects)
	t.Logf("%d objects: every copy back %v after the start with an empty disk", len(objects), time.Since(start).Round(100*time.Millisecond))
	if more := len(fake.Requests()) - fetched; more > 0 {
		t.Errorf("%d upstream requests meanwhile, want none", more)
	}
	eventually(t, "n2 to lack nothing", func() bool { return c.Member("n2").Metric("ringmod_antientropy_missing_bytes") == 0 })
	if got := c.Member("n2").Metric("ringmod_antientropy_pulled_objects_total"); got == 0 {
		t.Error("nothing was pulled because of a comparison")
	}
}

// TestLostForGood kills a node that does not come back. Once it is forgotten, there are
// two copies of everything again, by themselves, without upstream, and no reader misses
// anything.
func TestLostForGood(t *testing.T) { //nolint:paralleltest // a long one reports a time
	mods := 200
	if testing.Short() {
		t.Parallel()
		mods = 30
	}
	fake := upstreamtest.New(t)
	c, gateways := startCluster(t, fake, 4, 1)
	objects := libraryOf(fake, modules(t, fake, "m", mods, 200<<10))
	readTogether(t, gateways[0], objects)
	waitForCopies(t, c, objects)
	fetched := len(fake.Requests())
	short := func() (n int) {
		for name := range objects {
			if len(slices.DeleteFunc(c.Holders(name), func(node string) bool { return node == "n4" })) < 2 {
				n++
			}
		}
		return n
	}
	c.Member("n4").Kill()
	lost := short()
	if lost == 0 {
		t.Fatal("n4 held nothing")
	}
	l := startLoad(t, 5, objects.any(), gateways...)
	eventually(t, "n4 to be forgotten", func() bool {
		status, _, _ := harness.Run(t, nil, "forget", "n4", "--addr", c.Member("n1").GRPC)
		return status == 0
	})
	start := time.Now()
	for deadline := start.Add(2 * time.Minute); short() > 0; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d objects have one copy, 2 minutes after their node was forgotten", short(), lost)
		}
	}
	t.Logf("%d of %d objects had lost a copy: all have two again %v after the node was forgotten", lost, len(objects), time.Since(start).Round(100*time.Millisecond))
	l.finish(t)
	if more := len(fake.Requests()) - fetched; more > 0 {
		t.Errorf("%d upstream requests meanwhile, want none", more)
	}
	for i := range 3 {
		n := c.Member(fmt.Sprintf("n%d", i+1))
		eventually(t, n.Name+" to lack nothing", func() bool { return n.Metric("ringmod_antientropy_missing_bytes") == 0 })
	}
	_, out, _ := harness.Run(t, nil, "status", "--addr", c.Member("n1").GRPC)
	if !strings.Contains(out, "All is well") {
		t.Errorf("status says\n%s", out)
	}
}

// waitForCopies waits until each object lies on all its replicas.
func waitForCopies(t *testing.T, c *harness.Cluster, objects library) {
	t.Helper()
	short := func() error {
		for name := range objects {
			holders := c.Holders(name)
			for _, node := range c.Replicas("default", name) {
				if !slices.Contains(holders, node) {
					return fmt.Errorf("%s is at %v and not at %s", name, holders, node)
				}
			}
		}
		return nil
	}
	var err error
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err = short(); err == nil {
			return
		}
	}
	t.Fatalf("copies after 2 minutes: %v", err)
}
