package scrub

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
)

const (
	repairers   = 4
	maxRepairs  = 1 << 14 // that wait; the store knows of more
	repairLimit = 10 * time.Minute
	lossPage    = 256
	lossCheck   = time.Minute // between looks at what is due again
	lossPause   = time.Second // who found it bad fetches it, most of the time
	firstRetry  = time.Minute
	lastRetry   = 6 * time.Hour
	giveUp      = Period           // after the loss
	storedLimit = 15 * time.Second // for what is written behind its readers
	storedCheck = 100 * time.Millisecond
)

// repair is an object that is being got again.
type repair struct {
	loss store.Loss
	done chan struct{}
	err  error // once done is closed: why it is not back
}

// failure is a repair that has not worked.
type failure struct {
	count int
	again time.Time
}

var errCrowded = errors.New("too many repairs wait; it follows")

// want has an object repaired, unless it is at it.
func (s *Scrubber) want(l store.Loss) *repair {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.repairs[l.Name]; r != nil {
		return r
	}
	r := &repair{loss: l, done: make(chan struct{})}
	if len(s.repairs) >= maxRepairs {
		r.err = errCrowded
		close(r.done)
		return r
	}
	s.repairs[l.Name] = r
	s.queue <- r // has room for all that are known
	return r
}

// watchLosses has everything repaired that is lost.
func (s *Scrubber) watchLosses(ctx context.Context) {
	tick := time.NewTicker(lossCheck)
	defer tick.Stop()
	for sleep(ctx, lossPause) {
		if err := s.wantAll(ctx); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "losses not read", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.cfg.Disk.LossNews():
		case <-tick.C:
		}
	}
}

func (s *Scrubber) wantAll(ctx context.Context) error {
	if s.cfg.Disk.ReadOnly() != nil {
		return nil //nolint:nilerr // nothing would stay
	}
	lost := 0
	err := s.losses(ctx, func(l store.Loss) {
		switch lost++; {
		case time.Since(l.Found) > giveUp:
			s.giveUp(ctx, l.Name)
		case s.isDue(l.Name):
			s.want(l)
		}
	})
	s.metrics.lost(lost)
	return err
}

// losses visits everything that is lost.
func (s *Scrubber) losses(ctx context.Context, visit func(store.Loss)) error {
	for from := ""; ctx.Err() == nil; {
		page, next, err := s.cfg.Disk.Losses(from, lossPage)
		if err != nil {
			return err
		}
		for _, l := range page {
			visit(l)
		}
		if from = next; from == "" {
			return nil
		}
	}
	return context.Cause(ctx)
}

func (s *Scrubber) isDue(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !time.Now().Before(s.failed[name].again)
}

func (s *Scrubber) giveUp(ctx context.Context, name string) {
	s.log.ErrorContext(ctx, "a lost object was not found in 30 days and is forgotten", "key", name)
	if err := s.cfg.Disk.Forget(name); err != nil {
		s.log.WarnContext(ctx, "a lost object was not forgotten", "key", name, "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.failed, name)
}

// repairAll repairs one object after the other.
func (s *Scrubber) repairAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-s.queue:
			r.err = s.repair(ctx, r.loss)
			s.ended(ctx, r)
			close(r.done)
		}
	}
}

// ended notes when what has not worked is to be tried again.
func (s *Scrubber) ended(ctx context.Context, r *repair) {
	name := r.loss.Name
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.repairs, name)
	if r.err == nil {
		delete(s.failed, name)
		return
	}
	f := s.failed[name]
	f.again = time.Now().Add(min(lastRetry, firstRetry<<min(f.count, 10)))
	f.count++
	if len(s.failed) < maxRepairs || f.count > 1 {
		s.failed[name] = f
	}
	if ctx.Err() == nil {
		s.log.ErrorContext(ctx, "a bad copy could not be got again, the object is absent here", "key", name, "err", r.err)
	}
}

// Origins of repairs, for metrics.
const (
	fromClient   = "request" // a request had it fetched meanwhile
	fromPeer     = "peer"
	fromOther    = "peer_other" // other bytes than were recorded
	fromUpstream = "upstream"
	fromNobody   = "failed"
)

// repair gets an object again.
func (s *Scrubber) repair(ctx context.Context, l store.Loss) error {
	ctx, cancel := context.WithTimeout(ctx, repairLimit)
	defer cancel()
	origin, err := s.getAgain(ctx, l)
	if err != nil {
		origin = fromNobody
	}
	s.metrics.repaired(origin)
	if err == nil {
		s.log.InfoContext(ctx, "repaired", "key", l.Name, "from", origin)
	}
	return err
}

func (s *Scrubber) getAgain(ctx context.Context, l store.Loss) (origin string, err error) {
	t, err := target.Parse(l.Name)
	if err != nil {
		return "", errors.Join(err, s.cfg.Disk.Forget(l.Name))
	}
	if _, err := s.cfg.Disk.Lost(l.Name); errors.Is(err, fs.ErrNotExist) {
		return fromClient, nil
	}
	if err := s.cfg.Disk.ReadOnly(); err != nil { // nothing would stay
		return "", err
	}
	if s.takeSame(ctx, t, l) {
		return fromPeer, nil
	}
	if s.takeOther(ctx, t, l) {
		return fromOther, nil
	}
	return fromUpstream, s.fetch(ctx, t, l)
}

// fixed tells whether an object always has the same bytes. The answer to a lookup holds
// the tree head of its time.
func fixed(t target.Target) bool { return t.Kind != target.SumdbLookup }

// takeSame takes the recorded bytes from another node, or tells that none has them.
func (s *Scrubber) takeSame(ctx context.Context, t target.Target, l store.Loss) bool {
	var obj *cache.Object
	var err error
	if fixed(t) {
		obj, err = s.cfg.Copies.PeekSame(ctx, t, l.SHA256)
	} else {
		obj, err = s.cfg.Copies.Peek(ctx, t)
	}
	if err == nil {
		err = s.cfg.Node.Take(ctx, t, obj)
	}
	if err == nil {
		err = s.awaitStored(ctx, l.Name)
	}
	if err != nil {
		s.log.DebugContext(ctx, "no node of the region gives the copy that was recorded", "key", l.Name, "err", err)
	}
	return err == nil
}

// takeOther takes what another node holds under that name, if nothing speaks against it.
func (s *Scrubber) takeOther(ctx context.Context, t target.Target, l store.Loss) bool {
	if !fixed(t) {
		return false
	}
	obj, err := s.cfg.Copies.Peek(ctx, t)
	if err != nil || obj.SHA256 == l.SHA256 { // the latter was no good just now
		closeBody(obj, err)
		return false
	}
	s.log.ErrorContext(ctx, "another node holds other bytes than were recorded here", "key", l.Name,
		"recorded", fmt.Sprintf("%x", l.SHA256), "theirs", fmt.Sprintf("%x", obj.SHA256))
	if _, err := s.cfg.Node.Vet(ctx, t, obj.H1); err != nil {
		closeBody(obj, nil)
		s.metrics.conflict(undecided)
		return false
	}
	s.metrics.conflict(replaced)
	if err := s.cfg.Disk.Forget(l.Name); err != nil {
		closeBody(obj, nil)
		return false
	}
	err = s.cfg.Node.Replace(ctx, t, obj)
	if err != nil {
		s.log.WarnContext(ctx, "the other bytes were not taken over", "key", l.Name, "err", err)
	}
	return err == nil
}

func closeBody(obj *cache.Object, err error) {
	if err == nil {
		_ = obj.Body.Close()
	}
}

// fetch gets an object from upstream, by way of the coordinators as any fill: other nodes
// may have lost their copies of it, too. The store refuses what was not recorded.
func (s *Scrubber) fetch(ctx context.Context, t target.Target, l store.Loss) error {
	obj, err := s.cfg.Node.Get(ctx, cache.Request{Target: t, Mode: cache.AllowFill})
	if err != nil {
		return err
	}
	defer obj.Body.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, obj.Body); err != nil {
		return err
	}
	if fixed(t) && [32]byte(sum.Sum(nil)) != l.SHA256 {
		s.metrics.conflict(refused)
		return fmt.Errorf("no node has a copy, and upstream: %w", store.ErrDiffers)
	}
	return s.awaitStored(ctx, l.Name)
}

// awaitStored waits for what is stored behind its readers.
func (s *Scrubber) awaitStored(ctx context.Context, name string) error {
	for began := time.Now(); ; {
		_, err := s.cfg.Disk.Stat(name)
		if err == nil || time.Since(began) > storedLimit {
			return err
		}
		if !sleep(ctx, storedCheck) {
			return context.Cause(ctx)
		}
	}
}
