package main

import (
	"context"
	"time"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node/sumdb"
	"github.com/ringmod/ringmod/node/upstream"
)

// lastResortTTL is how long what changes may be repeated that came without the
// help of a node.
const lastResortTTL = time.Minute

// lastResort fetches from upstream what a gateway cannot get from any node. It
// keeps nothing, and leaves the comparison with the checksum database to the go
// command, which makes it all the same.
type lastResort struct {
	outside *upstream.Client
	specs   map[string]sumdb.Spec // of the checksum databases that are served
}

// withoutNodes returns what a gateway does when it reaches no node. A node in the
// same process goes upstream by itself.
func (a *assembly) withoutNodes() cluster.Upstream {
	if a.parts.node || a.outside.Offline() {
		return nil
	}
	specs := make(map[string]sumdb.Spec)
	for _, spec := range a.specs() {
		specs[spec.Name] = spec
	}
	return lastResort{a.outside, specs}
}

// Get asks upstream. Errors are *cache.Error. The caller closes the body.
func (l lastResort) Get(ctx context.Context, req cache.Request) (*cache.Object, error) {
	resp, err := l.fetch(ctx, req)
	if err != nil {
		return nil, err
	}
	return &cache.Object{Size: resp.Size, TTL: lastResortTTL, Source: cache.Upstream, Body: resp.Body}, nil
}

func (l lastResort) fetch(ctx context.Context, req cache.Request) (*upstream.Response, error) {
	t := req.Target
	if !t.Kind.Sumdb() {
		return l.outside.Fetch(ctx, t, upstream.Validators{})
	}
	spec, ok := l.specs[t.DB]
	if !ok {
		return nil, &cache.Error{Reason: cache.NotCached, Text: "checksum database " + t.DB + " is not served here"}
	}
	return remoteDatabase{l.outside, spec}.fetch(ctx, t)
}
