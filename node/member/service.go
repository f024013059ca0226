package member

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

const (
	maxWatchers = 1024
	signOfLife  = 10 * time.Second // between messages of a watch, at most
)

// Register offers ClusterService on server, answered from m. Watches end when m
// stops.
func Register(server grpc.ServiceRegistrar, m *Membership) {
	ringmodv1.RegisterClusterServiceServer(server, &service{m: m})
}

// service is ClusterService.
type service struct {
	ringmodv1.UnimplementedClusterServiceServer

	m        *Membership
	watchers atomic.Int64
}

// GetView implements ClusterService. Who has this very table gets none: the
// digest does not cover addresses, but a newer one has a higher sequence number.
func (s *service) GetView(_ context.Context, req *ringmodv1.GetViewRequest) (*ringmodv1.GetViewResponse, error) {
	v := s.m.Snapshot()
	if req.GetViewSeq() == v.GetViewSeq() && req.GetViewDigest() == v.GetViewDigest() {
		return &ringmodv1.GetViewResponse{}, nil
	}
	return &ringmodv1.GetViewResponse{View: v}, nil
}

// WatchView implements ClusterService. A watcher that reads slowly gets fewer
// messages that say more.
func (s *service) WatchView(_ *ringmodv1.WatchViewRequest, stream grpc.ServerStreamingServer[ringmodv1.WatchViewResponse]) error {
	defer s.watchers.Add(-1)
	if s.watchers.Add(1) > maxWatchers {
		return status.Errorf(codes.ResourceExhausted, "%d watch this member already", maxWatchers)
	}
	tick := time.NewTicker(signOfLife)
	defer tick.Stop()
	w := watch{m: s.m}
	for {
		changed := s.m.Changed()
		if err := stream.Send(w.next()); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-s.m.stopped.ch:
			return status.Error(codes.Unavailable, "this member stops")
		case <-changed:
		case <-tick.C:
		}
	}
}

// watch knows what a watcher has been told.
type watch struct {
	m    *Membership
	told *ring.Members // nil: nothing
}

// next returns what the watcher does not know.
func (w *watch) next() *ringmodv1.WatchViewResponse {
	now, down := w.m.table.seen()
	v := &ringmodv1.View{Cluster: w.m.cfg.Cluster, ViewDigest: w.m.View().Digest(), ViewSeq: now.Seq()}
	if w.told == nil {
		v.Spec = encodeSpec(w.m.cfg.Spec)
		w.told = &ring.Members{}
	}
	for _, e := range now.All() {
		if old, _ := w.told.Get(e.ID); old != e {
			v.Members = append(v.Members, encodeMember(e))
		}
	}
	w.told = now
	return &ringmodv1.WatchViewResponse{View: v, Down: down}
}
