package cluster

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
)

const (
	defaultSpoolLimit = 1 << 30
	maxSpools         = 1024             // files at a time
	spoolStep         = 4 << 20          // bytes reserved at a time where the size is unknown
	spoolKept         = 10 * time.Second // after the last reader has left
	spoolPause        = 30 * time.Second // after the folder has failed

	maxAlone  = 64   // zips at a time that are passed through to their only clients
	maxLately = 4096 // zips that are remembered as passed through
)

var (
	// errUnspooled: there is no file; everybody asks for himself.
	errUnspooled = errors.New("no room to spool")
	// errSpool: there is no file for the rest; everybody goes on for himself.
	errSpool = errors.New("spooling")
	// errPassed: there is no file; the only client reads the stream himself.
	errPassed = errors.New("passed through")
)

// source is where a spool gets its object from.
type source struct {
	// open asks for the object on behalf of all who wait. It may be read slowly, if
	// there is only one.
	open func(ctx context.Context, slow bool) (*cache.Object, error)
	// rest asks for what comes behind at, on behalf of one who waits.
	rest func(size int64, at position) (io.ReadCloser, error)
}

// spools are the zips that are streaming, and those that were a moment ago.
type spools struct {
	dir   string
	limit int64
	log   *slog.Logger

	running sync.WaitGroup

	mu     sync.Mutex
	closed bool
	all    map[spoolKey]*spool // those that can be joined
	kept   []*spool            // complete and without readers, the one that left first in front
	files  int
	used   int64     // bytes reserved
	paused time.Time // until then the folder is left alone

	// When the zips that were passed through to their only clients have ended, zero
	// for those that have not, which are alone many.
	lately map[string]time.Time
	alone  int
}

type spoolKey struct {
	name string
	mode cache.Mode
}

func newSpools(cfg Config) *spools {
	return &spools{
		dir: cfg.SpoolDir, limit: cmp.Or(cfg.SpoolLimit, defaultSpoolLimit), log: cfg.Logger,
		all: make(map[spoolKey]*spool), lately: make(map[string]time.Time),
	}
}

// get answers req from a spool, a new one where there is none: joined tells that there
// was one. Neither an object nor an error means that there is no room.
func (ss *spools) get(ctx context.Context, req cache.Request, src source) (obj *cache.Object, joined bool, err error) {
	s, joined := ss.join(ctx, req, &src)
	if s == nil {
		return nil, false, nil
	}
	state, err := s.await(ctx, func(state spoolState) bool { return state.obj != nil })
	if err == nil {
		return ss.answer(ctx, s, state, joined, src), joined, nil
	}
	s.abandon()
	ss.leave(s)
	if _, said := errors.AsType[*cache.Error](err); said {
		return nil, joined, err
	}
	return nil, joined, ctx.Err() // else it is the spool's own trouble
}

// whole answers req from a spool that exists, once it is complete. Neither an
// object nor an error means that there is none, or that it has failed.
func (ss *spools) whole(ctx context.Context, req cache.Request) (*cache.Object, error) {
	s, _ := ss.join(ctx, req, nil)
	if s == nil {
		return nil, nil
	}
	state, err := s.await(ctx, func(state spoolState) bool { return state.done })
	if err != nil {
		ss.leave(s)
		return nil, ctx.Err()
	}
	return ss.answer(ctx, s, state, true, source{}), nil
}

// answer makes the answer for one client, who leaves when its body is closed.
func (ss *spools) answer(ctx context.Context, s *spool, state spoolState, joined bool, src source) *cache.Object {
	obj := *state.obj
	switch {
	case state.stream != nil:
	case joined && state.done:
		obj.Source = cache.Memory
	case joined && obj.Source == cache.Upstream:
		obj.Source = cache.Inflight
	}
	leave := sync.OnceFunc(func() { ss.leave(s) })
	if state.data != nil {
		obj.Body = &heldBody{bytes.NewReader(state.data), leave}
		return &obj
	}
	if state.stream != nil {
		gone := context.AfterFunc(ctx, s.cancel)
		obj.Body = &released{state.stream, func() { gone(); s.cancel(); leave() }}
		return &obj
	}
	f := &follower{spool: s, file: reopen(s.file), gone: ctx.Done(), rest: src.rest, leave: leave}
	obj.Body = f
	if state.done {
		obj.Body = &wholeFollower{f, state.readable}
	}
	return &obj
}

// join returns the spool of what req asks for, with the caller as a client. Where
// there is none it starts one from src, nil if src is nil or there is no room. A
// spool belongs to nobody: it runs until its last client leaves.
func (ss *spools) join(ctx context.Context, req cache.Request, src *source) (s *spool, joined bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	key := spoolKey{req.Target.String(), req.Mode}
	for _, key := range [...]spoolKey{{key.name, cache.AllowFill}, key} {
		if s := ss.all[key]; s != nil {
			ss.unkeep(s)
			s.clients++
			s.shared = true
			return s, true
		}
	}
	if src == nil || !ss.hasRoom() {
		return nil, false
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s = &spool{key: key, cancel: cancel, clients: 1, running: true, shared: !ss.mayPass(key.name), changed: make(chan struct{})}
	ss.all[key] = s
	slow := !s.shared
	ss.running.Go(func() { ss.run(ctx, s, *src, slow) })
	return s, false
}

// mayPass tells whether a zip may be passed through if only one client asks for
// it: it was not a moment ago. ss.mu is held.
func (ss *spools) mayPass(name string) bool {
	recent := func(ended time.Time) bool { return ended.IsZero() || time.Since(ended) < spoolKept }
	if len(ss.lately) >= maxLately {
		maps.DeleteFunc(ss.lately, func(_ string, ended time.Time) bool { return !recent(ended) })
	}
	ended, known := ss.lately[name]
	return ss.alone < maxAlone && len(ss.lately) < maxLately && !(known && recent(ended))
}

// pass tells whether s is to be passed through, as its only client has nobody to
// share it with. Nobody can join it then.
func (ss *spools) pass(s *spool) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if s.shared || s.clients == 0 || !ss.mayPass(s.key.name) {
		return false
	}
	ss.forget(s)
	s.passed = true
	ss.lately[s.key.name] = time.Time{}
	ss.alone++
	return true
}

// close ends what runs, waits for it, and keeps nothing from then on.
func (ss *spools) close() {
	ss.mu.Lock()
	ss.closed = true
	for _, s := range ss.all {
		if s.running {
			s.cancel()
		}
	}
	for _, s := range slices.Clone(ss.kept) {
		ss.unkeep(s)
		ss.drop(s)
	}
	ss.mu.Unlock()
	ss.running.Wait()
}

// purge ends what streams and drops what is kept of zips that were purged. Who follows one
// is cut.
func (ss *spools) purge(purged func(name string) bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for key, s := range ss.all {
		switch {
		case !purged(key.name):
		case slices.Contains(ss.kept, s):
			ss.unkeep(s)
			ss.drop(s)
		default:
			ss.forget(s)
			if s.running {
				s.cancel()
			}
		}
	}
}

// hasRoom tells whether another spool is worth a try. ss.mu is held.
func (ss *spools) hasRoom() bool {
	idle := int64(0)
	for _, s := range ss.kept {
		idle += s.reserved
	}
	return !ss.closed && ss.used-idle < ss.limit && ss.files-len(ss.kept) < maxSpools && time.Now().After(ss.paused)
}

// leave takes a client away.
func (ss *spools) leave(s *spool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s.clients--
	ss.settle(s)
}

// ended notes that nothing more is written to s.
func (ss *spools) ended(s *spool, complete bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s.running, s.complete = false, complete
	if complete {
		ss.used += s.written - s.reserved
		s.reserved = s.written
	} else {
		ss.forget(s)
	}
	ss.settle(s)
}

// settle ends s, or keeps it for a while, when nobody reads it. ss.mu is held.
func (ss *spools) settle(s *spool) {
	switch {
	case s.clients > 0:
	case s.passed:
		s.passed = false
		ss.lately[s.key.name] = time.Now()
		ss.alone--
	case s.running:
		ss.forget(s)
		s.cancel()
	case s.complete && ss.all[s.key] == s && !ss.closed:
		ss.kept = append(ss.kept, s)
		s.expiry = time.AfterFunc(spoolKept, func() { ss.expire(s) })
	default:
		ss.drop(s)
	}
}

func (ss *spools) expire(s *spool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if slices.Contains(ss.kept, s) {
		ss.unkeep(s)
		ss.drop(s)
	}
}

// unkeep takes s from those that are kept. ss.mu is held, as in what follows.
func (ss *spools) unkeep(s *spool) {
	if i := slices.Index(ss.kept, s); i >= 0 {
		ss.kept = slices.Delete(ss.kept, i, i+1)
		s.expiry.Stop()
	}
}

// forget lets nobody join s any more.
func (ss *spools) forget(s *spool) {
	if ss.all[s.key] == s {
		delete(ss.all, s.key)
	}
}

// drop gives back what s has.
func (ss *spools) drop(s *spool) {
	ss.forget(s)
	ss.used -= s.reserved
	s.reserved = 0
	if s.file != nil {
		ss.files--
		_ = s.file.Close()
	}
}

// reserve makes room for s to have size bytes, if need be in place of what is
// kept.
func (ss *spools) reserve(s *spool, size int64) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	more := size - s.reserved
	for ss.used+more > ss.limit && len(ss.kept) > 0 {
		oldest := ss.kept[0]
		ss.unkeep(oldest)
		ss.drop(oldest)
	}
	if ss.closed || ss.used+more > ss.limit {
		return false
	}
	ss.used += more
	s.reserved = size
	return true
}

// create gives s a file.
func (ss *spools) create(s *spool, size int64) error {
	if !ss.reserve(s, max(size, spoolStep)) {
		return errUnspooled
	}
	file, err := tempFile(ss.dir)
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if err != nil {
		if time.Now().After(ss.paused) {
			ss.log.Warn("zips are passed through, the folder for spools cannot be used", "err", err)
		}
		ss.paused = time.Now().Add(spoolPause)
		return errUnspooled
	}
	ss.files++
	s.file = file
	return nil
}

// tempFile returns a file without a name: its disk space is free again when it
// is closed, however this process ends.
func tempFile(dir string) (*os.File, error) {
	file, err := os.CreateTemp(dir, "ringmod-spool-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

// run fills s from src, or passes it on.
func (ss *spools) run(ctx context.Context, s *spool, src source, slow bool) {
	err := fmt.Errorf("%w: panic", errSpool)
	defer func() {
		if p := recover(); p != nil {
			ss.log.ErrorContext(ctx, "panic while spooling", "key", s.key.name, "stack", string(debug.Stack()), "err", fmt.Sprint(p))
		}
		if errors.Is(err, errPassed) { // the client ends it
			return
		}
		s.cancel()
		s.change(func() { s.done, s.err = true, err })
		ss.ended(s, err == nil && s.file != nil && !s.obj.Unverified) // who is small, the gateway keeps
	}()
	err = ss.fill(ctx, s, src, slow)
	if errors.Is(err, errSpool) {
		ss.log.WarnContext(ctx, "a spool was given up", "key", s.key.name, "err", err)
	}
}

func (ss *spools) fill(ctx context.Context, s *spool, src source, slow bool) error {
	obj, err := src.open(ctx, slow)
	if err != nil {
		return err
	}
	about := *obj
	about.Body = nil
	_, held := obj.Body.(*heldBody)
	if !held && ss.pass(s) {
		if !s.passOn(&about, obj.Body) {
			obj.Body.Close()
		}
		return errPassed
	}
	defer obj.Body.Close()
	if held {
		data, err := io.ReadAll(obj.Body)
		if err == nil {
			s.change(func() { s.obj, s.data = &about, data })
		}
		return err
	}
	if err := ss.create(s, obj.Size); err != nil {
		return err
	}
	s.change(func() { s.obj = &about })
	w := &spoolWriter{ss: ss, s: s}
	switch n, err := io.Copy(w, obj.Body); {
	case w.err != nil:
		return fmt.Errorf("%w: %w", errSpool, w.err)
	case err != nil:
		return err
	case obj.Size >= 0 && n != obj.Size:
		return errLength
	}
	return nil
}

// spoolWriter writes to a spool and tells who follows.
type spoolWriter struct {
	ss  *spools
	s   *spool
	err error // of writing, as against that of reading
}

func (w *spoolWriter) Write(p []byte) (n int, err error) {
	if end := w.s.written + int64(len(p)); end > w.s.reserved && !w.ss.reserve(w.s, end+spoolStep) {
		w.err = errUnspooled
		return 0, w.err
	}
	n, w.err = w.s.file.Write(p)
	w.s.change(func() { w.s.written += int64(n) })
	return n, w.err
}
