package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"runtime/debug"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/verify"
)

// copyBuffer is the unit in which a zip goes to disk (perf.md 6.6).
const copyBuffer = 256 << 10

// fill runs a flight to its end. It never leaves the flight without an end: a
// panic becomes an error of the flight and a line in the log.
func (n *Node) fill(ctx context.Context, t target.Target, f *flight) {
	ctx, done := n.lasting(ctx, fillTimeout)
	defer done()
	start := time.Now()
	o, err := n.runFill(ctx, t, f)
	n.remember(t, err)
	err = n.endedBy(err)
	// Whoever finish wakes must not join this flight again, nor may its "no" be
	// noted after a list that they ask for has shown the opposite.
	n.flights.remove(t.String())
	f.finish(o, err)
	n.cfg.Metrics.filled(t.Kind, err, time.Since(start))
	if err == nil {
		n.log.DebugContext(ctx, "filled", "key", t.String(), "duration_ms", ms(time.Since(start)))
		return
	}
	n.logFailure(ctx, t, err)
}

func (n *Node) runFill(ctx context.Context, t target.Target, f *flight) (o small, err error) {
	defer n.survive(ctx, t, &err)
	release, err := n.turn(ctx, t.Kind)
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
	return n.fillSmall(ctx, t)
}

// survive, deferred, turns a panic into the error of a fill or refresh and a line
// in the log.
func (n *Node) survive(ctx context.Context, t target.Target, err *error) {
	if p := recover(); p != nil {
		n.log.ErrorContext(ctx, "panic in a fill", "key", t.String(), "err", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = &cache.Error{Reason: cache.Internal, Text: "the cache failed while fetching " + t.Describe()}
	}
}

// turn waits for one of the places for fills. Zips take at most three quarters
// of them, so that what is small never waits for zips alone.
func (n *Node) turn(ctx context.Context, kind target.Kind) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, queueWait)
	defer cancel()
	places := []*semaphore.Weighted{n.fills}
	if kind == target.Zip {
		places = []*semaphore.Weighted{n.zipFills, n.fills}
	}
	release = func() {}
	for _, place := range places {
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

// fillSmall fetches a .info or .mod whole, verifies it and hands it to the
// writer behind: a caller need not wait for the disk.
func (n *Node) fillSmall(ctx context.Context, t target.Target) (small, error) {
	if t.Kind == target.Mod {
		n.lookAhead(ctx, t)
	}
	data, _, err := n.fetch(ctx, t, upstream.Validators{})
	if err != nil {
		return small{}, err
	}
	h1 := ""
	if t.Kind == target.Mod {
		h1, err = verify.Mod(t, data)
	} else {
		err = verify.Info(t, data)
	}
	if err != nil {
		return small{}, err
	}
	if err := n.check(ctx, t, h1); err != nil {
		return small{}, err
	}
	return small{data, n.proofOf(t, h1)}, n.writes.Put(ctx, t.String(), data, h1)
}

// fetch reads a small target whole. The upstream bounds its size.
func (n *Node) fetch(ctx context.Context, t target.Target, v upstream.Validators) ([]byte, *upstream.Response, error) {
	resp, err := n.cfg.Upstream.Fetch(ctx, t, v)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.NotModified {
		return nil, resp, nil
	}
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil, err
	}
	return data, resp, nil
}

// fillZip streams a zip to disk while followers read it, verifies it, and only
// then releases its last bytes.
func (n *Node) fillZip(ctx context.Context, t target.Target, f *flight) error {
	n.writes.Stir()
	n.lookAhead(ctx, t)
	resp, err := n.cfg.Upstream.Fetch(ctx, t, upstream.Validators{})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	pending, err := n.cfg.Store.Create(t.String())
	if err != nil {
		return diskError(err)
	}
	defer pending.Abort()
	file, err := pending.Open()
	if err != nil {
		return diskError(err)
	}
	defer func() { _ = file.Close() }()
	download := n.cfg.Verifier.Follow(ctx, file)
	defer download.Close()
	f.open(pending, resp.Size)
	size, err := receive(pending, resp, func(written int64) {
		f.advance(written)
		download.Advance(written)
	})
	if err != nil {
		return err
	}
	h1, err := download.Zip(t.Module(), size)
	if err != nil {
		return err
	}
	if err := n.check(ctx, t, h1); err != nil {
		return err
	}
	f.verify(n.proofOf(t, h1))
	if _, err := pending.Commit(h1); err != nil {
		// The followers have verified bytes; only the next one pays for this.
		n.log.ErrorContext(ctx, "storing", "key", t.String(), "err", err)
	}
	return nil
}

// receive copies the body to pending at upstream's speed, tells advance how far
// that is, and returns its size.
func receive(pending store.Pending, resp *upstream.Response, advance func(written int64)) (int64, error) {
	buf := make([]byte, bufferFor(resp.Size))
	var written int64
	for {
		got, err := resp.Body.Read(buf)
		if got > 0 {
			if _, err := pending.Write(buf[:got]); err != nil {
				return written, diskError(err)
			}
			written += int64(got)
			advance(written)
		}
		switch {
		case err == io.EOF && resp.Size >= 0 && written != resp.Size:
			return written, &cache.Error{Reason: cache.Broken, Source: resp.Source, Text: fmt.Sprintf("sent %d bytes where it had announced %d", written, resp.Size)}
		case err == io.EOF:
			return written, nil
		case err != nil:
			return written, err
		}
	}
}

// bufferFor returns how large a buffer serves a body of size bytes, -1 if unknown:
// most zips are smaller than copyBuffer, and the buffers of a burst are what the
// garbage collector then has to do with. The one byte more lets a single Read meet
// the end.
func bufferFor(size int64) int64 {
	if size < 0 {
		return copyBuffer
	}
	return min(size+1, copyBuffer)
}

// lookAhead starts the checksum database's lookup beside the fetch, so that the
// two cost the time of one. Its result is asked for again by check.
func (n *Node) lookAhead(ctx context.Context, t target.Target) {
	if db := n.database(t); db != nil {
		n.running.Go(func() { _, _ = db.Lookup(ctx, t.Module()) })
		// Clients may know a newer head than the records carry, and ask for its tiles first.
		n.running.Go(func() { _, _ = db.Latest(ctx) })
	}
}

// check compares h1 with the checksum database. A .info has no hash there.
func (n *Node) check(ctx context.Context, t target.Target, h1 string) error {
	db := n.database(t)
	if db == nil || t.Kind == target.Info {
		return nil
	}
	return db.Check(ctx, t.Module(), t.Kind, h1)
}

// remember keeps upstream's "no" for a while, to answer with, and every failure for
// those who ask why.
func (n *Node) remember(t target.Target, err error) {
	n.failures.put(t.String(), err)
	if e, ok := errors.AsType[*cache.Error](err); ok && (e.Reason == cache.NotFound || e.Reason == cache.Gone) {
		n.absent.put(t.String(), e)
	}
}

// logFailure writes one line per failed fill or refresh. Absence is an answer,
// not a failure.
func (n *Node) logFailure(ctx context.Context, t target.Target, err error) {
	level := slog.LevelWarn
	switch reason := cache.ReasonOf(err); {
	case reason.Absent():
		level = slog.LevelDebug
	case reason == cache.Mismatch || reason == cache.Internal:
		level = slog.LevelError
	}
	n.log.Log(ctx, level, "not filled", "key", t.String(), "reason", cache.ReasonOf(err).String(), "err", err)
}

func diskError(err error) error {
	if errors.Is(err, fs.ErrClosed) {
		return ending()
	}
	return &cache.Error{Reason: cache.Busy, Text: "the cache cannot write to its disk", RetryAfter: 30 * time.Second, Err: err}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
