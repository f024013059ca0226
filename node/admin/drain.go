package admin

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/node/life"
	"github.com/ringmod/ringmod/node/member"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

const (
	progressEvery = time.Second // admin.proto
	maxPatience   = time.Hour   // for streams at the end of a drain
)

// Drain implements AdminService.
func (s *service) Drain(req *ringmodv1.DrainRequest, stream grpc.ServerStreamingServer[ringmodv1.DrainResponse]) (err error) {
	defer s.end(stream.Context(), "Drain", &err)
	if wait := req.GetStreamTimeout().AsDuration(); wait < 0 || wait > maxPatience {
		return status.Errorf(codes.InvalidArgument, "streams may take from nothing to %v, not %v", maxPatience, wait)
	}
	if req.GetNodeId() == s.cfg.Self {
		return s.drainSelf(req, stream)
	}
	return s.passDrain(req, stream)
}

// drainSelf leaves, and reports until it has left.
func (s *service) drainSelf(req *ringmodv1.DrainRequest, stream grpc.ServerStreamingServer[ringmodv1.DrainResponse]) error {
	if s.cfg.Leaver == nil {
		return errHoldsNothing(s.cfg.Self)
	}
	ctx := stream.Context()
	err := s.cfg.Leaver.Drain(context.WithoutCancel(ctx), req.GetStreamTimeout().AsDuration())
	switch {
	case errors.Is(err, life.ErrLast):
		return status.Errorf(codes.FailedPrecondition, "%s cannot leave: %v; start another node and drain then, or just stop this one", s.cfg.Self, err)
	case err != nil:
		return status.Errorf(codes.Internal, "%s cannot leave: %v", s.cfg.Self, err)
	}
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		h, err := s.cfg.Leaver.Handover()
		if err != nil {
			return status.Error(codes.Aborted, err.Error())
		}
		if err := stream.Send(progress(h)); err != nil || h.Gone {
			return err
		}
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-tick.C:
		}
	}
}

func progress(h life.Handover) *ringmodv1.DrainResponse {
	r := &ringmodv1.DrainResponse{
		State: ringmodv1.MemberState_MEMBER_STATE_LEAVING, Counted: h.Known,
		ObjectsLeft: uint64(max(0, h.Objects)), BytesLeft: uint64(max(0, h.Bytes)), StreamsLeft: uint32(max(0, h.Streams)),
	}
	if h.Gone {
		r.State = ringmodv1.MemberState_MEMBER_STATE_LEFT
	}
	return r
}

// passDrain lets another node leave, and passes on what it reports.
func (s *service) passDrain(req *ringmodv1.DrainRequest, stream grpc.ServerStreamingServer[ringmodv1.DrainResponse]) error {
	ctx, id := stream.Context(), req.GetNodeId()
	m, known := s.member(id)
	switch {
	case !known:
		return status.Errorf(codes.NotFound, "there is no member %q", id)
	case m.Entry.State == ring.Left:
		return stream.Send(progress(life.Handover{Known: true, Gone: true}))
	case m.Entry.State == ring.Forgotten:
		return status.Errorf(codes.FailedPrecondition, "%s has been forgotten: it owns nothing any more", id)
	case m.Entry.Role != ring.Node:
		return errHoldsNothing(id)
	case !m.Up:
		return status.Errorf(codes.FailedPrecondition, "%s is down and cannot hand anything over: start it again to drain it, or forget it if it will not come back", id)
	}
	conn, err := s.cfg.Conns.Conn(id)
	if err != nil {
		return status.Errorf(codes.Unavailable, "%s cannot be reached: %v", id, err)
	}
	from, err := ringmodv1.NewAdminServiceClient(conn).Drain(ctx, req)
	for err == nil {
		var r *ringmodv1.DrainResponse
		if r, err = from.Recv(); err == nil {
			err = stream.Send(r)
		}
		if err == nil && r.GetState() == ringmodv1.MemberState_MEMBER_STATE_LEFT {
			return nil
		}
	}
	if m, _ := s.member(id); m.Entry.State == ring.Left && ctx.Err() == nil { // its process was faster than its last word
		return stream.Send(progress(life.Handover{Known: true, Gone: true}))
	}
	return err
}

// member returns what is known of a member.
func (s *service) member(id string) (member.Status, bool) {
	for _, m := range s.cfg.Membership.Members() {
		if m.Entry.ID == id {
			return m, true
		}
	}
	return member.Status{}, false
}

func errHoldsNothing(id string) error {
	return status.Errorf(codes.InvalidArgument, "%s is a gateway and holds nothing: just stop it", id)
}

// SetState implements AdminService. A member writes its own states itself; that it will
// not come back is all that others can write.
func (s *service) SetState(ctx context.Context, req *ringmodv1.SetStateRequest) (_ *ringmodv1.SetStateResponse, err error) {
	defer s.end(ctx, "SetState", &err)
	id := req.GetMemberId()
	if req.GetState() != ringmodv1.MemberState_MEMBER_STATE_FORGOTTEN {
		return nil, status.Error(codes.InvalidArgument, "only FORGOTTEN can be written about a member; a node that is to leave is drained")
	}
	err = s.cfg.Membership.Forget(ctx, id, req.GetForce())
	switch {
	case errors.Is(err, member.ErrUp):
		return nil, status.Errorf(codes.FailedPrecondition, "%s is up: drain it if it is to leave for good; forget it by force only if it seems up and is not", id)
	case errors.Is(err, member.ErrUnknown):
		return nil, status.Errorf(codes.NotFound, "there is no member %q", id)
	case errors.Is(err, member.ErrSelf):
		return nil, status.Errorf(codes.FailedPrecondition, "%s is the member that was asked, and runs: drain it, or ask another member", id)
	case err != nil:
		return nil, err
	}
	for _, m := range s.cfg.Membership.Snapshot().GetMembers() {
		if m.GetId() == id {
			return &ringmodv1.SetStateResponse{Member: m}, nil
		}
	}
	return &ringmodv1.SetStateResponse{}, nil
}
