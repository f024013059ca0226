package scrub

import (
	"context"
	"errors"
	"hash/fnv"
	"io/fs"
	"math/rand/v2"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
)

const (
	// An object is due between earliest and latest of the Period after its last check.
	earliest, latest = Period * 6 / 10, Period * 8 / 10
	// startPause leaves a process alone that has just begun.
	startPause = 5 * time.Minute
	idlePause  = time.Hour // when little is due: choosing reads the index
	batch      = 4096      // objects chosen at a time
	markBatch  = 256       // checks that are kept at a time
	markPause  = 10 * time.Second

	maxSuspects = 1 << 10 // that wait

	// How long a scrub rests for each second that it works.
	backgroundRest, operatorRest = 4, 1
	leastRest                    = 20 * time.Millisecond // shorter ones are added up
)

// trickle checks what is due, for ever.
func (s *Scrubber) trickle(ctx context.Context) {
	pause := startPause + rand.N(startPause)
	for sleep(ctx, pause) {
		pause = idlePause
		if s.cfg.Disk.ReadOnly() == nil && s.checkDue(ctx) > batch/2 {
			pause = 0
		}
	}
}

// checkDue checks some of what is due, and returns how much was.
func (s *Scrubber) checkDue(ctx context.Context) (done int) {
	now := time.Now()
	b, err := s.cfg.Disk.Unchecked(ctx, now.Add(-earliest), batch)
	if err != nil {
		if ctx.Err() == nil {
			s.log.WarnContext(ctx, "scrub cannot read the index", "err", err)
		}
		return 0
	}
	s.metrics.waits(b, now)
	w := s.newWork(s.cfg.Rate, backgroundRest)
	defer w.keep()
	for _, each := range b.Oldest {
		if ctx.Err() != nil || s.cfg.Disk.ReadOnly() != nil {
			break
		}
		if isDue(each, now) && w.check(ctx, each) != skipped {
			done++
		}
	}
	return done
}

func isDue(o store.Stale, now time.Time) bool {
	h := fnv.New32a()
	_, _ = h.Write([]byte(o.Name))
	spread := float64(h.Sum32()) / (1 << 32)
	return now.Sub(o.Checked) >= earliest+time.Duration(spread*float64(latest-earliest))
}

// verdict is what a check has shown.
type verdict uint8

const (
	good verdict = iota
	bad
	gone    // there is no such object any more
	skipped // it could not be checked
)

var verdicts = [...]string{good: "good", bad: "bad", gone: "gone", skipped: "unreadable"}

func (v verdict) String() string { return verdicts[v] }

// work is one scrub.
type work struct {
	*Scrubber

	rate    int64
	rest    float64       // per time worked
	owed    time.Duration // rest not yet taken
	bytes   int64         // read so far of the present object
	working func() error  // called now and then; an error ends the scrub
	why     error         // what was wrong with the last one that was bad

	marks  []string // found good and not kept yet
	marked time.Time
}

func (s *Scrubber) newWork(rate int64, rest float64) *work {
	return &work{Scrubber: s, rate: rate, rest: rest, marked: time.Now(), working: func() error { return nil }}
}

// check checks one object.
func (w *work) check(ctx context.Context, o store.Stale) verdict {
	w.bytes = 0
	v, err := w.judge(ctx, o)
	switch {
	case v == good:
		w.mark(o.Name)
	case v == bad:
		w.why = err
	case v == skipped && ctx.Err() == nil:
		w.log.WarnContext(ctx, "object not checked", "key", o.Name, "err", err)
	}
	if ctx.Err() == nil {
		w.metrics.checked(v)
	}
	return v
}

func (w *work) judge(ctx context.Context, o store.Stale) (verdict, error) {
	began, slept := time.Now(), time.Duration(0)
	err := w.cfg.Disk.Check(ctx, o.Name, func(n int, took time.Duration) error {
		before := time.Now()
		defer func() { slept += time.Since(before) + took }()
		return w.pace(ctx, n, took)
	})
	if err == nil {
		err = w.vet(ctx, o)
	}
	if corrupt, ok := errors.AsType[*store.CorruptError](err); ok {
		return bad, corrupt.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return gone, nil
	case err != nil:
		return skipped, err
	}
	// Opening and comparing cost time, too.
	return good, w.pace(ctx, 0, time.Since(began)-slept)
}

// pace rests after n bytes that took that long.
func (w *work) pace(ctx context.Context, n int, took time.Duration) error {
	w.bytes += int64(n)
	w.metrics.read(n)
	atRate := time.Duration(float64(n) / float64(w.rate) * float64(time.Second))
	w.owed += max(time.Duration(w.rest*float64(took)), atRate-took)
	if w.owed >= leastRest {
		began := time.Now()
		if !sleep(ctx, w.owed) {
			return context.Cause(ctx)
		}
		w.owed -= time.Since(began)
	}
	return w.working()
}

// vet shows a hash that nobody has confirmed to the checksum database: a file may have been
// put here by hand. It says no more than that about the file when it cannot be asked.
func (w *work) vet(ctx context.Context, o store.Stale) error {
	t, err := target.Parse(o.Name)
	if err != nil || o.Verified {
		return nil //nolint:nilerr // nothing can be said of it
	}
	_, err = w.cfg.Node.Vet(ctx, t, o.H1)
	if cache.ReasonOf(err) != cache.Mismatch {
		return nil
	}
	if err := w.cfg.Disk.SetAside(ctx, o.Name, err); err != nil {
		return err
	}
	return &store.CorruptError{Name: o.Name, Err: err}
}

func (w *work) mark(name string) {
	w.marks = append(w.marks, name)
	if len(w.marks) >= markBatch || time.Since(w.marked) > markPause {
		w.keep()
	}
}

// keep remembers what was found good.
func (w *work) keep() {
	if err := w.cfg.Disk.Checked(time.Now(), w.marks...); err != nil {
		w.log.Warn("checks not indexed", "err", err)
	}
	w.marks, w.marked = w.marks[:0], time.Now()
}

// Suspect has an object checked soon, as reading it has failed. It never blocks.
func (s *Scrubber) Suspect(name string) {
	select {
	case s.suspects <- name:
	default: // its turn will come
	}
}

func (s *Scrubber) checkSuspects(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case name := <-s.suspects:
			w := s.newWork(s.cfg.Rate, operatorRest)
			w.check(ctx, store.Stale{Entry: store.Entry{Name: name, Proof: store.Proof{Verified: true}}})
			w.keep()
		}
	}
}
