package admin

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/target"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// Explain implements AdminService.
func (s *service) Explain(ctx context.Context, req *ringmodv1.ExplainRequest) (_ *ringmodv1.ExplainResponse, err error) {
	defer s.end(ctx, "Explain", &err)
	targets, err := subject(req)
	if err != nil {
		return nil, err
	}
	v := s.cfg.Membership.View()
	if v == nil {
		return nil, status.Error(codes.FailedPrecondition, "this member knows no cluster yet: it has met no other member")
	}
	up := s.ups(s.cfg.Membership.Members())
	about := s.learn(ctx, v, req.GetModule())
	held := s.holdings(ctx, v, targets)
	resp := &ringmodv1.ExplainResponse{ViewDigest: v.Digest(), ViewSeq: v.Seq()}
	for i, t := range targets {
		x := explain(v, up, t, func(id string) *ringmodv1.Holding {
			if all, ok := held[id]; ok {
				return all[i]
			}
			return nil
		})
		if s.cfg.Purger != nil {
			x.Tombstone = s.cfg.Purger.Explain(t.String())
		}
		resp.Objects = append(resp.Objects, x)
	}
	resp.Findings, resp.Advice = about()
	return resp, nil
}

// holdings asks all nodes what they hold of targets. Those that do not answer are
// missing.
func (s *service) holdings(ctx context.Context, v *ring.View, targets []target.Target) map[string][]*ringmodv1.Holding {
	var ids, names []string
	self := false
	for _, m := range v.Members() {
		if m.ID == s.cfg.Self {
			self = s.cfg.Holder != nil
			continue
		}
		ids = append(ids, m.ID)
	}
	for _, t := range targets {
		names = append(names, t.String())
	}
	req := &ringmodv1.StatRequest{Targets: names, ViewDigest: v.Digest(), ViewSeq: v.Seq()}
	held := askAll(ctx, s, ids, func(ctx context.Context, conn grpc.ClientConnInterface, _ string) ([]*ringmodv1.Holding, error) {
		resp, err := ringmodv1.NewCacheServiceClient(conn).Stat(ctx, req)
		if err != nil {
			return nil, err
		}
		if !slices.EqualFunc(resp.GetHoldings(), names, func(h *ringmodv1.Holding, name string) bool { return h.GetTarget() == name }) {
			return nil, errOther
		}
		return resp.GetHoldings(), nil
	})
	if self {
		s.addOwn(ctx, held, targets)
	}
	return held
}

func (s *service) addOwn(ctx context.Context, held map[string][]*ringmodv1.Holding, targets []target.Target) {
	var own []*ringmodv1.Holding
	for _, t := range targets {
		h, err := s.cfg.Holder.Holding(ctx, t)
		if err != nil { // it has been logged where it happened
			return
		}
		own = append(own, h)
	}
	held[s.cfg.Self] = own
}

func explain(v *ring.View, up func(id string) bool, t target.Target, held func(id string) *ringmodv1.Holding) *ringmodv1.Explanation {
	p := ring.OfTarget(t)
	x := &ringmodv1.Explanation{Target: t.String(), Partition: uint32(p)}
	for _, region := range regionsOf(v) {
		x.Ranks = append(x.Ranks, ranks(v, region, p, up, held)...)
	}
	for _, region := range v.Next().Homes(p) {
		if _, ok := coordinator(v, region, p, up); ok {
			x.HomeRegion = region
			break
		}
	}
	return x
}

// ranks returns the replicas of a region, then its other nodes that have something
// to say, by id.
func ranks(v *ring.View, region string, p ring.Partition, up func(id string) bool, held func(id string) *ringmodv1.Holding) []*ringmodv1.Rank {
	lead, led := coordinator(v, region, p, up)
	replicas := v.Next().Replicas(region, p)
	var all []*ringmodv1.Rank
	add := func(i ring.Index, rank *uint32) {
		m := v.Member(i)
		r := &ringmodv1.Rank{
			Region: region, Rank: rank, NodeId: m.ID, State: ringmodv1.MemberState(m.State),
			Up: up(m.ID), Coordinator: led && i == lead, Holding: held(m.ID),
		}
		if h := r.GetHolding(); h != nil {
			r.LastError, r.LastErrorAge, h.LastError, h.LastErrorAge = h.GetLastError(), h.GetLastErrorAge(), nil, nil
		}
		h := r.GetHolding()
		if rank != nil || r.GetCoordinator() || h.GetCopy() != nil || h.GetNegative() != nil || h.GetFilling() || r.GetLastError() != nil {
			all = append(all, r)
		}
	}
	for k, i := range replicas {
		add(i, new(uint32(k)))
	}
	for i, m := range v.Members() {
		if m.Region == region && !slices.Contains(replicas, ring.Index(i)) {
			add(ring.Index(i), nil)
		}
	}
	return all
}

// coordinator returns the lowest rank of a region that is up: of those that will
// hold p and are there already, else of those that hold it now.
func coordinator(v *ring.View, region string, p ring.Partition, up func(id string) bool) (ring.Index, bool) {
	for _, i := range v.Next().Ranks(region, p) {
		if m := v.Member(i); m.State == ring.Active && up(m.ID) {
			return i, true
		}
	}
	for _, i := range v.Current().Ranks(region, p) {
		if up(v.Member(i).ID) {
			return i, true
		}
	}
	return 0, false
}
