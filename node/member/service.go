package member

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/refresh"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

const (
	maxWatchers = 1024
	signOfLife  = 10 * time.Second // between messages of a watch, at most
	maxTold     = 256              // tombstones, and orders, in a message
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
func (s *service) WatchView(req *ringmodv1.WatchViewRequest, stream grpc.ServerStreamingServer[ringmodv1.WatchViewResponse]) error {
	defer s.watchers.Add(-1)
	if s.watchers.Add(1) > maxWatchers {
		return status.Errorf(codes.ResourceExhausted, "%d watch this member already", maxWatchers)
	}
	tick := time.NewTicker(signOfLife)
	defer tick.Stop()
	defer s.m.watchers.add(req.GetCaller())()
	w := watch{m: s.m, purges: s.m.cfg.Tombstones, since: req.GetTombstoneEpoch(), refreshes: s.m.cfg.Refreshes}
	for {
		changed, purged, outdated := s.m.Changed(), w.purged(), w.outdated()
		if err := stream.Send(w.next()); err != nil {
			return err
		}
		if len(w.untold) > 0 || len(w.orders) > 0 {
			continue
		}
		select {
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-s.m.stopped.ch:
			return status.Error(codes.Unavailable, "this member stops")
		case <-changed:
		case <-purged:
		case <-outdated:
		case <-tick.C:
		}
	}
}

// watch knows what a watcher has been told.
type watch struct {
	m    *Membership
	told *ring.Members // nil: nothing

	purges Tombstones // nil: there are none
	since  uint64     // epoch up to which the watcher knows them
	seq    uint64     // of those that were looked at
	untold []*ringmodv1.Tombstone

	refreshes *refresh.Orders // nil: there are none
	ordered   uint64          // of those that were looked at
	orders    []*ringmodv1.RefreshOrder
}

// purged returns a channel that is closed when there is more to tell of purges.
func (w *watch) purged() <-chan struct{} {
	if w.purges == nil {
		return nil
	}
	return w.purges.Changed()
}

// tombstones returns some of those that the watcher does not know.
func (w *watch) tombstones() []*ringmodv1.Tombstone {
	if w.purges == nil {
		return nil
	}
	var news []*ringmodv1.Tombstone
	first := w.seq == 0
	news, w.seq = w.purges.News(w.seq)
	for _, t := range news {
		if !first || t.GetEpoch() > w.since {
			w.untold = append(w.untold, t)
		}
	}
	n := min(maxTold, len(w.untold))
	some := w.untold[:n]
	w.untold = w.untold[n:]
	return some
}

// outdated returns a channel that is closed when there are more orders to refresh.
func (w *watch) outdated() <-chan struct{} {
	if w.refreshes == nil {
		return nil
	}
	return w.refreshes.Changed()
}

// some returns some of the orders to refresh that the watcher was not told of.
func (w *watch) some() []*ringmodv1.RefreshOrder {
	if w.refreshes == nil {
		return nil
	}
	var news []*ringmodv1.RefreshOrder
	news, w.ordered = w.refreshes.News(w.ordered)
	w.orders = append(w.orders, news...)
	n := min(maxTold, len(w.orders))
	some := w.orders[:n]
	w.orders = w.orders[n:]
	return some
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
	return &ringmodv1.WatchViewResponse{View: v, Down: down, Tombstones: w.tombstones(), Refreshes: w.some(), Private: w.m.cfg.Private}
}

// watchers are the ids of those who watch the view, and how often each does.
type watchers struct {
	mu  sync.Mutex
	ids map[string]int
}

// add notes a watcher until the func is called that it returns. Who has no id that a
// member could have is none in particular.
func (ws *watchers) add(id string) (remove func()) {
	if (ring.Member{ID: id, Epoch: 1, State: ring.Active, Role: ring.Gateway, Region: "any", Weight: 1}).Check() != nil {
		return func() {}
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.ids == nil {
		ws.ids = make(map[string]int)
	}
	ws.ids[id]++
	return func() {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		if ws.ids[id]--; ws.ids[id] == 0 {
			delete(ws.ids, id)
		}
	}
}

// Watchers returns the ids of those who follow this member by WatchView, sorted.
func (m *Membership) Watchers() []string {
	m.watchers.mu.Lock()
	defer m.watchers.mu.Unlock()
	return slices.Sorted(maps.Keys(m.watchers.ids))
}
