package test

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/test/harness"
	"github.com/ringmod/ringmod/test/wan"
)

// TestPurgeDuringSplit purges on one side of a split, while the other goes on serving. When
// it has healed, no node serves what was purged, and no repair brings it back: neither
// reads that find copies missing, nor announcements, nor comparisons.
func TestPurgeDuringSplit(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute; the keepers of purges are split in virtual time")
	}
	t.Parallel()
	w := wan.New(t, 2, wan.Path{}, 1)
	fake := upstreamtest.NewUnstarted(t)
	c := harness.NewCluster(t)
	var gateways []*harness.Process
	for i, site := range w.Sites {
		flags := []string{"--upstream", serveAt(t, site, fake)}
		for n := range 2 {
			c.StartNode(harness.Spec{Name: fmt.Sprintf("n%d", 2*i+n+1), Host: site, Flags: flags})
		}
		gateways = append(gateways, c.StartGateway(harness.Spec{Name: fmt.Sprintf("g%d", i+1), Host: site, Flags: flags}))
	}
	c.WaitConverged()
	all := modules(t, fake, "m", 20, 200<<10)
	objects := place(t, c, fake, all)
	bad, rest := library{}, maps.Clone(objects)
	maps.Copy(bad, libraryOf(fake, all[:10]))
	for name := range bad {
		delete(rest, name)
	}
	names := slices.Sorted(maps.Keys(bad))
	for _, g := range gateways {
		readTogether(t, g, objects)
	}

	w.SetBoth(w.Sites[:1], w.Sites[1:], wan.Path{Cut: wan.Everything})
	c.Eventually(time.Minute, "each half to miss the other", func(p *harness.Process) error { return p.Knows(2, 4) })
	admin := ringmodv1.NewAdminServiceClient(c.Member("n1").Conn())
	for _, m := range all[:10] {
		resp, err := admin.Purge(t.Context(), &ringmodv1.PurgeRequest{
			Subject: &ringmodv1.PurgeRequest_Module{Module: &ringmodv1.ModuleVersion{Path: m.Path, Version: m.Version}}, Text: "split",
		})
		if err != nil || !slices.Equal(resp.GetConfirmed(), []string{"n1", "n2"}) || !slices.Equal(resp.GetUnconfirmed(), []string{"n3", "n4"}) {
			t.Fatalf("confirmed by %v, not by %v, %v", resp.GetConfirmed(), resp.GetUnconfirmed(), err)
		}
	}
	within(t, 2*time.Second, "the gateway of that side to know", func() error { return purgedAt(gateways[0], "split", names...) })
	readAll(t, gateways[1], bad) // they cannot know
	asked := len(fake.Requests())

	w.SetBoth(w.Sites[:1], w.Sites[1:], wan.Path{})
	healed := time.Now()
	within(t, time.Minute, "the other side to know", func() error { return purgedAt(gateways[1], "split", names...) })
	t.Logf("the other side knows %v after the split has healed", time.Since(healed))
	within(t, 10*time.Second, "all copies to be gone", func() error {
		for _, name := range names {
			if got := c.Holders(name); len(got) > 0 {
				return fmt.Errorf("%s is held by %v", name, got)
			}
		}
		return nil
	})
	c.WaitConverged()
	l := startLoad(t, 8, rest.any(), gateways...)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		for _, g := range gateways {
			if err := purgedAt(g, "split", names...); err != nil {
				t.Fatal(err)
			}
		}
	}
	l.finish(t)
	wantGone(t, c, fake, asked, names)
	if _, err := admin.Purge(t.Context(), &ringmodv1.PurgeRequest{
		Subject: &ringmodv1.PurgeRequest_Module{Module: &ringmodv1.ModuleVersion{Path: all[0].Path, Version: all[0].Version}}, Lift: true,
	}); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, "what was lifted to be there again", func() error { return fetchWhole(gateways[1], names[0], bad[names[0]]) })
}
