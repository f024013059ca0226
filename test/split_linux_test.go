package test

import (
	"fmt"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
	"github.com/ringmod/ringmod/test/wan"
)

// TestSplitHeals cuts a region of six nodes into halves for a minute, under
// load on both sides: no client notices, and afterwards all know each other
// again.
func TestSplitHeals(t *testing.T) {
	if testing.Short() {
		t.Skip("takes two minutes; the simulator splits in virtual time")
	}
	t.Parallel()
	const split, healing = 60 * time.Second, 30 * time.Second
	w := wan.New(t, 2, wan.Path{}, 1)
	fake := upstreamtest.NewUnstarted(t)
	c := harness.NewCluster(t)
	var gateways []*harness.Process
	for i, site := range w.Sites {
		flags := []string{"--upstream", serveAt(t, site, fake)}
		for n := range 3 {
			c.StartNode(harness.Spec{Name: fmt.Sprintf("n%d", 3*i+n+1), Host: site, Flags: flags})
		}
		gateways = append(gateways, c.StartGateway(harness.Spec{Name: fmt.Sprintf("g%d", i+1), Host: site, Flags: flags}))
	}
	c.WaitConverged()
	objects := place(t, c, fake, modules(t, fake, "m", 50, 100<<10))
	l := startLoad(t, 10, objects.any(), gateways...)
	l.more(t, 100)

	w.SetBoth(w.Sites[:1], w.Sites[1:], wan.Path{Cut: wan.Everything})
	start := time.Now()
	c.Eventually(split, "each half to miss the other", func(p *harness.Process) error { return p.Knows(3, 6) })
	time.Sleep(time.Until(start.Add(split)))
	l.report(t, "split", start, time.Now(), nil)
	w.SetBoth(w.Sites[:1], w.Sites[1:], wan.Path{})
	healed := time.Now()
	c.Eventually(healing, "all to know all", func(p *harness.Process) error { return p.Knows(6, 6) })
	c.WaitConverged()
	t.Logf("one view %v after the split had healed", time.Since(healed))
	l.more(t, 100)
	l.report(t, "healed", healed, time.Now(), nil)
	l.finish(t)
}
