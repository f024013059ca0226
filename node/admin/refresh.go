package admin

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/refresh"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// renewLimit is how long upstream may take for one object that is asked for at once, so
// that an operator hears of it who waits for 10 s. The question goes on.
const renewLimit = 8 * time.Second

// Renewer has upstream asked again; *node.Node does.
type Renewer interface {
	// Renew returns what upstream says of t under that order, and whether that is new.
	// Nil, and nothing new, is said of what nobody wants. Errors are *cache.Error.
	Renew(ctx context.Context, t target.Target, number uint64) (body []byte, changed bool, err error)
}

// Refreshes are what a member needs to give orders to refresh, and to pass them on.
type Refreshes struct {
	Orders    *refresh.Orders
	Renewer   Renewer
	Followers func() []string // ids of those who hear of orders from this member; nil = nobody
}

// Outdate takes orders over. It is that method of PeerService.
func (r *Refreshes) Outdate(_ context.Context, req *ringmodv1.OutdateRequest) (*ringmodv1.OutdateResponse, error) {
	if n := len(req.GetOrders()); n == 0 || n > maxOrders {
		return nil, status.Errorf(codes.InvalidArgument, "%d orders, want 1 to %d", n, maxOrders)
	}
	if _, err := r.Orders.Take(refresh.Decode(req.GetOrders())...); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &ringmodv1.OutdateResponse{Followers: r.followers()}, nil
}

func (r *Refreshes) followers() []string {
	if r.Followers == nil {
		return nil
	}
	return r.Followers()
}

const maxOrders = 256 // of a request (peer.proto)

// Refresh implements AdminService. All are told at once, and upstream is asked beside that:
// who is asked on behalf of the order hears of it in the question.
func (s *service) Refresh(ctx context.Context, req *ringmodv1.RefreshRequest) (_ *ringmodv1.RefreshResponse, err error) {
	defer s.end(ctx, "Refresh", &err)
	if s.cfg.Refreshes == nil {
		return nil, status.Error(codes.Unimplemented, "this member asks no upstream")
	}
	subject, targets, err := refreshed(req)
	if err == nil {
		err = subject.Check()
	}
	if err != nil {
		return nil, &cache.Error{Reason: cache.Malformed, Text: err.Error(), Err: err}
	}
	orders, err := s.cfg.Refreshes.Orders.Give(subject)
	if err != nil {
		return nil, &cache.Error{Reason: cache.Busy, Text: err.Error(), RetryAfter: refresh.Keep, Err: err}
	}
	resp := &ringmodv1.RefreshResponse{Objects: make([]*ringmodv1.Refreshed, len(targets))}
	var asking sync.WaitGroup
	for i, t := range targets {
		asking.Go(func() { resp.Objects[i] = s.renew(ctx, t, orders[0].Number) })
	}
	resp.Confirmed, resp.Unconfirmed = s.outdate(ctx, orders[0])
	asking.Wait()
	resp.Objects = slices.DeleteFunc(resp.Objects, func(o *ringmodv1.Refreshed) bool { return o == nil })
	return resp, nil
}

// refreshed returns what a request is about, and what is asked for at once.
func refreshed(req *ringmodv1.RefreshRequest) (refresh.Subject, []target.Target, error) {
	switch s := req.GetSubject().(type) {
	case *ringmodv1.RefreshRequest_Prefix:
		return refresh.Subject{Path: s.Prefix, Below: true}, nil, nil
	case *ringmodv1.RefreshRequest_Target:
		t, err := target.Parse(s.Target)
		return refresh.Subject{Path: t.Path}, []target.Target{t}, err
	case *ringmodv1.RefreshRequest_Module:
		m := module.Version{Path: s.Module.GetPath(), Version: s.Module.GetVersion()}
		targets, err := Targets(module.Version{Path: m.Path})
		if err == nil && m.Version != "" && m.Version != "latest" {
			var version target.Target
			version, err = target.ForVersion(m, target.Info)
			targets = append(targets, version)
		}
		return refresh.Subject{Path: m.Path}, targets, err
	default:
		return refresh.Subject{}, nil, errNoSubject
	}
}

// renew tells what upstream says of t now; nil of what nobody wants.
func (s *service) renew(ctx context.Context, t target.Target, number uint64) (told *ringmodv1.Refreshed) {
	ctx, cancel := context.WithTimeout(ctx, renewLimit)
	defer cancel()
	var err error
	defer func() {
		if s.end(ctx, "Refresh", &err); err != nil {
			told = &ringmodv1.Refreshed{Target: t.String(), Error: detailOf(wire.FromStatus(err, ""))}
		}
	}()
	body, changed, err := s.cfg.Refreshes.Renewer.Renew(ctx, t, number)
	if err != nil && ctx.Err() != nil {
		err = &cache.Error{Reason: cache.Slow, Text: "no answer from upstream within " + renewLimit.String() + "; it is waited for in the background"}
	}
	if body == nil || err != nil {
		return nil
	}
	told = &ringmodv1.Refreshed{Target: t.String(), Changed: changed}
	if t.Kind == target.List {
		told.Versions = new(uint32(len(bytes.Fields(body))))
	}
	return told
}

// outdate tells all other nodes of an order, and returns who has heard of it and who has
// not. Gateways hear of it from the nodes that they follow.
func (s *service) outdate(ctx context.Context, order refresh.Order) (confirmed, unconfirmed []string) {
	heard := map[string]bool{s.cfg.Self: true}
	var others []string
	for _, m := range s.cfg.Membership.Members() {
		e := m.Entry
		if e.ID != s.cfg.Self && e.Role == ring.Node && !e.State.IsTombstone() {
			others = append(others, e.ID)
		}
	}
	req := &ringmodv1.OutdateRequest{Orders: []*ringmodv1.RefreshOrder{refresh.Encode(order)}}
	told := askAll(ctx, s, others, func(ctx context.Context, conn grpc.ClientConnInterface, _ string) ([]string, error) {
		resp, err := ringmodv1.NewPeerServiceClient(conn).Outdate(ctx, req)
		return resp.GetFollowers(), err
	})
	told[s.cfg.Self] = s.cfg.Refreshes.followers()
	for id, followers := range told {
		heard[id] = true
		for _, follower := range followers {
			heard[follower] = true
		}
	}
	for _, m := range s.cfg.Membership.Members() {
		e := m.Entry
		if !heard[e.ID] && !e.State.IsTombstone() && (m.Up || e.Role == ring.Node) {
			unconfirmed = append(unconfirmed, e.ID)
		}
	}
	for id := range heard {
		confirmed = append(confirmed, id)
	}
	slices.Sort(confirmed)
	slices.Sort(unconfirmed)
	return confirmed, unconfirmed
}
