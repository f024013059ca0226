package upstream

import (
	"context"
	"sync"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
)

// maxRetryAfter bounds how much of a Retry-After is believed.
const maxRetryAfter = time.Hour

// host is what all requests to one host share.
type host struct {
	name  string
	slots chan struct{} // one per request, body included
	zips  chan struct{} // taken by zips before slots, so that small files never wait behind zips alone

	mu      sync.Mutex
	until   time.Time // it asked not to be asked before
	text    string    // and said this
	failing bool      // it could not be reached the last time, after all attempts
}

func newHost(name string, perHost int) *host {
	return &host{
		name:  name,
		slots: make(chan struct{}, perHost),
		zips:  make(chan struct{}, max(perHost-perHost/4, 1)),
	}
}

// enter waits for a slot. The caller calls leave when the body is done; calling it again does nothing.
func (h *host) enter(ctx context.Context, zip bool) (leave func(), err error) {
	taken := []chan struct{}{h.slots}
	if zip {
		taken = []chan struct{}{h.zips, h.slots}
	}
	for i, slots := range taken {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			for _, s := range taken[:i] {
				<-s
			}
			return nil, givenUp(ctx, h.name)
		}
	}
	return sync.OnceFunc(func() {
		for _, s := range taken {
			<-s
		}
	}), nil
}

// retryAfter remembers that the host does not want to be asked for d.
func (h *host) retryAfter(d time.Duration, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if until := time.Now().Add(d); until.After(h.until) {
		h.until, h.text = until, text
	}
}

// pause waits until the host may be asked. When that is after deadline it
// returns Busy at once.
func (h *host) pause(ctx context.Context, deadline time.Time) error {
	h.mu.Lock()
	until, text := h.until, h.text
	h.mu.Unlock()
	wait := time.Until(until)
	if wait <= 0 {
		return nil
	}
	if until.After(deadline) {
		return &cache.Error{Reason: cache.Busy, Source: h.name, Text: text, RetryAfter: wait}
	}
	return sleep(ctx, wait, h.name)
}

// reached notes whether the host could be reached.
func (h *host) reached(ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failing = !ok
}

// patient reports whether trying again is worth the wait: while a host is
// known to be away each request tries it once.
func (h *host) patient() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.failing
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration, source string) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return givenUp(ctx, source)
	}
}
