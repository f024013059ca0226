package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime/debug"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/spans"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/polite"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/upstream"
)

// fill runs a flight to its end. It never leaves the flight without an end: a
// panic becomes an error of the flight and a line in the log.
func (n *Node) fill(ctx context.Context, t target.Target, f *flight) {
	ctx, done := n.lasting(ctx, fillTimeout)
	defer done()
	defer context.AfterFunc(f.life, done)() //nolint:contextcheck // it ends what ctx bounds as well
	ctx, span := spans.Start(ctx, trace.SpanKindInternal, "fill", spans.Key.String(t.String()))
	start := time.Now()
	o, err := n.runFill(ctx, t, f)
	o, err = n.endedByPurge(t, o, err)
	n.remember(t, err, start)
	err = n.endedBy(inTime(ctx, err))
	// Whoever finish wakes must not join this flight again, nor may its "no" be
	// noted after a list that they ask for has shown the opposite.
	n.flights.remove(f)
	f.finish(o, err)
	spans.End(span, err)
	n.cfg.Metrics.filled(t.Kind, err, time.Since(start))
	if err == nil {
		n.log.DebugContext(ctx, "filled", "key", t.String(), "duration_ms", ms(time.Since(start)))
		return
	}
	n.logFailure(ctx, t, err)
}

// Abandon ends all fills and refreshes that run, as the disk cannot be read: they may wait
// for it for as long as it hangs. Who follows one asks another node.
func (n *Node) Abandon() {
	n.mu.Lock()
	for key, r := range n.refreshes {
		close(r.dead)
		delete(n.refreshes, key)
	}
	n.mu.Unlock()
	n.flights.mu.Lock()
	defer n.flights.mu.Unlock()
	for key, f := range n.flights.running {
		f.end(unreadable(store.ErrDead))
		delete(n.flights.running, key) // who asks once the disk is well begins anew
	}
}

func (n *Node) runFill(ctx context.Context, t target.Target, f *flight) (o small, err error) {
	defer n.survive(ctx, t, &err)
	release, err := n.turn(ctx, t.Kind, f.direct)
	if err != nil {
		return small{}, err
	}
	defer release()
	if n.arrived(ctx, t) {
		return small{}, nil
	}
	if t.Kind == target.Zip {
		return small{}, n.fillZip(ctx, t, f)
	}
	return n.fillSmall(ctx, t, f)
}

// inTime returns err, or that a fill took too long where that is why it failed.
func inTime(ctx context.Context, err error) error {
	if _, told := errors.AsType[*cache.Error](err); err == nil || told || ctx.Err() == nil {
		return err
	}
	return &cache.Error{Reason: cache.Slow, Text: "the fetch took too long", Err: err}
}

// survive, deferred, turns a panic into the error of a fill or refresh and a line
// in the log.
func (n *Node) survive(ctx context.Context, t target.Target, err *error) {
	if p := recover(); p != nil {
		n.log.ErrorContext(ctx, "panic in a fill", "key", t.String(), "err", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = &cache.Error{Reason: cache.Internal, Text: "the cache failed while fetching " + t.Describe()}
	}
}

// places are for fills. Zips take at most three quarters of them, so that what is
// small never waits for zips alone.
type places struct{ all, zips *semaphore.Weighted }

func newPlaces(n int) places {
	return places{semaphore.NewWeighted(int64(n)), semaphore.NewWeighted(max(1, int64(n)*3/4))}
}

// turn waits for one of the places. Those who ask upstream have places of their
// own: nodes whose places are all taken by fills that wait for each other would get
// nowhere.
func (n *Node) turn(ctx context.Context, kind target.Kind, direct bool) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, queueWait)
	defer cancel()
	from := n.forwards
	if direct {
		from = n.fills
	}
	wanted := []*semaphore.Weighted{from.all}
	if kind == target.Zip {
		wanted = []*semaphore.Weighted{from.zips, from.all}
	}
	release = func() {}
	for _, place := range wanted {
		if err := place.Acquire(ctx, 1); err != nil {
			release()
			return nil, &cache.Error{Reason: cache.Busy, Text: "too many fetches are running", RetryAfter: queueWait, Err: err}
		}
		before := release
		release = func() {
			place.Release(1)
			before()
		}
	}
	return release, nil
}

// arrived reports whether another fill stored t between our caller's look into
// the store and the start of this one.
func (n *Node) arrived(ctx context.Context, t target.Target) bool {
	if _, _, ok := n.writes.Pending(t.String()); ok {
		return true
	}
	obj, err := n.cfg.Store.Open(ctx, t.String())
	if err != nil {
		return false
	}
	_ = obj.File.Close()
	return true
}

// lookAhead starts the checksum database's lookup beside the fetch, so that the
// two cost the time of one. Its result is asked for again by check.
func (n *Node) lookAhead(ctx context.Context, t target.Target) {
	if db := n.database(t); db != nil {
		ahead := func(look func() error) {
			n.running.Go(func() {
				var err error
				defer n.survive(ctx, t, &err)
				err = look()
			})
		}
		ahead(func() error { _, err := db.Lookup(ctx, t.Module()); return err })
		// Clients may know a newer head than the records carry, and ask for its tiles first.
		ahead(func() error { _, err := db.Latest(ctx); return err })
	}
}

// check compares h1 with the checksum database. Where none covers t, nobody has
// verified it; a .info has no hash there. One that was brought along must be of a
// version that the database knows: else lists would have what cannot be had.
func (n *Node) check(ctx context.Context, t target.Target, h1 string) (store.Proof, error) {
	db := n.database(t)
	if db == nil || t.Kind == target.Info && !upstream.HasBundle(ctx) {
		return store.Proof{H1: h1}, nil
	}
	if err := db.Check(ctx, t.Module(), t.Kind, h1); err != nil {
		return store.Proof{}, err
	}
	return store.Proof{H1: h1, Verified: t.Kind != target.Info}, nil
}

// remember keeps upstream's "no" to a question of that time for a while, to answer with,
// and every failure for those who ask why.
func (n *Node) remember(t target.Target, err error, asked time.Time) {
	n.failures.put(t.String(), err)
	if e, ok := errors.AsType[*cache.Error](err); ok && isWord(err) {
		n.absent.put(t.String(), e, asked)
	}
}

// logFailure writes one line per failed fill or refresh. Absence is an answer,
// not a failure, and of a host that is left alone the log knows.
func (n *Node) logFailure(ctx context.Context, t target.Target, err error) {
	level := slog.LevelWarn
	switch reason := cache.ReasonOf(err); {
	case reason.Absent(), errors.Is(err, polite.ErrLeftAlone):
		level = slog.LevelDebug
	case reason == cache.Mismatch || reason == cache.Internal:
		level = slog.LevelError
	}
	n.log.Log(ctx, level, "not filled", "key", t.String(), "reason", cache.ReasonOf(err).String(), "err", err)
}

// isDuplicate reports whether t was stored while we filled it, which two fills
// on two ways can do. The first one stays: its digest may be known elsewhere.
func (n *Node) isDuplicate(ctx context.Context, t target.Target) bool {
	if n.cfg.Peers == nil || !n.arrived(ctx, t) {
		return false
	}
	n.cfg.Metrics.duplicated()
	return true
}

// errDisk is behind what our own disk is to blame for.
var errDisk = errors.New("writing here")

// diskRetry is when to ask again: the disk is probed more often.
const diskRetry = 30 * time.Second

// notStored writes why an object was not. A disk that takes nothing has said so itself.
func notStored(ctx context.Context, log *slog.Logger, name string, err error) {
	level := slog.LevelError
	switch {
	case errors.Is(err, store.ErrReadOnly), errors.Is(err, store.ErrPurged):
		level = slog.LevelDebug
	case errors.Is(err, store.ErrFull):
		level = slog.LevelWarn
	}
	log.Log(ctx, level, "storing", "key", name, "err", err)
}

func (n *Node) notStored(ctx context.Context, name string, err error) {
	notStored(ctx, n.log, name, err)
}

func diskError(err error) error {
	if errors.Is(err, fs.ErrClosed) {
		return ending()
	}
	return &cache.Error{
		Reason: cache.Busy, Text: "the cache cannot write to its disk", RetryAfter: diskRetry, Err: fmt.Errorf("%w: %w", errDisk, err),
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
