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
)

// Ages of mutable answers (DESIGN section 8).
const (
	freshFor     = time.Minute
	refreshAfter = 45 * time.Second // asked for anew, behind who asks, so that it is seldom older than freshFor
	askAgain     = time.Second      // meanwhile
	staleWhile   = 10 * time.Minute // served when a refresh takes longer than a moment
	staleOnError = 7 * 24 * time.Hour
)

// mutable answers list, latest and queries.
func (n *Node) mutable(ctx context.Context, req cache.Request) (*cache.Object, error) {
	t := req.Target
	done := atDisk(ctx)
	doc, err := n.cfg.Documents.Document(t.String())
	done()
	have := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.ErrorContext(ctx, "reading a document", "key", t.String(), "err", err)
	}
	age := time.Since(doc.Fetched)
	fresh := have && n.isFresh(t, doc)
	failed, again := n.trouble(t)
	switch {
	case fresh && (age < refreshAfter || !mayFill(req.Mode) || n.sealed()):
		return n.document(t, doc, cache.Disk, false), nil
	case req.Mode == cache.Peek && !(have && n.isGood(doc)):
		return nil, notCached(t) // what is made from the versions here is no document
	case !mayFill(req.Mode) || n.sealed():
		return n.withoutUpstream(ctx, t, doc, have, nil)
	case again && fresh:
		return n.document(t, doc, cache.Disk, false), nil
	case again && have && age < staleOnError:
		return n.withoutUpstream(ctx, t, doc, have, nil)
	}
	if err := n.absence(t); err != nil {
		return n.withoutUpstream(ctx, t, doc, have, err)
	}
	r, started, err := n.startRefresh(ctx, t, doc, req.Mode == cache.Coordinate, n.route(req))
	switch {
	case err != nil && !fresh:
		return n.withoutUpstream(ctx, t, doc, have, err)
	case r == nil || fresh && req.Mode != cache.Coordinate: // meanwhile
		return n.document(t, doc, cache.Disk, false), nil
	}
	if !r.within(ctx, patienceWith(have && n.isGood(doc), failed, age, req.Mode)) {
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case have:
			return n.document(t, doc, cache.Disk, true), nil
		default: // as otherwise it would have ended
			return nil, unreadable(store.ErrDead)
		}
	}
	return n.refreshed(ctx, t, doc, have, r, started)
}

// patienceWith returns how long to wait for a refresh. A node that asks has something old
// itself, or has nothing and waits. A host that is down costs the first client a moment,
// and the next ones nothing.
func patienceWith(have, failed bool, age time.Duration, mode cache.Mode) time.Duration {
	switch {
	case !have || mode == cache.Coordinate:
		return 2 * refreshTimeout
	case failed:
		return 0
	case age >= 0 && age < freshFor+staleWhile:
		return lateFor
	default:
		return laterFor
	}
}

// refreshed answers with what a refresh has brought.
func (n *Node) refreshed(ctx context.Context, t target.Target, old store.Document, have bool, r *refreshing, started bool) (*cache.Object, error) {
	source := cache.Inflight
	if started {
		source = r.source
	}
	switch {
	case cache.ReasonOf(r.err) == cache.NotCached: // nobody could ask upstream
		return n.withoutUpstream(ctx, t, old, have, nil)
	case r.err != nil:
		return n.withoutUpstream(ctx, t, old, have, r.err)
	case !r.doc.Fetched.IsZero():
		return n.document(t, r.doc, source, r.stale), nil
	case have && n.isGood(old):
		return n.document(t, old, cache.Disk, true), nil
	default:
		obj := n.bytesObject(t, r.doc.Body, source)
		obj.Stale = true
		return obj, nil
	}
}

// isGood reports whether doc may be served when there is no newer one.
func (n *Node) isGood(doc store.Document) bool {
	return n.cfg.Upstream.Offline() || time.Since(doc.Fetched) < staleOnError
}

// withoutUpstream answers from what is known: the last good document for a
// week, then the versions that are held. cause is upstream's failure, nil where
// upstream was not asked. That upstream says "absent" ends a query and a
// latest, but not the list of a module whose versions are held: builds go on.
func (n *Node) withoutUpstream(ctx context.Context, t target.Target, doc store.Document, have bool, cause error) (*cache.Object, error) {
	if cache.ReasonOf(cause) == cache.Purged {
		return nil, cause
	}
	if cause != nil && cache.ReasonOf(cause).Absent() && (t.Kind != target.List || len(n.heldVersions(ctx, t)) == 0) {
		return nil, cause
	}
	if have && n.isGood(doc) {
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
	// Then we are to be asked again, by whom there is something newer for soon after.
	obj.TTL = max(refreshAfter-obj.Age, min(askAgain, freshFor-obj.Age), 0)
	obj.Stale = stale
	n.cfg.Metrics.answered(t.Kind, source)
	return obj
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
		_ = json.Unmarshal(body, &info) // verify.Form has seen it
		return info.Version == version
	}
	for line := range bytes.Lines(body) {
		if fields := bytes.Fields(line); len(fields) > 0 && string(fields[0]) == version {
			return true
		}
	}
	return false
}
