package purge

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/ringmod/ringmod/internal/refresh"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

const (
	silence     = 25 * time.Second // two signs of life of a watch are missing
	followPause = time.Second
)

// Follower learns of purges from one node after the other, for a gateway.
type Follower struct {
	Set     *Set
	View    func() *ring.View // as Config.View and Changed
	Changed func() <-chan struct{}
	Region  string // whose nodes are preferred
	Nodes   Nodes
	// Told is as Config.Told.
	Told func(purged func(name string) bool)
	// Self is the own id, and Refreshes take in the orders to refresh that nodes tell of
	// on the same way; nil: these are told for nothing.
	Self      string
	Refreshes *refresh.Orders
	// OnPrivate is told what is private to the node, before Heard; nil: nobody.
	OnPrivate func(patterns string)

	Logger *slog.Logger

	heard atomic.Bool
}

// Heard tells whether a node has told what is purged.
func (f *Follower) Heard() bool { return f.heard.Load() }

// Run follows until ctx is done.
func (f *Follower) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		changed := f.Changed()
		if id := f.choose(); id != "" {
			err := f.follow(ctx, id)
			f.Logger.DebugContext(ctx, "a node is not followed any more", "peer", id, "err", err)
			changed = nil // there may be many at once
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(followPause/2 + rand.N(followPause)):
		}
	}
	return nil
}

// choose returns any node that can be asked, "" where there is none.
func (f *Follower) choose() string {
	view := f.View()
	if view == nil {
		return ""
	}
	var near, far []string
	for _, m := range view.Members() {
		switch {
		case !f.Nodes.Usable(m.ID):
		case m.Region == f.Region:
			near = append(near, m.ID)
		default:
			far = append(far, m.ID)
		}
	}
	if len(near) == 0 {
		near = far
	}
	if len(near) == 0 {
		return ""
	}
	return near[rand.N(len(near))]
}

var errSilent = errors.New("no sign of life")

// follow applies what a node tells until it falls silent.
func (f *Follower) follow(ctx context.Context, id string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer watchdog.Stop()
	conn, err := f.Nodes.Conn(id)
	if err != nil {
		return err
	}
	stream, err := ringmodv1.NewClusterServiceClient(conn).WatchView(ctx, &ringmodv1.WatchViewRequest{Caller: f.Self})
	if err != nil {
		return err
	}
	for {
		msg, err := stream.Recv()
		if err != nil {
			return err
		}
		watchdog.Reset(silence)
		if f.OnPrivate != nil {
			f.OnPrivate(msg.GetPrivate())
		}
		f.Take(ctx, msg.GetTombstones())
		if f.Refreshes == nil {
			continue
		}
		if _, err := f.Refreshes.Take(refresh.Decode(msg.GetRefreshes())...); err != nil {
			f.Logger.WarnContext(ctx, "an order to refresh is left out", "peer", id, "err", err)
		}
	}
}

// Take applies what a node has told.
func (f *Follower) Take(ctx context.Context, told []*ringmodv1.Tombstone) {
	f.Set.expire()
	var all []Tombstone
	for _, p := range told {
		t, err := Decode(p)
		if err != nil {
			f.Logger.WarnContext(ctx, "a purge is left out", "err", err)
			continue
		}
		all = append(all, t)
	}
	news, err := f.Set.Merge(all...)
	if err != nil {
		f.Logger.ErrorContext(ctx, "purges are left out", "err", err)
	}
	var names []Name
	for _, t := range news {
		if !t.Lifted {
			names = append(names, t.Name)
		}
	}
	f.heard.Store(true)
	if len(names) > 0 {
		f.Told(newRules(asKnown(names)).purged)
	}
}
