package main

import (
	"context"
	"io"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/hot"
	"github.com/ringmod/ringmod/ring"
)

// localFirst answers a gateway from the node in its process where that can: what
// is on its disk goes from the file to the socket, and a cluster of one is asked
// nothing else.
type localFirst struct {
	node    *node.Node
	view    func() *ring.View
	cluster gateway.Cache
}

// Get implements gateway.Cache.
func (l localFirst) Get(ctx context.Context, req cache.Request) (*cache.Object, error) {
	if len(l.view().Members()) < 2 {
		return l.node.Get(ctx, req)
	}
	if req.Target.Kind.Immutable() {
		here := req
		here.Mode = cache.Peek
		if obj, err := l.node.Get(ctx, here); err == nil {
			return obj, nil
		}
	}
	return l.cluster.Get(ctx, req)
}

// reachable is the nodes of a cluster, of which one may be in this process.
type reachable struct {
	*peers.Set

	self string
	node *node.Node // nil: a gateway
	keys *hot.Keys  // of node
}

// Get asks a node; the one in this process hands over its file.
func (r reachable) Get(ctx context.Context, id string, req cache.Request, o wire.Options) (*cache.Object, error) {
	if r.node == nil || id != r.self {
		return r.Set.Get(ctx, id, req, o)
	}
	if o.Resume == nil {
		obj, err := r.node.Get(ctx, req)
		if o.Fanout > 0 && cache.ReasonOf(err) == cache.NotCached {
			r.keys.Lacks(req.Target, o.Fanout)
		}
		return obj, err
	}
	return r.resume(ctx, req, o.Resume)
}

// resume goes on in our own copy where the stream of another node broke.
func (r reachable) resume(ctx context.Context, req cache.Request, from *wire.Resume) (*cache.Object, error) {
	req.Whole = true
	obj, err := r.node.Get(ctx, req)
	if err != nil {
		return nil, err
	}
	content, ok := obj.Body.(io.Seeker)
	if ok && obj.SHA256 == from.SHA256 {
		_, err = content.Seek(from.Offset, io.SeekStart)
	} else {
		err = &cache.Error{Reason: cache.NotCached, Text: "this node has other bytes"}
	}
	if err != nil {
		obj.Body.Close()
		return nil, err
	}
	return obj, nil
}

// Answers reports whether a node says that it is well.
func (r reachable) Answers(ctx context.Context, id string) bool {
	return r.node != nil && id == r.self || r.Set.Answers(ctx, id)
}

// Usable reports whether a node may be asked.
func (r reachable) Usable(id string) bool {
	return r.node != nil && id == r.self || r.Set.Usable(id)
}
