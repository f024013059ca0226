package cache

import (
	"errors"
	"io/fs"
	"time"
)

// Reason is the identity of a failure: the one thing that decides status,
// caching and who is to blame.
type Reason uint8

// The reasons. NotFound and Gone are upstream's own word, every configured
// source having said so; nothing else but an operator's Purged may ever be
// answered with 404 or 410 to somebody who may fill.
const (
	Internal  Reason = iota // our own fault; the zero value, so that nothing is excused by omission
	NotFound                // every source says 404
	Gone                    // a source says 410 and the others 404
	NotCached               // not here, and filling was not allowed (Disable-Module-Fetch, --offline)
	Malformed               // no such name can exist
	Denied                  // a source or a policy refuses
	Busy                    // too much to do here or there; come back after RetryAfter
	Broken                  // a source cannot be reached or answers nonsense
	Slow                    // a source did not answer in time
	Mismatch                // the bytes are not what the checksum database says
	Purged                  // an operator has removed it: final, nobody else is asked
)

var reasonNames = [...]string{
	Internal: "internal", NotFound: "not_found", Gone: "gone", NotCached: "not_cached", Malformed: "malformed",
	Denied: "denied", Busy: "busy", Broken: "upstream_broken", Slow: "upstream_slow", Mismatch: "checksum_mismatch", Purged: "purged",
}

// String returns the word for r in logs and metrics.
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return "unknown"
}

// Absent reports whether r says that there is no such object.
func (r Reason) Absent() bool { return r == NotFound || r == Gone || r == NotCached || r == Purged }

// Error is a failure to answer a Request.
type Error struct {
	Reason Reason
	// Source names who failed: an upstream's host, a checksum database, a node.
	// Empty for this process. Never holds credentials.
	Source string
	// Text is what Source said or did, one line without control characters,
	// made to be shown in the developer's terminal.
	Text string
	// RetryAfter is when asking again makes sense; 0 where nobody said.
	RetryAfter time.Duration
	// Err is the cause, for logs and errors.Is; may be nil.
	Err error
}

func (e *Error) Error() string {
	text := e.Text
	if text == "" && e.Err != nil {
		text = e.Err.Error()
	}
	if text == "" {
		text = e.Reason.String()
	}
	if e.Source == "" {
		return text
	}
	return e.Source + ": " + text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes every kind of absence match fs.ErrNotExist.
func (e *Error) Is(err error) bool { return err == fs.ErrNotExist && e.Reason.Absent() }

// ReasonOf returns the reason of err, Internal when it has none.
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return Internal
}
