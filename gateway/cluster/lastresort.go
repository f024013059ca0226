package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/cache"
)

const (
	maxLastResorts = 32               // fetches from upstream by the gateway itself at a time
	permitWait     = 30 * time.Second // for one of them, as long as a node lets a fill wait
)

// lastResort asks upstream itself, where that is allowed.
func (c *Cluster) lastResort(ctx context.Context, q question, cause error) (reply, error) {
	if c.cfg.Upstream == nil || q.resume != nil || q.req.Mode != cache.AllowFill ||
		module.MatchPrefixPatterns(c.cfg.Private, q.req.Target.Path) {
		return reply{}, c.unreachable(cause)
	}
	if err := c.permit(ctx, cause); err != nil {
		return reply{}, err
	}
	obj, err := c.upstream(ctx, q.req)
	if err != nil {
		<-c.permits
		return reply{}, err
	}
	obj.Unverified = q.req.Target.Kind.Immutable()
	return reply{Object: obj, release: sync.OnceFunc(func() { <-c.permits })}, nil
}

// permit waits until the gateway may fetch from upstream itself: many of them at once
// must not do to upstream what nodes would never do.
func (c *Cluster) permit(ctx context.Context, cause error) error {
	timer := time.NewTimer(permitWait)
	defer timer.Stop()
	select {
	case c.permits <- struct{}{}:
		return nil
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return &cache.Error{
		Reason: cache.Busy, RetryAfter: unreachablePause, Err: cause,
		Text: fmt.Sprintf("no node of cluster %s can be reached, and %d requests are on their way to upstream without them", c.cfg.Cluster, maxLastResorts),
	}
}

func (c *Cluster) upstream(ctx context.Context, req cache.Request) (_ *cache.Object, err error) {
	defer c.guard(ctx, &err)
	return c.cfg.Upstream.Get(ctx, req)
}
