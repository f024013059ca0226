package life

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ringmod/ringmod/node/member"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

const (
	witnesses = 2           // other nodes that must have this one as active
	maxAsked  = 8           // of which that many are asked
	askLimit  = time.Second // all at once

	// spread is how long gossip takes to tell the rest, gateways above all: they have no
	// services and cannot be asked.
	spread = 2 * time.Second
)

// Ready tells why a roll-out should not go on with the next node yet, nil if it may.
func (l *Life) Ready() error {
	if state := l.cfg.Membership.Entry().State; state != ring.Active {
		return l.why(state)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.missing
}

// watch finds out whether the node is ready, until it is.
func (l *Life) watch(ctx context.Context) {
	l.mu.Lock()
	was := l.missing
	l.mu.Unlock()
	if was == nil {
		return
	}
	missing := l.check(ctx)
	if ctx.Err() != nil {
		return
	}
	if missing != nil && time.Since(l.started) >= readyMax {
		l.log.WarnContext(ctx, "ready although not all is well, as it has taken too long", "err", missing)
		missing = nil
	}
	l.mu.Lock()
	l.missing = missing
	l.mu.Unlock()
	if missing != nil {
		l.compare()
		return
	}
	l.log.InfoContext(ctx, "ready", "duration_ms", time.Since(l.started).Milliseconds())
	l.cfg.OnReady(true)
}

// check tells what an active node lacks to be ready.
func (l *Life) check(ctx context.Context) error {
	if !l.met() {
		if time.Since(l.started) < seedPatience {
			return errors.New("no member of --join has answered yet")
		}
		return nil
	}
	if !l.current() {
		return errors.New("the view is being built")
	}
	switch seen, wanted := l.seen(ctx); {
	case seen < wanted:
		l.known = time.Time{}
		return fmt.Errorf("%d of the other nodes have this one in their views as active, want %d", seen, wanted)
	case wanted > 0 && l.known.IsZero():
		l.known = time.Now()
	}
	if !l.known.IsZero() && time.Since(l.known) < spread {
		return errors.New("others are still hearing of this node")
	}
	if l.cfg.Copies == nil {
		return nil
	}
	p, known := l.cfg.Copies.Progress()
	switch {
	case !known:
		return errors.New("what this node holds has not been compared with other nodes yet")
	case p.Partitions*1000 > l.partitions()*readyMissing:
		return fmt.Errorf("other nodes hold %d bytes that are missing here, in %d partitions", p.Missing, p.Partitions)
	}
	return nil
}

// partitions returns how many this node should hold.
func (l *Life) partitions() int {
	view, n := l.cfg.Membership.View(), 0
	me, _ := view.Find(l.self)
	for p := range ring.Partition(ring.Partitions) {
		if slices.Contains(view.Next().Replicas(l.region, p), me) {
			n++
		}
	}
	return n
}

// seen returns how many other nodes have this one as active, and how many should.
func (l *Life) seen(ctx context.Context) (seen, wanted int) {
	own := l.cfg.Membership.Entry()
	var others []member.Status
	for _, s := range l.cfg.Membership.Members() {
		if s.Entry.ID != l.self && s.Up && s.Entry.Role == ring.Node && s.Entry.Addr != "" {
			others = append(others, s)
		}
	}
	rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var group errgroup.Group
	var n atomic.Int64
	wanted = min(witnesses, len(others))
	for _, s := range others[:min(maxAsked, len(others))] {
		group.Go(func() error {
			if l.isSeen(ctx, s.Entry.ID, own) && n.Add(1) >= int64(wanted) {
				cancel()
			}
			return nil
		})
	}
	_ = group.Wait()
	return int(n.Load()), wanted
}

// isSeen asks a node whether it has own as active.
func (l *Life) isSeen(ctx context.Context, id string, own ring.Member) bool {
	conn, err := l.cfg.Conns.Conn(id)
	if err != nil {
		return false
	}
	resp, err := ringmodv1.NewClusterServiceClient(conn).GetView(ctx, &ringmodv1.GetViewRequest{})
	if err != nil {
		l.log.DebugContext(ctx, "member did not tell its view", "peer", id, "err", err)
		return false
	}
	for _, m := range resp.GetView().GetMembers() {
		if m.GetId() == own.ID {
			return fmt.Sprintf("%016x", m.GetBootId()) == own.Boot && m.GetState() == ringmodv1.MemberState_MEMBER_STATE_ACTIVE
		}
	}
	return false
}
