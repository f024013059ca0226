package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/verify"
)

// Ages of mutable answers (DESIGN section 8).
const (
	freshFor        = time.Minute
	staleWhile      = 10 * time.Minute // served at once while one refresh runs
	staleOnError    = 7 * 24 * time.Hour
	refreshTimeout  = time.Minute
	troubledBackoff = 5 * time.Second // between refreshes while upstream fails and there is something stale
)

// refresh is one conversation with upstream about a mutable target, shared by
// all who wait for it.
type refresh struct {
	done chan struct{}
	doc  store.Document
	err  error
}

// mutable answers list, latest and queries.
func (n *Node) mutable(ctx context.Context, req cache.Request) (*cache.Object, error) {
	t := req.Target
	doc, err := n.cfg.Documents.Document(t.String())
	have := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.ErrorContext(ctx, "reading a document", "key", t.String(), "err", err)
	}
	age := time.Since(doc.Fetched)
	switch {
	case have && age >= 0 && age < freshFor:
		return n.document(t, doc, cache.Disk, false), nil
	case !mayFill(req.Mode) || n.cfg.Upstream.Offline():
		return n.withoutUpstream(ctx, t, doc, have, nil)
	case have && age < staleOnError && n.isTroubled(t):
		return n.withoutUpstream(ctx, t, doc, have, nil)
	}
	if err := n.absent.get(t.String()); err != nil {
		return n.withoutUpstream(ctx, t, doc, have, err)
	}
	r, started, err := n.startRefresh(ctx, t, doc)
	if have && age >= 0 && age < freshFor+staleWhile {
		return n.document(t, doc, cache.Disk, true), nil
	}
	if err != nil {
		return n.withoutUpstream(ctx, t, doc, have, err)
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if r.err != nil {
		return n.withoutUpstream(ctx, t, doc, have, r.err)
	}
	source := cache.Inflight
	if started {
		source = cache.Upstream
	}
	return n.document(t, r.doc, source, false), nil
}

// withoutUpstream answers from what is known: the last good document for a
// week, then the versions that are held. cause is upstream's failure, nil where
// upstream was not asked. That upstream says "absent" ends a query and a
// latest, but not the list of a module whose versions are held: builds go on.
func (n *Node) withoutUpstream(ctx context.Context, t target.Target, doc store.Document, have bool, cause error) (*cache.Object, error) {
	if cause != nil && cache.ReasonOf(cause).Absent() && (t.Kind != target.List || len(n.heldVersions(ctx, t)) == 0) {
		return nil, cause
	}
	if have && (n.cfg.Upstream.Offline() || time.Since(doc.Fetched) < staleOnError) {
		return n.document(t, doc, cache.Disk, true), nil
	}
	if body := n.fromHeld(ctx, t); body != nil {
		obj := n.bytesObject(t, body, cache.Disk)
		obj.Stale = true
		return obj, nil
	}
	switch {
	case cause != nil:
		return nil, cause
	case n.cfg.Upstream.Offline():
		return nil, offline(t)
	default:
		return nil, notCached(t)
	}
}

func (n *Node) document(t target.Target, doc store.Document, source cache.Source, stale bool) *cache.Object {
	obj := n.bytesObject(t, doc.Body, source)
	obj.Age = max(0, time.Since(doc.Fetched))
	obj.TTL = max(0, freshFor-obj.Age)
	obj.Stale = stale
	n.cfg.Metrics.answered(t.Kind, source)
	return obj
}

// startRefresh joins the running refresh of t or starts one.
func (n *Node) startRefresh(ctx context.Context, t target.Target, old store.Document) (r *refresh, started bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := n.refreshes[t.String()]; r != nil {
		return r, false, nil
	}
	switch {
	case n.ended:
		return nil, false, ending()
	case len(n.refreshes) >= maxQueued:
		return nil, false, &cache.Error{Reason: cache.Busy, Text: "too many fetches are waiting", RetryAfter: queueWait}
	}
	r = &refresh{done: make(chan struct{})}
	n.refreshes[t.String()] = r
	n.running.Go(func() {
		defer n.endRefresh(t, r, !old.Fetched.IsZero())
		ctx, done := n.lasting(ctx, refreshTimeout)
		defer done()
		start := time.Now()
		r.doc, r.err = n.runRefresh(ctx, t, old)
		n.remember(t, r.err)
		r.err = n.endedBy(r.err)
		n.cfg.Metrics.filled(t.Kind, r.err, time.Since(start))
		if r.err != nil {
			n.logFailure(ctx, t, r.err)
		}
	})
	return r, true, nil
}

// endRefresh wakes who waits. Trouble is noted only where isTroubled can matter,
// or names that a flood has made up would pile up.
func (n *Node) endRefresh(t target.Target, r *refresh, have bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.refreshes, t.String())
	if r.err != nil && have && !cache.ReasonOf(r.err).Absent() {
		n.troubled[t.String()] = time.Now().Add(troubledBackoff)
	} else {
		delete(n.troubled, t.String())
	}
	close(r.done)
}

// isTroubled reports whether the last refresh of t failed a moment ago. It only
// matters where there is something stale to answer with: trouble is not
// remembered towards who has nothing.
func (n *Node) isTroubled(t target.Target) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	until, ok := n.troubled[t.String()]
	if ok && !time.Now().Before(until) {
		delete(n.troubled, t.String())
		return false
	}
	return ok
}

func (n *Node) runRefresh(ctx context.Context, t target.Target, old store.Document) (doc store.Document, err error) {
	defer n.survive(ctx, t, &err)
	release, err := n.turn(ctx, t.Kind)
	if err != nil {
		return store.Document{}, err
	}
	defer release()
	if now, err := n.cfg.Documents.Document(t.String()); err == nil && now.Fetched.After(old.Fetched) {
		return now, nil // another refresh ended between our caller's look and this one
	}
	data, resp, err := n.fetch(ctx, t, upstream.Validators{ETag: old.ETag, LastModified: old.LastModified})
	if err != nil {
		return store.Document{}, err
	}
	doc = store.Document{
		Body: data, Fetched: time.Now(), Source: resp.Source,
		ETag: resp.Validators.ETag, LastModified: resp.Validators.LastModified,
	}
	if resp.NotModified {
		doc.Body, doc.ETag, doc.LastModified = old.Body, old.ETag, old.LastModified
	}
	if err := checkDocument(t, doc.Body); err != nil {
		return store.Document{}, err
	}
	n.confirm(t, doc.Body)
	if err := n.cfg.Documents.PutDocument(t.String(), doc); err != nil {
		n.log.ErrorContext(ctx, "storing", "key", t.String(), "err", err)
	}
	return doc, nil
}

func checkDocument(t target.Target, body []byte) error {
	if t.Kind == target.List {
		return verify.List(t, body)
	}
	return verify.Info(t, body)
}

// confirm forgets the "no" for everything that a good answer has shown to
// exist: a version that we list must not be answered with an old 404
// (protocol.md F4). It looks at what is absent and not at what is listed: lists
// can have many thousands of lines.
func (n *Node) confirm(t target.Target, body []byte) {
	n.absent.forget(t.String())
	for _, name := range n.absent.of(t.Path) {
		file, err := target.Parse(name)
		if err == nil && file.Kind.Immutable() && mentions(t, body, file.Version) {
			n.absent.forget(name)
		}
	}
}

// mentions reports whether a list has version, or another document is about it.
func mentions(t target.Target, body []byte, version string) bool {
	if t.Kind != target.List {
		var info struct{ Version string }
		_ = json.Unmarshal(body, &info) // checkDocument has seen it
		return info.Version == version
	}
	for line := range bytes.Lines(body) {
		if fields := bytes.Fields(line); len(fields) > 0 && string(fields[0]) == version {
			return true
		}
	}
	return false
}
