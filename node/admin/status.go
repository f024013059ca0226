package admin

import (
	"cmp"
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/node/member"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// Status implements AdminService.
func (s *service) Status(ctx context.Context, req *ringmodv1.StatusRequest) (_ *ringmodv1.StatusResponse, err error) {
	defer s.end(ctx, "Status", &err)
	view, known := s.cfg.Membership.Snapshot(), s.cfg.Membership.Members()
	up := s.ups(known)
	resp := &ringmodv1.StatusResponse{MemberId: s.cfg.Self}
	for _, m := range view.GetMembers() {
		if !req.GetLocal() || m.GetId() == s.cfg.Self {
			resp.Members = append(resp.Members, &ringmodv1.MemberStatus{Member: m, Up: up(m.GetId())})
		}
	}
	slices.SortFunc(resp.Members, byPlace)
	describe(resp.GetMembers(), known)
	if !req.GetLocal() {
		resp.View = view
		resp.Regions = Regions(s.cfg.Membership.View(), up)
	}
	s.report(ctx, resp.GetMembers())
	return resp, nil
}

func byPlace(a, b *ringmodv1.MemberStatus) int {
	x, y := a.GetMember(), b.GetMember()
	return cmp.Or(
		cmp.Compare(x.GetRegion(), y.GetRegion()),
		cmp.Compare(x.GetZone(), y.GetZone()),
		cmp.Compare(x.GetId(), y.GetId()),
	)
}

// describe adds what gossip knows.
func describe(members []*ringmodv1.MemberStatus, known []member.Status) {
	byID := make(map[string]member.Status, len(known))
	for _, m := range known {
		byID[m.Entry.ID] = m
	}
	for _, m := range members {
		k := byID[m.GetMember().GetId()]
		m.Version = k.Version
		if k.RTT > 0 {
			m.Rtt = durationpb.New(k.RTT)
		}
		if !k.Since.IsZero() {
			m.Since = durationpb.New(max(0, time.Since(k.Since)))
		}
	}
}

// report adds what the members say of themselves. Those without an address cannot
// be asked, those that are out need not be.
func (s *service) report(ctx context.Context, members []*ringmodv1.MemberStatus) {
	var ids []string
	for _, m := range members {
		e := m.GetMember()
		if e.GetId() != s.cfg.Self && e.GetGrpcAddress() != "" && !ring.State(e.GetState()).IsTombstone() {
			ids = append(ids, e.GetId())
		}
	}
	reports := askAll(ctx, s, ids, askReport)
	if s.cfg.Reporter != nil {
		reports[s.cfg.Self] = s.cfg.Reporter.Report()
	}
	for _, m := range members {
		m.Report = reports[m.GetMember().GetId()]
	}
}

func askReport(ctx context.Context, conn grpc.ClientConnInterface, id string) (*ringmodv1.MemberReport, error) {
	resp, err := ringmodv1.NewAdminServiceClient(conn).Status(ctx, &ringmodv1.StatusRequest{Local: true})
	if err != nil {
		return nil, err
	}
	if resp.GetMemberId() != id || len(resp.GetMembers()) != 1 {
		return nil, errOther
	}
	return resp.GetMembers()[0].GetReport(), nil
}

// Regions sums up the regions of a view, sorted by name; none where it is nil.
func Regions(v *ring.View, up func(id string) bool) []*ringmodv1.RegionStatus {
	if v == nil {
		return nil
	}
	var all []*ringmodv1.RegionStatus
	for _, name := range regionsOf(v) {
		r := &ringmodv1.RegionStatus{Region: name, Nodes: uint32(v.Current().Size(name))}
		for _, m := range v.Members() {
			if m.Region == name && m.State != ring.Joining && up(m.ID) {
				r.NodesUp++
			}
		}
		short, lost := v.Current().CountMissing(name, func(m ring.Member) bool { return up(m.ID) })
		r.PartitionsBelowReplicas, r.PartitionsUnavailable = uint32(short), uint32(lost)
		all = append(all, r)
	}
	return all
}

// regionsOf returns the regions that have nodes or are about to, sorted.
func regionsOf(v *ring.View) []string {
	both := slices.Concat(v.Current().Regions(), v.Next().Regions())
	slices.Sort(both)
	return slices.Compact(both)
}
