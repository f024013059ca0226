package node

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/upstream"
)

// maxPeeks is how many copies of the region are tried, one after the other, when
// they break off while they are read.
const maxPeeks = 3

// Origins of fills, for metrics.
const (
	fromPeer     = "peer"     // a copy in the region
	fromHome     = "home"     // by way of a coordinator
	fromUpstream = "upstream" // by ourselves
)

// supply is somebody who gives the bytes of an object, from the first on.
type supply struct {
	origin string
	source cache.Source // for answers
	name   string       // of an upstream, for errors
	size   int64        // -1 while unknown
	body   io.Reader
	object *cache.Object // of a node, which verifies what it gives; nil for an upstream
	own    *flight       // of this node, which stores the object; nil for all others
}

// supplied calls use with one supply after the other, until use has made the
// object from one or somebody has said what settles the matter. use may have
// taken bytes of a supply that then failed.
func (n *Node) supplied(ctx context.Context, t target.Target, f *flight, use func(*supply) error) error {
	if n.cfg.Peers != nil {
		if done, err := n.askRegion(ctx, t, use); done {
			return err
		}
	}
	if f.direct {
		return n.askUpstream(ctx, t, use)
	}
	return n.askCoordinators(ctx, t, f.route, use)
}

// isOurs reports whether a fill ends with err whoever gives the bytes.
func isOurs(ctx context.Context, err error) bool { return errors.Is(err, errDisk) || ctx.Err() != nil }

// askRegion uses copies on the disks of the region. done is false where there
// are none that are good.
func (n *Node) askRegion(ctx context.Context, t target.Target, use func(*supply) error) (done bool, err error) {
	for range maxPeeks {
		obj, err := n.cfg.Peers.Peek(ctx, t)
		if err != nil {
			return false, nil //nolint:nilerr // nobody has it
		}
		obj.Source = cache.Peer
		err = n.useObject(t, &supply{origin: fromPeer, object: obj}, use)
		if err == nil || isOurs(ctx, err) {
			return true, err
		}
		n.log.DebugContext(ctx, "a copy of the region was no good", "key", t.String(), "err", err)
	}
	return false, nil
}

// askCoordinators uses what they give or, when they are of no help, asks upstream
// by a fill that whoever takes this node for the coordinator can join.
func (n *Node) askCoordinators(ctx context.Context, t target.Target, route []Coordinator, use func(*supply) error) error {
	err := n.inTurn(ctx, t, route, func(c Coordinator) error {
		obj, err := n.coordinate(ctx, t, c)
		if err != nil {
			return err
		}
		return n.useObject(t, &supply{origin: fromHome, object: obj}, use)
	})
	if !errors.Is(err, errNoCoordinator) {
		return err
	}
	f, started, err := n.launch(ctx, t, true, nil)
	if err != nil {
		return err
	}
	for {
		obj, err := n.follow(ctx, f, cache.Request{Target: t}, started)
		if err == nil {
			err = n.useObject(t, &supply{object: obj, own: f}, use)
		}
		if !errors.Is(err, errBegunAnew) {
			return err
		}
	}
}

// useObject lets use take obj of a node, and closes it. The error is what the node has
// said or what is wrong with it where it is to blame, else an error of isOurs, or
// no *cache.Error.
func (n *Node) useObject(t target.Target, s *supply, use func(*supply) error) error {
	obj := s.object
	defer obj.Body.Close()
	said := &saying{Reader: obj.Body}
	s.source, s.size, s.body = obj.Source, obj.Size, said
	err := use(s)
	switch {
	case err == nil && s.own == nil:
		n.cfg.Metrics.supplied(t.Kind, s.origin)
		return nil
	case err == nil || errors.Is(err, errDisk):
		return err
	case said.err != nil:
		return said.err
	default:
		return fmt.Errorf("bad bytes: %v", err) //nolint:errorlint // its reason is not what the node has said
	}
}

// askUpstream uses what upstream gives.
func (n *Node) askUpstream(ctx context.Context, t target.Target, use func(*supply) error) error {
	if n.cfg.Upstream.Offline() && !upstream.HasBundle(ctx) {
		return offline(t)
	}
	if t.Kind != target.Info {
		n.lookAhead(ctx, t)
	}
	resp, err := n.cfg.Upstream.Fetch(ctx, t, upstream.Validators{})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	err = use(&supply{source: cache.Upstream, name: resp.Source, size: resp.Size, body: resp.Body})
	if err == nil {
		n.cfg.Metrics.supplied(t.Kind, fromUpstream)
	}
	return err
}

// saying notes what a read from a node failed with: that is the node's failure
// and not ours.
type saying struct {
	io.Reader

	err error
}

func (s *saying) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}
