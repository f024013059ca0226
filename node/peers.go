package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
)

// Peers are the other nodes of the cluster as the fills of this one see them:
// whom to ask, and how. They keep nothing of a fill.
type Peers interface {
	// Peek returns t from another node of the region that has it on its disk; of a
	// mutable answer the youngest. It waits for no fill and not for long. An error
	// only means that nobody has shown it.
	Peek(ctx context.Context, t target.Target) (*cache.Object, error)
	// Coordinators returns who may ask upstream for t, in the order to try them,
	// without those that are known to be away. This node is among them when it is
	// one.
	Coordinators(t target.Target) []Coordinator
	// Coordinate sends req, whose mode is Coordinate, to the node with this id.
	// Errors are a *cache.Error where that node has said so, named as its Source
	// when it speaks for itself; any other is trouble with the node.
	Coordinate(ctx context.Context, id string, req cache.Request) (*cache.Object, error)
	// Answers tells whether a node says at once that it is well.
	Answers(ctx context.Context, id string) bool
}

// Coordinator is a node that may ask upstream.
type Coordinator struct {
	ID   string
	Self bool // it is this node
	Far  bool // it is in another region
}

// Between a coordinator that fails and the next one, so that not all who waited
// for it come at the same time (cluster.md 4.7).
const (
	minPause = 50 * time.Millisecond
	maxPause = 250 * time.Millisecond
)

// route returns the nodes by way of which req is to be filled; none where this
// node is to ask upstream itself. Only what comes from outside is passed on, so
// that no request makes more than two hops.
func (n *Node) route(req cache.Request) []Coordinator {
	if n.cfg.Peers == nil || req.Mode != cache.AllowFill || req.Hops > 0 {
		return nil
	}
	var route []Coordinator
	for _, c := range n.cfg.Peers.Coordinators(req.Target) {
		switch {
		case !c.Self:
			route = append(route, c)
		case !n.cfg.Upstream.Offline():
			return route
		}
	}
	return route
}

// sealed reports whether nothing can be had that is not here.
func (n *Node) sealed() bool { return n.cfg.Upstream.Offline() && n.cfg.Peers == nil }

// coordinate asks c, which never forwards.
func (n *Node) coordinate(ctx context.Context, t target.Target, c Coordinator) (*cache.Object, error) {
	obj, err := n.cfg.Peers.Coordinate(ctx, c.ID, cache.Request{
		Target: t, Mode: cache.Coordinate, Hops: 1, Refresh: n.cfg.Refreshes.Latest(t.Path).Number,
	})
	n.cfg.Metrics.forwarded(err)
	if err == nil && obj.Source != cache.Upstream {
		obj.Source = cache.Peer
		if c.Far {
			obj.Source = cache.Region
		}
	}
	return obj, err
}

// errNoCoordinator says that nobody on the route could answer.
var errNoCoordinator = errors.New("no coordinator could answer")

// inTurn asks the coordinators of route one after the other until one has
// answered or said what settles the matter. errNoCoordinator: this node is to ask
// upstream itself. Who has met silence asks the rest how they are, all at once, so that
// the silence of several does not add up.
func (n *Node) inTurn(ctx context.Context, t target.Target, route []Coordinator, ask func(Coordinator) error) error {
	var checks map[string]<-chan bool
	for i, c := range route {
		if check, ok := checks[c.ID]; ok && !<-check {
			n.cfg.Metrics.takenOver()
			continue
		}
		err := ask(c)
		if err == nil || isOurs(ctx, err) {
			return err
		}
		next := after(c, err)
		if next == settled {
			return err
		}
		n.cfg.Metrics.takenOver()
		n.log.DebugContext(ctx, "a coordinator has failed", "key", t.String(), "peer", c.ID, "err", err)
		if next == itself {
			break
		}
		if _, said := errors.AsType[*cache.Error](err); !said {
			if checks == nil && errors.Is(err, wire.ErrSilent) {
				checks = n.sound(ctx, route[i+1:])
			}
			pause(ctx) // it may just have died
		}
	}
	return errNoCoordinator
}

// sound asks nodes how they are. The channels yield one answer each.
func (n *Node) sound(ctx context.Context, route []Coordinator) map[string]<-chan bool {
	checks := make(map[string]<-chan bool, len(route))
	for _, c := range route {
		answer := make(chan bool, 1)
		checks[c.ID] = answer
		n.running.Go(func() {
			ok := false
			defer func() {
				if p := recover(); p != nil {
					n.log.ErrorContext(ctx, "panic while asking a node how it is", "peer", c.ID, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
				}
				answer <- ok
			}()
			ok = n.cfg.Peers.Answers(ctx, c.ID)
		})
	}
	return checks
}

func pause(ctx context.Context) {
	select {
	case <-time.After(minPause + rand.N(maxPause-minPause)):
	case <-ctx.Done():
	}
}

// step is what follows from the failure of a coordinator.
type step uint8

const (
	settled step = iota // it is upstream's word, or what the next would say as well
	another             // ask the next coordinator
	itself              // ask upstream: our way there may be better
)

// after tells what follows when c has failed with err.
func after(c Coordinator, err error) step {
	e, said := errors.AsType[*cache.Error](err)
	switch {
	case !said, e.Reason == cache.NotCached, e.Reason == cache.Internal:
		return another
	case e.Reason == cache.Busy && e.Source == c.ID: // not the upstream, which wants to be left alone
		return another
	case e.Reason == cache.Broken && c.Far:
		return itself
	default:
		return settled
	}
}
