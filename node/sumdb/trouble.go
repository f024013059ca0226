package sumdb

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Why answers are refused.
const (
	Forked  = "forked"  // a signed head whose tree contradicts the one known
	Altered = "altered" // a signature, tile or record that does not fit the signed head
	Older   = "older"   // a head that is older than the one known
)

// Trouble is what is wrong with a database, or the way to it.
type Trouble struct {
	Why  string    // Forked, Altered or Older; "" = nothing is wrong
	Text string    // for an operator
	At   time.Time // of the last contradiction; since when heads are older
}

// troubleKept is how long a contradiction is told of.
const troubleKept = 24 * time.Hour

var errForked = errors.New("two signed tree heads of one database contradict each other")

// State returns how many records the newest head known has, and what is wrong: a
// contradiction of the last day, or heads that are older than that one.
func (d *DB) State(ctx context.Context) (records int64, t Trouble) {
	now, err := d.current(ctx)
	if err != nil {
		return 0, Trouble{Why: Altered, Text: err.Error(), At: time.Now()}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.trouble.Why != "" && time.Since(d.trouble.At) < troubleKept:
		return now.N, d.trouble
	case !d.olderSince.IsZero():
		return now.N, Trouble{
			Why: Older, At: d.olderSince,
			Text: fmt.Sprintf("it answers with a tree head of %d records, and one of %d is known", d.olderN, now.N),
		}
	default:
		return now.N, Trouble{}
	}
}

// contradicted notes an answer that contradicts what the database has committed to.
func (d *DB) contradicted(ctx context.Context, work string, err error) {
	d.log.ErrorContext(ctx, "checksum database contradicts itself", "work", work, "err", err)
	t := Trouble{Why: Altered, Text: err.Error(), At: time.Now()}
	if errors.Is(err, errForked) {
		t.Why = Forked
	}
	d.refused(t.Why)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.trouble = t
}

// noteAge notes whether h, which the database gives for its newest head, is older than the
// one that is known. A cache on the way may be behind for a moment: one line in the log
// for as long as it lasts.
func (d *DB) noteAge(ctx context.Context, h *head) {
	now := d.head.Load()
	older := now != nil && h.N < now.N
	if older {
		d.refused(Older)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !older:
		d.olderSince = time.Time{}
	case d.olderSince.IsZero():
		d.olderSince = time.Now()
		d.log.WarnContext(ctx, "checksum database gives an older tree head, which is refused", "records", h.N, "known", now.N)
	}
	d.olderN = h.N
}
