package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/internal/identity"
	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/node/admin"
	"github.com/ringmod/ringmod/node/member"
)

// membershipFile keeps epoch and last known members in the data folder.
const membershipFile = "members.json"

// members is the cluster as this process sees it, by gossip or from a node.
type members interface {
	peers.View
	member.Table
	member.Observed

	Changed() <-chan struct{}
}

// certify opens the certificates, if there are any, and takes the member's id
// from them unless it was given.
func (a *assembly) certify(log *slog.Logger) error {
	if a.peerCert == "" {
		return nil
	}
	self := identity.Identity{Cluster: a.options.cluster, Role: identity.Gateway, ID: a.nodeID}
	if a.parts.node {
		self.Role = identity.Node
	}
	var err error
	a.creds, err = identity.Open(identity.Config{Cert: a.peerCert, Key: a.peerKey, CA: a.peerCA, Self: self, Logger: log})
	if err != nil {
		return &usageError{err}
	}
	a.nodeID = a.creds.Self().ID
	a.tasks = append(a.tasks, a.creds.Run)
	return nil
}

// meet prepares to find the other members, and to speak to them.
func (a *assembly) meet() error {
	if err := a.look(); err != nil {
		return err
	}
	a.reg.MustRegister(member.NewCollector(a.members))
	a.sync = member.NewSyncer(a.members, a.conn, a.log)
	a.peers = peers.New(peers.Config{
		Self: a.id, Region: a.options.region, View: a.members, Credentials: a.creds.Client, Pool: a.pool,
		OnView: a.sync.Observe, RTT: a.rtt, Tracers: a.tracers, Metrics: a.reg, Logger: a.log,
	})
	a.tasks = append(a.tasks, a.peers.Run, a.sync.Run)
	if a.followed != nil && a.own != nil {
		a.followed.View, a.followed.Changed, a.followed.Nodes = a.members.View, a.members.Changed, a.peers
		a.tasks = append(a.tasks, a.followed.Run)
	}
	return nil
}

// conn leads to a member, for the Syncer that the peers report to.
func (a *assembly) conn(id string) (grpc.ClientConnInterface, error) { return a.peers.Conn(id) }

// look takes part in gossip, or follows a node that does.
func (a *assembly) look() error {
	var err error
	if a.gossips() {
		if a.own, err = a.newMembership(); err != nil {
			return err
		}
		a.members, a.membership = a.own, a.own.Run
		return nil
	}
	f, err := member.NewFollower(member.FollowerConfig{Cluster: a.options.cluster, From: a.viewFrom, Credentials: a.creds.Client, OnTombstones: a.followed.Take, OnPrivate: a.hearPrivate, Self: a.id, Refreshes: a.orders, Logger: a.log})
	if err != nil {
		return &usageError{err}
	}
	a.members, a.membership = f, f.Run
	return nil
}

// rtt is the distance of a member by gossip, 0 where there is none.
func (a *assembly) rtt(id string) time.Duration {
	if a.own == nil {
		return 0
	}
	return a.own.RTT(id)
}

// newMembership says who this process is.
func (a *assembly) newMembership() (*member.Membership, error) {
	cfg := member.Config{
		Cluster: a.options.cluster, Spec: a.spec(), Transport: a.listeners.gossip, Advertise: a.advertise(), KeyFile: a.gossipKeyFile,
		Seeds: a.join, Tombstones: a.purges, Refreshes: a.orders, Private: a.private, Version: version(), Logger: a.log,
	}
	addr := ""
	if a.parts.node {
		addr = reach(a.listeners.grpc, cfg.Advertise)
		cfg.State = member.FileState(filepath.Join(a.dataDir, membershipFile))
	}
	cfg.Entry = a.member(a.id, addr)
	m, err := member.New(cfg)
	if err != nil {
		return nil, &usageError{err}
	}
	return m, nil
}

// awaitNodes waits until the process takes n nodes for up.
func (p *process) awaitNodes(ctx context.Context, n int) error {
	for {
		changed := p.members.Changed()
		up := 0
		for _, m := range p.members.View().Members() {
			if p.members.Up(m.ID) {
				up++
			}
		}
		if up >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// caller returns the id of the member at the other end of a call.
func caller(ctx context.Context) string {
	who, _ := identity.Caller(ctx)
	return who.ID
}

// regions is what the gateway's page shows of the cluster.
func (p *process) regions() []gateway.Region {
	var all []gateway.Region
	for _, r := range admin.Regions(p.members.View(), p.members.Up) {
		all = append(all, gateway.Region{
			Name: r.GetRegion(), Nodes: int(r.GetNodes()), Up: int(r.GetNodesUp()), Short: r.GetPartitionsBelowReplicas() > 0,
		})
	}
	return all
}
