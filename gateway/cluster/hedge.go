package cluster

import (
	"context"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
)

// hedged asks first and, when it takes long and the budget allows, second as
// well, which may only answer what it holds: a hedge never causes a fill. The
// error is that of first.
func (s *search) hedged(ctx context.Context, first, second candidate, mode cache.Mode) (reply, error) {
	if second.id == "" {
		return s.alone(ctx, first, mode)
	}
	race := s.race(2)
	race.start(ctx, s.question, first, mode)
	timer := time.NewTimer(hedgeDelay(first))
	defer timer.Stop()
	late := timer.C
	var failed error // of first
	for {
		select {
		case <-late:
			if !s.mayHedge() {
				timer.Reset(wire.Heartbeat) // others may have earned one by then
				continue
			}
			late = nil
			race.start(ctx, s.question, second, cache.OnlyIfCached)
			continue
		case o := <-race.outcomes:
			race.running--
			switch {
			case o.err == nil:
				race.end(o.node.id)
				s.metrics.hedged(len(race.calls) > 1, o.node.id == second.id)
				return o.reply, nil
			case o.node.id == first.id:
				failed, late = o.err, nil
			default:
				s.noteHedge(ctx, o)
			}
		}
		// While first is of no use, the hedge is the next one already.
		then := stepAfter(failed, mode, s.immutable)
		if race.running == 0 || failed != nil && then != next && then != retry {
			race.end("")
			return reply{}, failed
		}
	}
}

// alone asks n, without a race and what that costs.
func (s *search) alone(ctx context.Context, n candidate, mode cache.Mode) (reply, error) {
	ctx, cancel := context.WithCancel(ctx)
	obj, err := s.call(ctx, s.question, n, mode)
	if err != nil {
		cancel()
		return reply{}, err
	}
	return reply{obj, n, cancel}, nil
}

// mayHedge asks the budget.
func (s *search) mayHedge() bool {
	ok := s.budget.hedge()
	if !ok {
		s.metrics.hedge("denied")
	}
	return ok
}

// noteHedge remembers what a hedge that brought nothing has shown.
func (s *search) noteHedge(ctx context.Context, o outcome) {
	switch stepAfter(o.err, cache.OnlyIfCached, s.immutable) {
	case fill:
		s.heard = append(s.heard, o.node.id)
	case next, retry:
		if ctx.Err() != nil {
			return
		}
		s.bad = append(s.bad, o.node.id)
		if crowded(o.err) || cache.ReasonOf(o.err) == cache.Busy {
			s.busy = o.err
		}
	}
}

// Before these times a node is not late, however fast it used to be.
const (
	hedgeLocal = 5 * time.Millisecond   // in the same zone
	hedgeNear  = 15 * time.Millisecond  // in the same region
	hedgeFar   = 100 * time.Millisecond // in another one
)

// hedgeDelay is how long n may take before another node is asked as well.
func hedgeDelay(n candidate) time.Duration {
	least := hedgeNear
	switch {
	case n.far:
		least = max(hedgeFar, 2*n.stats.RTT)
	case n.local:
		least = hedgeLocal
	}
	return max(least, n.stats.P95)
}
