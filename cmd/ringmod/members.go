package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/ringmod/ringmod/node/member"
	"github.com/ringmod/ringmod/ring"
)

// membershipFile keeps epoch and last known members in the data folder.
const membershipFile = "members.json"

// seedPatience is how long a node that has seeds waits for one to answer before
// it counts as ready all the same: the first of a cluster has nobody to meet.
const seedPatience = 15 * time.Second

// members is the cluster as this process sees it, by gossip or from a node.
type members interface {
	View() *ring.View
	Up(id string) bool
	Addr(id string) (string, bool)
	Members() []member.Status
	Joined() <-chan struct{}
	Changed() <-chan struct{}
	Run(ctx context.Context) error
}

// meet prepares to find the other members.
func (a *assembly) meet() error {
	m, err := a.newMembership(a.id, a.listeners, a.log)
	if err != nil {
		return err
	}
	a.own, a.members = m, m
	a.process.membership, a.process.met = m.Run, m.Joined()
	return nil
}

// newMembership says who this process is and prepares to find the others.
func (o *options) newMembership(id string, l *listeners, log *slog.Logger) (*member.Membership, error) {
	cfg := member.Config{
		Cluster: o.cluster, Spec: o.spec(), Transport: l.gossip, Advertise: o.advertise(), KeyFile: o.gossipKeyFile,
		Seeds: o.join, Logger: log,
	}
	addr := ""
	if o.parts.node {
		addr = reach(l.grpc, cfg.Advertise)
		cfg.State = member.FileState(filepath.Join(o.dataDir, membershipFile))
	}
	cfg.Entry = o.member(id, addr)
	m, err := member.New(cfg)
	if err != nil {
		return nil, &usageError{err}
	}
	return m, nil
}

// alone tells why a process is not yet where its cluster is.
func (p *process) alone() error {
	select {
	case <-p.met:
		return nil
	default:
	}
	if time.Since(p.started) < seedPatience {
		return errors.New("no member of --join has answered yet")
	}
	return nil
}
