package node

import (
	"context"
	"errors"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/refresh"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
)

// How long who has something old waits for something newer, counted from when that was
// asked for: what is a little too old is better than a build that hangs on a slow
// upstream, and worse than a tag that somebody waits for.
const (
	lateFor  = 3 * time.Second
	laterFor = 10 * time.Second // beyond freshFor+staleWhile
)

// renewed is when a mutable target was last asked for: under which order to refresh.
type renewed struct {
	number uint64
	at     time.Time
}

// maxRenewed bounds what is known of that; beyond, all is asked for once more.
const maxRenewed = 64 << 10

// isFresh reports whether doc may be repeated without asking anybody: it is young, and
// was asked for since the latest order to refresh it.
func (n *Node) isFresh(t target.Target, doc store.Document) bool {
	age := time.Since(doc.Fetched)
	return age >= 0 && age < freshFor && !n.isOutdated(t)
}

// isOutdated reports whether t was not asked for since the latest order to refresh it.
func (n *Node) isOutdated(t target.Target) bool {
	number := n.cfg.Refreshes.Latest(t.Path).Number
	if number == 0 {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.renewed[t.String()].number < number
}

// renew notes that t was asked for under an order. n.mu is held.
func (n *Node) renew(name string, number uint64) {
	if number == 0 || number <= n.renewed[name].number {
		return
	}
	now := time.Now()
	if len(n.renewed) >= maxRenewed {
		for other, r := range n.renewed {
			if now.Sub(r.at) >= refresh.Keep {
				delete(n.renewed, other)
			}
		}
		if len(n.renewed) >= maxRenewed {
			clear(n.renewed)
		}
	}
	n.renewed[name] = renewed{number, now}
}

// absence returns upstream's "no" to t that is still believed: one that was asked for
// since the latest order to refresh its module.
func (n *Node) absence(t target.Target) error {
	since, err := n.absent.get(t.String())
	if err != nil && since.Before(n.cfg.Refreshes.Latest(t.Path).Given) {
		return nil
	}
	return err
}

// within waits until r is done, for that long since it began at most; false: it is not.
func (r *refreshing) within(ctx context.Context, limit time.Duration) bool {
	select {
	case <-r.done:
		return true
	default:
	}
	timer := time.NewTimer(limit - time.Since(r.began))
	defer timer.Stop()
	select {
	case <-r.done:
		return true
	case <-r.dead:
		return false
	case <-timer.C:
		return false
	case <-ctx.Done():
		return false
	}
}

// Renew has the coordinators ask upstream for t at once, under that order, and returns
// what they have got, and whether that is something new. It is for who does not want to
// keep it. Errors are *cache.Error.
func (n *Node) Renew(ctx context.Context, t target.Target, number uint64) (body []byte, changed bool, err error) {
	ask := func(get func(context.Context, cache.Request) (*cache.Object, error)) (bad error) {
		body, changed, bad = renewAt(ctx, t, number, get)
		return bad
	}
	route := n.route(cache.Request{Target: t, Mode: cache.AllowFill})
	err = n.inTurn(ctx, t, route, func(c Coordinator) error {
		return ask(func(ctx context.Context, req cache.Request) (*cache.Object, error) {
			return n.cfg.Peers.Coordinate(ctx, c.ID, req)
		})
	})
	if errors.Is(err, errNoCoordinator) {
		err = ask(n.Get)
	}
	return body, changed, err
}

// renewAt asks one coordinator what it knows of t, and then to ask upstream.
func renewAt(ctx context.Context, t target.Target, number uint64, get func(context.Context, cache.Request) (*cache.Object, error)) (body []byte, changed bool, err error) {
	var before []byte
	old, err := get(ctx, cache.Request{Target: t, Mode: cache.Peek, Hops: 1})
	if err == nil {
		before, err = readAll(old)
	}
	had := err == nil
	if !had && t.Kind != target.List && !t.Kind.Immutable() {
		return nil, false, nil // nobody wants it
	}
	obj, err := get(ctx, cache.Request{Target: t, Mode: cache.Coordinate, Hops: 1, Refresh: number})
	if err != nil {
		return nil, false, err
	}
	if body, err = readAll(obj); err != nil {
		return nil, false, err
	}
	if obj.Stale {
		return body, false, errStillOld
	}
	return body, !had || string(before) != string(body), nil
}

var errStillOld = &cache.Error{Reason: cache.Broken, Text: "upstream could not be asked: what is known stays, and it is asked again when somebody wants to know; 'ringmod explain' tells more"}
