package harness

import (
	"context"
	"sync"
	"time"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/node/member"
)

// Fronts makes so many gateways in this process that have neither memory nor spool, so
// that each request goes to a node: the side of a gateway that chooses nodes, with
// connections of its own.
func (c *Cluster) Fronts(n int) []*cluster.Cluster {
	c.t.Helper()
	var from []string
	for _, p := range c.Running() {
		if p.GRPC != "" {
			from = append(from, p.GRPC)
		}
	}
	view, err := member.NewFollower(member.FollowerConfig{Cluster: c.label, From: from})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	c.t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	run := func(run func(context.Context) error) { running.Go(func() { _ = run(ctx) }) }
	run(view.Run)
	var all []*cluster.Cluster
	for range n {
		nodes := peers.New(peers.Config{Region: Spec{}.region(), View: view})
		run(nodes.Run)
		all = append(all, cluster.New(cluster.Config{Cluster: c.label, Region: Spec{}.region(), Peers: nodes, View: view, SpoolLimit: -1}))
	}
	for deadline := time.Now().Add(startTimeout); len(view.View().Members()) < len(from); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("gateways know %d of %d nodes after %v", len(view.View().Members()), len(from), startTimeout)
		}
	}
	return all
}
