package node

import (
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/cache"
)

// How long upstream's "no" is repeated without asking again (DESIGN section 8).
const (
	notFoundTTL = time.Minute
	goneTTL     = 10 * time.Minute
	maxNegative = 64 << 10 // entries; beyond, old ones make room
)

// negatives remember that upstream has said 404 or 410, in memory: the entries
// are short-lived, and a flood of absent names must not become disk writes.
type negatives struct {
	mu      sync.Mutex
	entries map[string]negative
}

type negative struct {
	err     *cache.Error
	asked   time.Time
	expires time.Time
}

func newNegatives() *negatives { return &negatives{entries: map[string]negative{}} }

// get returns the remembered answer for name, with the time for which it is
// still believed, or nil, and when it was asked for.
func (ns *negatives) get(name string) (asked time.Time, said error) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	e, ok := ns.entries[name]
	if !ok {
		return asked, nil
	}
	if !time.Now().Before(e.expires) {
		delete(ns.entries, name)
		return asked, nil
	}
	absence := *e.err
	absence.RetryAfter = time.Until(e.expires)
	return e.asked, &absence
}

// ttlOf returns how long an absence is believed from upstream's word on.
func ttlOf(err *cache.Error) time.Duration {
	if err.Reason == cache.Gone {
		return goneTTL
	}
	return notFoundTTL
}

func (ns *negatives) put(name string, err *cache.Error, asked time.Time) {
	ttl := ttlOf(err)
	if err.RetryAfter > 0 { // we were told by somebody who remembers it
		ttl = min(ttl, err.RetryAfter)
	}
	now := time.Now()
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if len(ns.entries) >= maxNegative {
		ns.shrink(now)
	}
	ns.entries[name] = negative{err, asked, now.Add(ttl)}
}

// shrink drops what has expired and, if that is not enough, half of the rest.
func (ns *negatives) shrink(now time.Time) {
	for name, e := range ns.entries {
		if !now.Before(e.expires) {
			delete(ns.entries, name)
		}
	}
	for name := range ns.entries {
		if len(ns.entries) < maxNegative/2 {
			return
		}
		delete(ns.entries, name)
	}
}

// forget drops the entry of name: something has shown that it exists.
func (ns *negatives) forget(name string) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	delete(ns.entries, name)
}

// of returns the absent targets of the module at path.
func (ns *negatives) of(path string) []string {
	escaped, err := module.EscapePath(path)
	if err != nil {
		return nil
	}
	ns.mu.Lock()
	defer ns.mu.Unlock()
	var names []string
	for name := range ns.entries {
		if strings.HasPrefix(name, escaped+"/@v/") {
			names = append(names, name)
		}
	}
	return names
}
