package polite

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
)

const (
	robotsTTL     = 24 * time.Hour // RFC 9309, 2.4
	robotsUnknown = time.Hour      // before it is asked for again that could not be read
)

type backgroundKey struct{}

// WithBackground marks what nobody waits for: work of our own, to which robots.txt applies.
func WithBackground(ctx context.Context) context.Context {
	return context.WithValue(ctx, backgroundKey{}, true)
}

// GetRobots gets the robots.txt of a host over https: the status behind all redirects, and the body. An
// error means that there was no answer.
type GetRobots func(ctx context.Context, host string) (status int, body []byte, err error)

// UseRobots is how robots.txt are got; to be called before hosts are used. Without it nothing
// that is marked WithBackground is done.
func (s *Hosts) UseRobots(get GetRobots) { s.robots = get }

// crawl is what a host says to those who come unasked.
type crawl struct {
	turn chan struct{} // held by who uses what follows

	known bool
	rules Rules
	until time.Time // asked for again then
	next  time.Time // the earliest next visit
}

// Crawl returns nil when path may be visited now: always for what somebody waits for, as that is
// no robot's visit. What is marked WithBackground needs a robots.txt that allows it, or none
// at all (4xx); while it cannot be read (5xx, no answer) nothing is allowed. Crawl-delay is kept
// by the whole cluster. Errors are *cache.Error: Denied where a host does not want such
// visits, Busy where it may later.
func (h *Host) Crawl(ctx context.Context, path string) error {
	if ctx.Value(backgroundKey{}) == nil {
		return nil
	}
	c := &h.crawl
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	now := time.Now()
	if now.After(c.until) {
		h.readRobots(ctx)
	}
	switch wait := c.next.Sub(now); {
	case !c.known:
		return &cache.Error{Reason: cache.Busy, Source: h.name, RetryAfter: robotsUnknown, Text: "its robots.txt cannot be read, so it is not visited in the background"}
	case !c.rules.Allow(path):
		return &cache.Error{Reason: cache.Denied, Source: h.name, Text: "its robots.txt does not want " + path + " to be visited in the background"}
	case wait > 0:
		return &cache.Error{Reason: cache.Busy, Source: h.name, RetryAfter: wait, Text: fmt.Sprintf("its robots.txt asks for %v between visits", c.rules.Delay)}
	}
	c.next = now.Add(time.Duration(float64(c.rules.Delay) / h.share()))
	return nil
}

// readRobots asks the host. The turn of h.crawl is held.
func (h *Host) readRobots(ctx context.Context) {
	c := &h.crawl
	c.known, c.until = false, time.Now().Add(robotsUnknown)
	if h.set.robots == nil {
		return
	}
	status, body, err := h.set.robots(ctx, h.name)
	switch {
	case err != nil:
		if ctx.Err() != nil {
			c.until = time.Time{}
		}
		h.set.log.DebugContext(ctx, "robots.txt was not read", "upstream", h.name, "err", err)
		return
	case status == http.StatusOK:
		c.rules = ParseRobots(body)
	case status >= 400 && status < 500 && status != http.StatusTooManyRequests:
		c.rules = Rules{}
	default:
		return
	}
	c.known, c.until = true, time.Now().Add(robotsTTL)
}
