package cluster

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// reply is an object as a node has answered it.
type reply struct {
	*cache.Object

	node    candidate // zero where it was no node
	release func()    // to be called when Body is done with
}

// close gives up r.
func (r reply) close() {
	_ = r.Body.Close()
	r.release()
}

// outcome is how a call has ended.
type outcome struct {
	reply

	err error
}

// race is a question to several nodes side by side, of whom one wins.
type race struct {
	c        *Cluster
	outcomes chan outcome // with room for all
	calls    []contender
	running  int // calls whose outcome was not taken
}

type contender struct {
	id     string
	cancel context.CancelFunc
}

func (c *Cluster) race(size int) *race { return &race{c: c, outcomes: make(chan outcome, size)} }

// start asks n. The outcome has to be taken, or left to end.
func (r *race) start(ctx context.Context, q question, n candidate, mode cache.Mode) {
	ctx, cancel := context.WithCancel(ctx)
	r.calls = append(r.calls, contender{n.id, cancel})
	r.running++
	go func() {
		obj, err := r.c.call(ctx, q, n, mode)
		if err != nil {
			cancel()
		}
		r.outcomes <- outcome{reply{obj, n, cancel}, err}
	}()
}

// end cancels all calls but the one to winner, "" for all.
func (r *race) end(winner string) {
	for _, call := range r.calls {
		if call.id != winner {
			call.cancel()
		}
	}
	if r.running == 0 {
		return
	}
	go func() {
		for range r.running {
			if o := <-r.outcomes; o.err == nil {
				o.close()
			}
		}
	}()
}

// call asks one node.
func (c *Cluster) call(ctx context.Context, q question, n candidate, mode cache.Mode) (obj *cache.Object, err error) {
	defer c.guard(ctx, &err)
	req := q.req
	req.Mode = mode
	o := wire.Options{
		Pool: c.cfg.Pool, Resume: q.resume, First: firstLimit(n, mode),
		// Who asks for a zip hashes what is in it (go.sum).
		CRCOnly:  q.req.Target.Kind == target.Zip,
		Narrow:   q.slow,
		OnHeader: func(h *ringmodv1.Header) { c.fanouts.note(req.Target, h.GetFanout()) },
	}
	if !n.replica && n.rank < q.spread {
		o.Fanout = q.spread
	}
	obj, err = c.cfg.Peers.Get(ctx, n.id, req, o)
	if o.Fanout > 0 {
		c.metrics.spread(err)
	}
	return obj, err
}

// guard is deferred around what others have written: a panic in there ends what
// is being asked, and nothing else.
func (c *Cluster) guard(ctx context.Context, err *error) {
	if p := recover(); p != nil {
		c.log.ErrorContext(ctx, "panic while asking for an object", "stack", string(debug.Stack()), "err", fmt.Sprint(p))
		*err = &cache.Error{Reason: cache.Internal, Err: fmt.Errorf("panic: %v", p)}
	}
}

// firstLimit is how long n may take for its first message, 0 for as long as
// between two. What it holds comes soon; if it has joined a fill, the first sign
// of life comes after a heartbeat. Where a fill may begin, or the way is long,
// leaving early costs more than waiting; but not where nobody is believed to be
// there.
func firstLimit(n candidate, mode cache.Mode) time.Duration {
	if n.usable && (n.far || mode == cache.AllowFill) {
		return 0
	}
	return min(wire.Silence, max(4*n.stats.P95, wire.Heartbeat)+wire.Heartbeat/2)
}
