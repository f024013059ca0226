package test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// settled is how long a cluster of a test may take to have its copies where they belong.
const settled = 3 * time.Minute

// TestGrowAndShrink changes the nodes of a cluster that can ask no upstream, while
// clients read at random: one joins, one is drained, one dies for good. No client notices,
// what moves is what has to, and all copies are there again after each step.
func TestGrowAndShrink(t *testing.T) { //nolint:paralleltest // a long one reports latencies
	versions, reads := 1000, 3000
	if testing.Short() {
		t.Parallel()
		versions, reads = 60, 300
	}
	fake := upstreamtest.New(t)
	c, gateways := startCluster(t, fake, 3, 2)
	objects := libraryOf(fake, modules(t, fake, "m", versions, 50<<10))
	readTogether(t, gateways[0], objects)
	waitForCopies(t, c, objects)
	fake.Fault("", upstreamtest.Fault{Status: 503})
	fake.Reset()
	l := startLoad(t, 20, objects.any(), gateways...)
	defer l.finish(t)
	step := func(what string, do func()) {
		t.Helper()
		start := time.Now()
		do()
		l.more(t, reads)
		l.report(t, what, start, time.Now(), nil)
		if got := fake.Requests(); len(got) > 0 {
			t.Fatalf("%s: upstream requests %q, want none", what, got[:min(len(got), 10)])
		}
	}
	step("before", func() {})
	step("a fourth node joins", func() { join(t, c, "n4", objects) })
	step("after", func() {})
	step("a node is drained", func() { drain(t, c, "n2", objects) })
	if !testing.Short() { // it takes a while until others are sure
		step("a node dies for good", func() { lose(t, c, "n3", objects) })
		step("at last", func() {})
	}
}

// join starts a node and waits until it and all copies are where they belong.
func join(t *testing.T, c *harness.Cluster, name string, objects library) {
	t.Helper()
	moved := -pulled(c)
	start := time.Now()
	ready := c.StartNode(harness.Spec{Name: name}).WaitReady(settled)
	waitForCopies(t, c, objects)
	all := time.Since(start)
	c.WaitConverged()
	moved += pulled(c)
	sizes, total := share(c, objects)
	nodes := float64(len(sizes))
	fair := total / nodes
	t.Logf("%s was ready after %v, all copies were there after %v; %.2f of a fair share was moved", name, ready.Round(10*time.Millisecond), all.Round(10*time.Millisecond), moved/fair)
	for node, size := range sizes {
		t.Logf("%s holds %.2f of the mean", node, size/fair)
		if size > 1.25*fair && !testing.Short() {
			t.Errorf("%s holds %.0f bytes, %.2f of the mean, want 1.25 at most", node, size, size/fair)
		}
	}
	if moved > 1.25*fair && !testing.Short() {
		t.Errorf("%.0f bytes were moved, %.2f of a fair share, want 1.25 at most", moved, moved/fair)
	}
}

// pulled returns how many bytes the nodes that run have got from each other.
func pulled(c *harness.Cluster) float64 {
	var n float64
	for _, p := range c.Running() {
		if p.GRPC != "" {
			n += p.Metric("ringmod_replication_pulled_bytes_total")
		}
	}
	return n
}

// share returns how many bytes each node should hold, and all together.
func share(c *harness.Cluster, objects library) (sizes map[string]float64, total float64) {
	sizes = map[string]float64{}
	for name := range objects {
		for _, node := range c.Replicas("default", name) {
			size := float64(c.Size(node, name))
			sizes[node] += size
			total += size
		}
	}
	return sizes, total
}

// drain takes a node out by the command, which ends when it has left.
func drain(t *testing.T, c *harness.Cluster, name string, objects library) {
	t.Helper()
	p, start := c.Member(name), time.Now()
	code, out, errOut := harness.Run(t, nil, "drain", name, "--addr", c.Running()[0].GRPC)
	t.Logf("drain ended after %v:\n%s", time.Since(start).Round(10*time.Millisecond), out)
	if code != 0 || !strings.Contains(out, "has left") {
		t.Fatalf("drain ended with %d: %s%s", code, out, errOut)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("the drained node ended with %v, want 0", err)
	}
	c.Remove(name)
	waitForCopies(t, c, objects)
	t.Logf("all copies were there %v after the beginning of the drain", time.Since(start).Round(10*time.Millisecond))
}

// lose kills a node and says that it will not come back.
func lose(t *testing.T, c *harness.Cluster, name string, objects library) {
	t.Helper()
	c.Member(name).Kill()
	start := time.Now()
	forget := func() (int, string) {
		code, out, errOut := harness.Run(t, nil, "forget", name, "--addr", c.Running()[0].GRPC)
		return code, out + errOut
	}
	if code, text := forget(); code != 1 || !strings.Contains(text, name+" is up") {
		t.Errorf("forgetting a node that seems up: %d %s, want to be told that it is up", code, text)
	}
	eventually(t, name+" to be seen as down", func() bool {
		code, _ := forget()
		return code == 0
	})
	c.Remove(name)
	waitForCopies(t, c, objects)
	t.Logf("all copies were there %v after %s was killed", time.Since(start).Round(10*time.Millisecond), name)
	c.Eventually(settled, "all members to have forgotten it", func(p *harness.Process) error {
		if n := p.Metric(`ringmod_members{role="node",state="forgotten"}`); n != 1 {
			return fmt.Errorf("%s knows %v forgotten nodes, want 1", p.Name, n)
		}
		return nil
	})
}

// TestManyMovesAtOnce lets two nodes join while another leaves, and kills one of each
// kind in the middle of it. They go on when they are started again, and no client
// notices.
func TestManyMovesAtOnce(t *testing.T) {
	t.Parallel()
	versions := 300
	if testing.Short() {
		versions = 30
	}
	fake := upstreamtest.New(t)
	c, gateways := startCluster(t, fake, 4, 2)
	objects := libraryOf(fake, modules(t, fake, "m", versions, 100<<10))
	readTogether(t, gateways[0], objects)
	waitForCopies(t, c, objects)
	fake.Fault("", upstreamtest.Fault{Status: 503})
	fake.Reset()
	l := startLoad(t, 5, objects.any(), gateways...)
	defer l.finish(t)

	c.StartNode(harness.Spec{Name: "n5"})
	c.StartNode(harness.Spec{Name: "n6"})
	leaving := func(p *harness.Process) bool { return p.Metric(`ringmod_members{role="node",state="leaving"}`) == 1 }
	first := make(chan string)
	go func() {
		_, out, errOut := harness.Run(t, nil, "drain", "n1", "--addr", c.Member("n2").GRPC)
		first <- out + errOut
	}()
	c.Member("n5").Kill()
	eventually(t, "n1 to leave", func() bool { return leaving(c.Member("n2")) })
	c.Member("n1").Kill()
	if out := <-first; strings.Contains(out, "has left") {
		t.Errorf("the command says that a node has left that was killed while it did:\n%s", out)
	}
	c.Restart("n5")
	c.Restart("n1")
	eventually(t, "n1 to go on leaving", func() bool { // and it may be fast
		n2 := c.Member("n2")
		return n2.Metric(`ringmod_members_up{role="node",state="leaving"}`) == 1 || n2.Metric(`ringmod_members{role="node",state="left"}`) == 1
	})
	drain(t, c, "n1", objects)
	for _, name := range []string{"n5", "n6"} {
		c.Member(name).WaitReady(settled)
	}
	waitForCopies(t, c, objects)
	c.WaitConverged()
	l.more(t, 300)
	if got := fake.Requests(); len(got) > 0 {
		t.Errorf("upstream requests %q, want none", got[:min(len(got), 10)])
	}
}
