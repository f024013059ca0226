package scrub

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

const (
	maxConflicts  = 1 << 10 // that wait
	conflictAgain = 10 * time.Minute
	conflictLimit = 10 * time.Minute
	// sameAge is how much the ages of two copies may differ by without one being the
	// older: two nodes must not come to different ends.
	sameAge = time.Minute
)

// Ends of conflicts, for metrics.
const (
	kept      = "kept"      // our copy stays
	replaced  = "replaced"  // by the other
	undecided = "undecided" // both stay where they are
	refused   = "refused"   // upstream has other bytes than were recorded
)

// conflict is a copy at another node that has other bytes than ours.
type conflict struct {
	target target.Target
	holder string
	sum    [32]byte
	h1     string
	stored int64 // when, in milliseconds since 1970 by our clock
}

// Conflict says that another node holds other bytes than this one under the same name.
// It never blocks: where too much waits, somebody will say so again.
func (s *Scrubber) Conflict(t target.Target, holder string, theirs *ringmodv1.Copy) {
	if len(theirs.GetSha256()) != sha256.Size || !t.Kind.Immutable() || !fixed(t) {
		return
	}
	c := conflict{target: t, holder: holder, sum: [32]byte(theirs.GetSha256())}
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, known := s.treated[c]; known && time.Since(at) < conflictAgain {
		return
	}
	if len(s.treated) >= maxConflicts && time.Since(s.cleared) > conflictAgain {
		clear(s.treated)
		s.cleared = time.Now()
	}
	if len(s.conflicts) == cap(s.conflicts) || len(s.treated) >= maxConflicts {
		return
	}
	s.treated[c] = time.Now()
	c.h1, c.stored = theirs.GetH1(), time.Now().Add(-theirs.GetStoredAge().AsDuration()).UnixMilli()
	s.conflicts <- c // has room: only we send, with mu held
}

func (s *Scrubber) settleAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-s.conflicts:
			s.settle(ctx, c)
		}
	}
}

// settle ends a conflict and says how.
func (s *Scrubber) settle(ctx context.Context, c conflict) {
	ctx, cancel := context.WithTimeout(ctx, conflictLimit)
	defer cancel()
	end, err := s.decide(ctx, c)
	if end == "" || ctx.Err() != nil {
		return
	}
	s.metrics.conflict(end)
	s.log.ErrorContext(ctx, "two copies disagree", "key", c.target.String(), "peer", c.holder, "theirs", fmt.Sprintf("%x", c.sum), "outcome", end, "err", err)
}

// decide does what a conflict asks for. No end: there is none any more.
func (s *Scrubber) decide(ctx context.Context, c conflict) (end string, err error) {
	t, name := c.target, c.target.String()
	err = s.cfg.Disk.Check(ctx, name, func(int, time.Duration) error { return nil })
	ours, statErr := s.cfg.Disk.Stat(name)
	switch err = errors.Join(err, statErr); {
	case errors.Is(err, fs.ErrNotExist), err == nil && ours.SHA256 == c.sum: // what was bad is being repaired
		return "", nil
	case err != nil:
		return undecided, err
	}
	yields, err := s.yields(ctx, t, ours, c)
	switch {
	case err != nil:
		return undecided, err
	case !yields:
		s.cfg.Announce(c.holder, name)
		return kept, nil
	}
	if err := s.takeTheirs(ctx, t, c); err != nil {
		return undecided, err
	}
	return replaced, nil
}

// yields tells whether theirs is to be preferred to ours. Both nodes must come to the
// same end, each from its own side.
func (s *Scrubber) yields(ctx context.Context, t target.Target, ours store.Entry, c conflict) (bool, error) {
	we, err := s.confirmed(ctx, t, ours.H1)
	if err != nil {
		return false, err
	}
	they, err := s.confirmed(ctx, t, c.h1)
	if err != nil || we != they {
		return they, err
	}
	older := ours.Stored.Sub(time.UnixMilli(c.stored)) // how much theirs is
	if older.Abs() < sameAge {
		return string(c.sum[:]) < string(ours.SHA256[:]), nil
	}
	return older > 0, nil
}

func (s *Scrubber) confirmed(ctx context.Context, t target.Target, h1 string) (bool, error) {
	confirmed, err := s.cfg.Node.Vet(ctx, t, h1)
	if cache.ReasonOf(err) == cache.Mismatch {
		err = nil
	}
	return confirmed, err
}

func (s *Scrubber) takeTheirs(ctx context.Context, t target.Target, c conflict) error {
	obj, err := s.cfg.Nodes.Get(ctx, c.holder, cache.Request{Target: t, Mode: cache.Peek, Hops: 1}, wire.Options{})
	if err != nil {
		return err
	}
	if obj.SHA256 != c.sum {
		closeBody(obj, nil)
		return errors.New("the other node has yet other bytes by now")
	}
	return s.cfg.Node.Replace(ctx, t, obj)
}
