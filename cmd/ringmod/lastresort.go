package main

import (
	"bytes"
	"context"
	"io"
	"time"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/sumdb"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/verify"
)

// lastResortTTL is how long what changes may be repeated that came without the
// help of a node.
const lastResortTTL = time.Minute

// heardPause is when to ask again a gateway that no node has told anything yet.
const heardPause = 3 * time.Second

// lastResort fetches from upstream what a gateway cannot get from any node. It
// keeps nothing and looks at the form of what is small; the rest of the
// verification it leaves to the go command, which does it all the same.
type lastResort struct {
	outside *upstream.Client
	specs   map[string]sumdb.Spec // of the checksum databases that are served
	// heard tells whether a node has told what is purged, which must not be fetched here.
	heard func() bool
	// private tells what nodes have said is private, beside what this process was told.
	private func() string
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
	return lastResort{a.outside, specs, a.followed.Heard, a.heardPrivate}
}

// hearPrivate remembers what a node takes for private.
func (a *assembly) hearPrivate(patterns string) { a.nodesPrivate.Store(&patterns) }

func (a *assembly) heardPrivate() string {
	if patterns := a.nodesPrivate.Load(); patterns != nil {
		return *patterns
	}
	return ""
}

// Get asks upstream. Errors are *cache.Error. The caller closes the body.
func (l lastResort) Get(ctx context.Context, req cache.Request) (*cache.Object, error) {
	resp, err := l.fetch(ctx, req)
	if err != nil {
		return nil, err
	}
	obj := &cache.Object{Size: resp.Size, TTL: lastResortTTL, Source: cache.Upstream, Body: resp.Body}
	if req.Target.Kind == target.Zip || req.Target.Kind.Sumdb() {
		return obj, nil
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body) // upstream bounds it
	if err == nil {
		err = verify.Form(req.Target, data)
	}
	if err != nil {
		return nil, err
	}
	obj.Size, obj.Body = int64(len(data)), io.NopCloser(bytes.NewReader(data))
	return obj, nil
}

func (l lastResort) fetch(ctx context.Context, req cache.Request) (*upstream.Response, error) {
	t := req.Target
	if t.Path != "" && !l.heard() {
		return nil, &cache.Error{
			Reason: cache.Busy, RetryAfter: heardPause,
			Text: "no node can be reached, and none has told this gateway yet what is private or purged",
		}
	}
	if module.MatchPrefixPatterns(l.private(), t.Path) {
		return nil, &cache.Error{Reason: cache.Busy, RetryAfter: heardPause, Text: "the module is private and no node can be reached"}
	}
	if !t.Kind.Sumdb() {
		return l.outside.Fetch(ctx, t, upstream.Validators{})
	}
	spec, ok := l.specs[t.DB]
	if !ok {
		return nil, &cache.Error{Reason: cache.NotCached, Text: "checksum database " + t.DB + " is not served here"}
	}
	return remoteDatabase{l.outside, spec}.fetch(ctx, t)
}
