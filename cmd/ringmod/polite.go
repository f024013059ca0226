package main

import (
	"context"
	"errors"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node/polite"
)

// bePolite makes what says when upstream hosts may be asked, by this process as a part of the cluster.
func (a *assembly) bePolite() {
	share := func() float64 { return polite.ShareOfGateway(a.members.View()) }
	if a.parts.node {
		share = func() float64 { return polite.Share(a.members.View(), a.id) }
	}
	a.hosts = polite.New(polite.Config{Rate: a.hostRate, AtOnce: a.hostRequests, Share: share, Logger: a.log})
	a.hosts.Register(a.reg)
	if !a.parts.node {
		return
	}
	a.visitor = polite.NewKeeper(polite.KeeperConfig{
		Self: a.id, Region: a.options.region, Hosts: a.hosts, View: a.members.View, Changed: a.members.Changed, Nodes: a.peers,
		Seeded: len(a.join) > 0, Logger: a.log,
	})
	a.tasks = append(a.tasks, a.visitor.Run)
}

// heeding is a gateway's way to the nodes. What they say of upstream hosts holds for its own
// requests to these as well, when no node can be reached.
type heeding struct {
	nodes gateway.Cache
	hosts *polite.Hosts
}

// Get implements gateway.Cache.
func (h heeding) Get(ctx context.Context, req cache.Request) (*cache.Object, error) {
	obj, err := h.nodes.Get(ctx, req)
	if e, ok := errors.AsType[*cache.Error](err); ok {
		h.hosts.Heed(e)
	}
	return obj, err
}
