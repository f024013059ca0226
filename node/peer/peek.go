package peer

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/ring"
)

// Peek implements node.Peers.
func (p *Peers) Peek(ctx context.Context, t target.Target) (*cache.Object, error) {
	return p.peek(ctx, t, func(*cache.Object) bool { return true })
}

// PeekSame is Peek for the bytes of that SHA-256.
func (p *Peers) PeekSame(ctx context.Context, t target.Target, sum [32]byte) (*cache.Object, error) {
	return p.peek(ctx, t, func(obj *cache.Object) bool { return obj.SHA256 == sum })
}

func (p *Peers) peek(ctx context.Context, t target.Target, wanted func(*cache.Object) bool) (*cache.Object, error) {
	near := p.holders(t)
	ids := append(near, p.returnees(t)...)
	answers := make(chan answer, len(ids))
	cancels := make([]context.CancelFunc, len(ids))
	for i, id := range ids {
		ctx, cancel := context.WithCancel(ctx)
		cancels[i] = cancel
		go func() {
			limit := peekLimit
			if i >= len(near) {
				limit = farPeekLimit
			}
			obj, err := p.look(ctx, id, t, limit)
			answers <- answer{i, obj, err}
		}()
	}
	var best *answer
	for range ids {
		a := <-answers
		worse := &a
		if a.err == nil && wanted(a.obj) && (best == nil || a.obj.Age < best.obj.Age) {
			best, worse = &a, best
		}
		worse.drop(cancels)
		if best != nil && t.Kind.Immutable() {
			giveUp(cancels, best.asked)
		}
	}
	if best == nil {
		return nil, &cache.Error{Reason: cache.NotCached, Text: "no other node of the region has " + t.Describe()}
	}
	best.obj.Body = body{best.obj.Body, cancels[best.asked]}
	return best.obj, nil
}

// look peeks at one node. A panic over what it sends is its answer.
func (p *Peers) look(ctx context.Context, id string, t target.Target, limit time.Duration) (obj *cache.Object, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			p.cfg.Logger.ErrorContext(ctx, "panic while peeking at a node", "key", t.String(), "peer", id, "err", fmt.Sprint(cause), "stack", string(debug.Stack()))
			obj, err = nil, fmt.Errorf("panic: %v", cause)
		}
	}()
	return p.cfg.Nodes.Get(ctx, id, cache.Request{Target: t, Mode: cache.Peek, Hops: 1}, wire.Options{First: limit})
}

// holders returns the ids of the other usable nodes of the region that may have t: its
// ranks, those who were its replicas lately, and anybody while this process has not
// seen for itself who was.
func (p *Peers) holders(t target.Target) []string {
	view := p.cfg.View()
	if view == nil {
		return nil
	}
	partition, now := ring.OfTarget(t), time.Now()
	var ids []string
	add := func(m ring.Member) {
		if m.Region == p.cfg.Region && m.ID != p.cfg.Self && !slices.Contains(ids, m.ID) && p.cfg.Nodes.Usable(m.ID) {
			ids = append(ids, m.ID)
		}
	}
	for _, table := range []*ring.Table{view.Next(), view.Current()} {
		for _, i := range table.Ranks(p.cfg.Region, partition) {
			add(table.Member(i))
		}
	}
	past, young := p.past(now)
	for _, old := range past {
		for _, i := range old.Current().Replicas(p.cfg.Region, partition) {
			add(old.Member(i))
		}
	}
	for _, m := range view.Members() {
		if young && len(ids) < maxYoung {
			add(m)
		}
	}
	return ids
}

// returnees returns the coordinators of t in regions that are back from being out
// of reach.
func (p *Peers) returnees(t target.Target) []string {
	view := p.cfg.View()
	if view == nil {
		return nil
	}
	var ids []string
	for _, region := range view.Next().Regions() {
		if region == p.cfg.Region || !p.returned(region) {
			continue
		}
		for _, c := range p.coordinators(view, region, ring.OfTarget(t)) {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

// answer is that of the node that was asked at this place.
type answer struct {
	asked int
	obj   *cache.Object
	err   error
}

// drop ends what is not wanted, if there is something.
func (a *answer) drop(cancels []context.CancelFunc) {
	if a == nil {
		return
	}
	if a.err == nil {
		_ = a.obj.Body.Close()
	}
	cancels[a.asked]()
}

func giveUp(cancels []context.CancelFunc, but int) {
	for i, cancel := range cancels {
		if i != but {
			cancel()
		}
	}
}

// body ends the call with the body.
type body struct {
	io.ReadCloser

	cancel context.CancelFunc
}

func (b body) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}
