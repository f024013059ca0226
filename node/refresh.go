package node

import (
	"context"
	"errors"
	"hash/maphash"
	"io"
	"sync"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/verify"
)

const (
	refreshTimeout  = time.Minute
	troubledBackoff = 5 * time.Second // between refreshes while upstream fails and there is something stale
)

// refreshing is one conversation about a mutable target, with upstream or with the
// coordinators on its route, shared by all who wait for it.
type refreshing struct {
	flightKey

	route  []Coordinator
	number uint64    // of the latest order to refresh the module when it began
	began  time.Time // before anybody was asked
	done   chan struct{}
	dead   chan struct{} // closed when the disk is, for which it may wait

	// What it has brought, to be read when done is closed.
	doc    store.Document // without Fetched where a node has made it from what it holds
	stale  bool           // nobody could get a newer one
	source cache.Source
	err    error
}

// startRefresh joins the running refresh of t or starts one by that route. As
// with flights, who must not wait for other nodes joins those that ask upstream. One
// that began before the latest order may bring what was before it.
func (n *Node) startRefresh(ctx context.Context, t target.Target, old store.Document, directOnly bool, route []Coordinator) (r *refreshing, started bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	number := n.cfg.Refreshes.Latest(t.Path).Number
	for _, direct := range []bool{true, false} {
		if r := n.refreshes[flightKey{t.String(), direct}]; r != nil && r.number >= number && (direct || !directOnly) {
			return r, false, nil
		}
	}
	switch {
	case n.ended:
		return nil, false, ending()
	case len(n.refreshes) >= maxQueued:
		return nil, false, &cache.Error{Reason: cache.Busy, Text: "too many fetches are waiting", RetryAfter: queueWait}
	}
	r = &refreshing{flightKey: flightKey{t.String(), len(route) == 0}, route: route, number: number, began: time.Now(), done: make(chan struct{}), dead: make(chan struct{}), source: cache.Upstream}
	n.refreshes[r.flightKey] = r
	n.running.Go(func() {
		defer n.endRefresh(r, !old.Fetched.IsZero())
		limit := refreshTimeout
		if !r.direct {
			limit *= 2 // or it would end before the one that it waits for
		}
		ctx, done := n.lasting(ctx, limit)
		defer done()
		err := n.runRefresh(ctx, t, old, r)
		n.remember(t, err, r.began)
		r.err = n.endedBy(inTime(ctx, err))
		n.cfg.Metrics.filled(t.Kind, r.err, time.Since(r.began))
		if r.err != nil {
			n.logFailure(ctx, t, r.err)
		}
	})
	return r, true, nil
}

// endRefresh wakes who waits. Trouble is noted only where isTroubled can matter,
// or names that a flood has made up would pile up.
func (n *Node) endRefresh(r *refreshing, have bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refreshes[r.flightKey] == r { // else another one runs since, under a later order
		delete(n.refreshes, r.flightKey)
	}
	if r.err == nil && !r.stale {
		n.renew(r.name, r.number)
	}
	if r.stale || (r.err != nil && have && !isWord(r.err)) {
		n.troubled[r.name] = time.Now().Add(troubledBackoff)
	} else {
		delete(n.troubled, r.name)
	}
	close(r.done)
}

// trouble reports whether the last refresh of t failed, so that nobody is to wait for
// the next one, and whether that was a moment ago, so that there is none yet. It only
// matters where there is something stale to answer with: trouble is not
// remembered towards who has nothing.
func (n *Node) trouble(t target.Target) (failed, now bool) {
	ordered := n.cfg.Refreshes.Latest(t.Path).Given
	n.mu.Lock()
	defer n.mu.Unlock()
	until, failed := n.troubled[t.String()]
	if failed && ordered.After(until.Add(-troubledBackoff)) {
		delete(n.troubled, t.String())
		failed = false
	}
	return failed, failed && time.Now().Before(until)
}

func (n *Node) runRefresh(ctx context.Context, t target.Target, old store.Document, r *refreshing) (err error) {
	defer n.survive(ctx, t, &err)
	release, err := n.turn(ctx, t.Kind, r.direct)
	if err != nil {
		return err
	}
	defer release()
	now, err := n.cfg.Documents.Document(t.String())
	if err == nil && now.Fetched.After(old.Fetched) && n.isFresh(t, now) {
		r.doc = now // another refresh ended between our caller's look and this one
		return nil
	}
	if r.direct {
		err = n.refreshUpstream(ctx, t, old, r)
	} else {
		err = n.refreshHome(ctx, t, old, r)
	}
	if err != nil && !isWord(err) && n.refreshRegion(ctx, t, old, r) {
		return nil
	}
	return err
}

// refreshUpstream asks upstream.
func (n *Node) refreshUpstream(ctx context.Context, t target.Target, old store.Document, r *refreshing) error {
	if n.cfg.Upstream.Offline() {
		return offline(t)
	}
	// Upstream may take its time over an answer that was old when it began.
	asked := time.Now()
	resp, err := n.cfg.Upstream.Fetch(ctx, t, upstream.Validators{ETag: old.ETag, LastModified: old.LastModified})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	doc := store.Document{Fetched: asked, Source: resp.Source, ETag: resp.Validators.ETag, LastModified: resp.Validators.LastModified}
	if resp.NotModified {
		doc.Body, doc.ETag, doc.LastModified = old.Body, old.ETag, old.LastModified
	} else if doc.Body, err = io.ReadAll(resp.Body); err != nil { // the upstream bounds it
		return err
	}
	if err := verify.Form(t, doc.Body); err != nil {
		return err
	}
	if t.Kind == target.List && !resp.NotModified {
		doc.Body = append(doc.Body, n.vanished(ctx, t.Path, old.Body, doc.Body)...)
	}
	n.cfg.Metrics.supplied(t.Kind, fromUpstream)
	r.doc = n.keep(ctx, t, doc)
	return nil
}

// refreshHome asks the coordinators of the route and, when they are of no help,
// upstream, by a refresh that whoever takes this node for the coordinator can
// join.
func (n *Node) refreshHome(ctx context.Context, t target.Target, old store.Document, r *refreshing) error {
	err := n.inTurn(ctx, t, r.route, func(c Coordinator) error {
		obj, err := n.coordinate(ctx, t, c)
		if err != nil {
			return err
		}
		return n.refreshBy(ctx, t, &supply{origin: fromHome, object: obj}, r)
	})
	if !errors.Is(err, errNoCoordinator) {
		return err
	}
	own, _, err := n.startRefresh(ctx, t, old, true, nil)
	if err != nil {
		return err
	}
	select {
	case <-own.done:
	case <-own.dead:
		return unreadable(store.ErrDead)
	case <-ctx.Done():
		return ctx.Err()
	}
	r.doc, r.stale = own.doc, own.stale
	return own.err
}

// refreshRegion takes the youngest document of the region, if that is younger
// than ours.
func (n *Node) refreshRegion(ctx context.Context, t target.Target, old store.Document, r *refreshing) bool {
	if n.cfg.Peers == nil {
		return false
	}
	obj, err := n.cfg.Peers.Peek(ctx, t)
	if err != nil {
		return false
	}
	obj.Source = cache.Peer
	if err := n.refreshBy(ctx, t, &supply{origin: fromPeer, object: obj}, r); err != nil {
		return false
	}
	r.stale = true
	return r.doc.Fetched.After(old.Fetched) && n.isGood(r.doc)
}

// refreshBy takes the document that a node gives. Its age counts from now.
func (n *Node) refreshBy(ctx context.Context, t target.Target, s *supply, r *refreshing) error {
	obj, fetched := s.object, time.Now().Add(-s.object.Age)
	return n.useObject(t, s, func(s *supply) error {
		data, err := readSmall(s.body, t)
		if err != nil {
			return err
		}
		if err := verify.Form(t, data); err != nil {
			return err
		}
		r.source, r.stale = obj.Source, obj.Stale
		if obj.Stale && obj.Age == 0 {
			r.doc = store.Document{Body: data}
			return nil
		}
		r.doc = n.keep(ctx, t, store.Document{Body: data, Fetched: fetched})
		return nil
	})
}

// keep stores doc unless there is a younger one, and returns the younger one.
func (n *Node) keep(ctx context.Context, t target.Target, doc store.Document) store.Document {
	if _, err := n.cfg.Documents.Document(t.String()); errors.Is(err, store.ErrDead) {
		return doc // before the turn, which somebody may hold for as long as the disk hangs
	}
	turn := &n.keeping[maphash.String(n.seed, t.String())%uint64(len(n.keeping))]
	turn.Lock()
	defer turn.Unlock()
	now, err := n.cfg.Documents.Document(t.String())
	if err == nil && now.Fetched.After(doc.Fetched) && !now.Fetched.After(time.Now()) { // clocks are set back
		return now
	}
	n.confirm(t, doc.Body)
	if left := n.cfg.Purges.List(t.Path, doc.Body); t.Kind == target.List && len(left) < len(doc.Body) {
		// Upstream must not confirm by its validators what it has not said.
		doc.Body, doc.ETag, doc.LastModified = left, "", ""
	}
	if err := n.cfg.Documents.PutDocument(t.String(), doc); err != nil {
		n.notStored(ctx, t.String(), err)
	}
	return doc
}

// isWord reports whether err is upstream's word that there is no such thing.
func isWord(err error) bool {
	reason := cache.ReasonOf(err)
	return reason == cache.NotFound || reason == cache.Gone
}

// stripes are locks that names share.
type stripes [64]sync.Mutex
