package node

import (
	"context"
	"errors"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

// storeSecurely returns when o is stored here and at a second node, or cannot be: its
// caller gets it all the same.
func (n *Node) storeSecurely(ctx context.Context, t target.Target, f *flight, o small) {
	if err := put(n.cfg.Store, t.String(), o); err != nil {
		n.notStored(ctx, t.String(), err)
		return
	}
	n.secure(ctx, t, f)
}

// secure waits until a second node has t, which f has stored here.
func (n *Node) secure(ctx context.Context, t target.Target, f *flight) {
	if n.cfg.Copier == nil {
		return
	}
	if err := n.cfg.Copier.Secure(ctx, t); err != nil {
		f.alone()
		n.log.WarnContext(ctx, "stored at this node only, for now", "key", t.String(), "err", err)
	}
}

// unsecured answers by a fill that runs, which may have stored the object but waits for
// another node to have it. Neither an object nor an error: there is none.
func (n *Node) unsecured(ctx context.Context, req cache.Request) (*cache.Object, error) {
	if n.cfg.Copier == nil || req.Mode == cache.Peek && req.Hops > 0 { // the other node gets its copy
		return nil, nil //nolint:nilnil // see above
	}
	f := n.flights.join(req.Target.String(), req.Mode == cache.Coordinate)
	switch {
	case f == nil:
		return nil, nil //nolint:nilnil // see above
	case req.Mode == cache.Peek:
		return nil, notCached(req.Target)
	}
	obj, err := n.follow(ctx, f, req, false)
	if errors.Is(err, errUnstored) {
		return nil, nil //nolint:nilnil // look once more
	}
	if err == nil {
		n.cfg.Metrics.answered(req.Target.Kind, obj.Source)
	}
	return obj, err
}
