package copies

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/target"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

const (
	announceLimit = 5 * time.Second  // for one call
	downPause     = time.Second      // before a look whether a member is up again
	maxCallPause  = 15 * time.Second // after calls that failed, from downPause on
	maxCallBytes  = 1 << 20          // of a request, about; a message may have four times that

	// orphaned is how long hints are kept for a member that is not in any more.
	orphaned = 24 * time.Hour
)

// deliver sees to it that somebody tells b's member. k.mu is held; ctx is the life
// of the Keeper.
func (k *Keeper) deliver(ctx context.Context, b *backlog) {
	if ctx.Err() != nil || !b.start() {
		return
	}
	k.running.Go(func() {
		failures := 0
		for sleep(ctx, gather) {
			b.settle()
			batch, pause, empty := b.due()
			switch {
			case empty:
				return
			case len(batch) == 0:
				b.rest(ctx, pause)
			case !k.reachable(b.id):
				k.keepFor(b)
				sleep(ctx, downPause)
			case k.announce(ctx, b, batch) != nil:
				b.persist()
				failures++
				sleep(ctx, min(maxCallPause, downPause<<min(failures-1, 10)))
			default:
				failures = 0
			}
		}
	})
}

// start tells whether the caller is to deliver b.
func (b *backlog) start() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.delivered
	b.delivered = true
	return !was
}

// rest waits until something new waits, at most for pause.
func (b *backlog) rest(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-b.wake:
	}
}

// sleep waits for pause, false when ctx is done.
func sleep(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
	return ctx.Err() == nil
}

// reachable tells whether it makes sense to call a member.
func (k *Keeper) reachable(id string) bool {
	view := k.cfg.View()
	if view == nil {
		return false
	}
	_, in := view.Find(id)
	return in && k.cfg.Nodes.Usable(id)
}

// keepFor makes hints for a member that is not there, unless it is gone for good.
func (k *Keeper) keepFor(b *backlog) {
	since, waits := b.oldest()
	if view := k.cfg.View(); view != nil && waits && time.Since(since) > orphaned {
		if _, in := view.Find(b.id); !in {
			b.forget()
		}
	}
	b.persist()
}

// announce tells b's member of a batch and does what its answer asks for. An error
// says that the member has not heard of it.
func (k *Keeper) announce(ctx context.Context, b *backlog, batch []string) (err error) {
	defer k.survive(ctx, b.id, &err)
	req := k.request(ctx, b, batch)
	if len(req.GetCopies()) == 0 {
		return nil
	}
	conn, err := k.cfg.Nodes.Conn(b.id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, announceLimit)
	defer cancel()
	resp, err := ringmodv1.NewPeerServiceClient(conn).Announce(ctx, req)
	if err == nil && len(resp.GetOutcomes()) != len(req.GetCopies()) {
		err = status.Errorf(codes.DataLoss, "%d outcomes for %d copies", len(resp.GetOutcomes()), len(req.GetCopies()))
	}
	if err != nil {
		b.log.DebugContext(ctx, "announcement failed", "err", err)
		return err
	}
	k.compare(b.id, resp.GetViewDigest(), resp.GetViewSeq())
	agreed := resp.GetViewSeq() > 0 && resp.GetViewDigest() == req.GetViewDigest()
	for i, c := range req.GetCopies() {
		k.metrics.announced(resp.GetOutcomes()[i])
		k.answered(b, c.GetTarget(), resp.GetOutcomes()[i], agreed)
	}
	return nil
}

// request describes what of a batch is still here and the member should still hold.
// The rest does not wait any more, or goes with the next call.
func (k *Keeper) request(ctx context.Context, b *backlog, batch []string) *ringmodv1.AnnounceRequest {
	req := &ringmodv1.AnnounceRequest{Holder: k.cfg.Self}
	req.ViewDigest, req.ViewSeq = k.stamp()
	size := 0
	for _, name := range batch {
		t, err := target.Parse(name)
		if err != nil || !k.isReplica(t, b.id) {
			b.drop(name)
			continue
		}
		h, err := k.node.Holding(ctx, t)
		switch {
		case err != nil:
			b.postpone(name)
		case h.GetCopy() == nil:
			b.drop(name)
		case size < maxCallBytes:
			size += len(name) + 256
			req.Copies = append(req.Copies, h.GetCopy())
		}
	}
	return req
}

// answered does what a member's outcome for an object asks for. Where the two do not
// agree on who is in, a no may be a yes soon.
func (k *Keeper) answered(b *backlog, name string, outcome ringmodv1.Outcome, agreed bool) {
	t, err := target.Parse(name)
	light := err != nil || !t.Kind.Immutable()
	switch {
	case outcome == ringmodv1.Outcome_OUTCOME_CONFLICT:
		b.log.Error("a replica holds other bytes", "key", name)
		b.drop(name)
	case light, outcome == ringmodv1.Outcome_OUTCOME_HELD, outcome != ringmodv1.Outcome_OUTCOME_WANTED && agreed:
		b.drop(name)
	case b.again(name):
		b.log.Warn("a replica does not take a copy", "key", name)
	}
}

// stamp returns digest and sequence number of the view, zeros without one.
func (k *Keeper) stamp() (digest, seq uint64) {
	if view := k.cfg.View(); view != nil {
		return view.Digest(), view.Seq()
	}
	return 0, 0
}

// compare tells OnView of a view that differs from ours.
func (k *Keeper) compare(id string, digest, seq uint64) {
	if ours, _ := k.stamp(); seq > 0 && ours != digest {
		k.cfg.OnView(id, digest, seq)
	}
}
