package cluster

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/ringmod/ringmod/internal/refresh"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// maxTold is how many nodes are tried for an order.
const maxTold = 3

var errNobody = errors.New("no node can be reached")

// Refresh has a node tell all others of an order to look again: any, of our own region if
// one of these answers.
func (c *Cluster) Refresh(ctx context.Context, s refresh.Subject) error {
	view := c.cfg.View.View()
	if view == nil || c.cfg.Conns == nil {
		return errNobody
	}
	nodes := slices.DeleteFunc(slices.Clone(view.Members()), func(m ring.Member) bool { return !c.cfg.Peers.Usable(m.ID) })
	far := func(m ring.Member) int {
		if m.Region == c.cfg.Region {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(nodes, func(a, b ring.Member) int { return cmp.Compare(far(a), far(b)) })
	err := errNobody
	for _, m := range nodes[:min(maxTold, len(nodes))] {
		if err = c.refreshAt(ctx, m.ID, s); err == nil || ctx.Err() != nil {
			return err
		}
		c.log.DebugContext(ctx, "asking another node to pass an order on", "peer", m.ID, "module", s.Path, "err", err)
	}
	return err
}

func (c *Cluster) refreshAt(ctx context.Context, id string, s refresh.Subject) error {
	conn, err := c.cfg.Conns.Conn(id)
	if err != nil {
		return err
	}
	req := &ringmodv1.RefreshRequest{Subject: &ringmodv1.RefreshRequest_Prefix{Prefix: s.Path}}
	_, err = ringmodv1.NewAdminServiceClient(conn).Refresh(ctx, req)
	return wire.FromStatus(err, id)
}
