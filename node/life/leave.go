package life

import (
	"context"
	"time"

	"github.com/ringmod/ringmod/ring"
)

// Drain begins to take the node out for good. It does not wait, and repeating it
// changes nothing but how long streams that run may take to finish once
// everything has been handed over; 0 means 30 s. The error matches ErrLast, or says
// that the state could not be written.
func (l *Life) Drain(ctx context.Context, streams time.Duration) error {
	l.mu.Lock()
	if streams > 0 {
		l.patience = streams
	}
	l.mu.Unlock()
	if l.isLeaving() {
		return nil
	}
	if l.others(ring.Active) == 0 {
		return ErrLast
	}
	l.moving.Lock()
	err := l.cfg.Membership.SetState(ctx, ring.Leaving)
	l.moving.Unlock()
	if err != nil {
		return err
	}
	l.log.InfoContext(ctx, "leaving for good by order")
	l.cfg.OnReady(false)
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

func (l *Life) isLeaving() bool {
	state := l.cfg.Membership.Entry().State
	return state == ring.Leaving || state == ring.Left
}

// Handover tells how far leaving is. The error matches ErrEnded.
func (l *Life) Handover() (Handover, error) {
	l.mu.Lock()
	h := l.handover
	l.mu.Unlock()
	h.Streams = l.cfg.Streams()
	select {
	case <-l.gone:
		h.Gone = true
		return h, nil
	default:
	}
	select {
	case <-l.ended:
	default:
		return h, nil
	}
	if h.Gone = l.cfg.Membership.Entry().State == ring.Left; h.Gone {
		return h, nil
	}
	return h, ErrEnded
}

// leave goes when everything has been handed over, and tells whether it has.
func (l *Life) leave(ctx context.Context) bool {
	if !l.handedOver() {
		l.compare()
		return false
	}
	l.log.InfoContext(ctx, "everything has been handed over")
	if err := l.cfg.Membership.Leave(ctx); err != nil {
		l.log.WarnContext(ctx, "left, but others may not have heard", "err", err)
	}
	if l.cfg.Membership.Entry().State != ring.Left || ctx.Err() != nil {
		return false
	}
	l.finishStreams(ctx)
	l.log.InfoContext(ctx, "node has left")
	close(l.gone)
	return true
}

// handedOver tells whether others hold all that is here, as the view has it in which
// this node leaves.
func (l *Life) handedOver() bool {
	if !l.current() || l.others(ring.Active) == 0 {
		return false
	}
	if l.cfg.Copies == nil {
		return true
	}
	objects, bytes, known := l.cfg.Copies.Left()
	l.mu.Lock()
	defer l.mu.Unlock()
	if known {
		l.handover.Known, l.handover.Objects, l.handover.Bytes = true, objects, bytes
		l.most = max(l.most, bytes)
	}
	return known && objects == 0
}

// finishStreams waits until no stream runs, but not for ever.
func (l *Life) finishStreams(ctx context.Context) {
	l.mu.Lock()
	limit := l.patience
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(shortLook)
	defer tick.Stop()
	for l.cfg.Streams() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
