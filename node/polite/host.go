package polite

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/ringmod/ringmod/internal/cache"
)

// State is how a host does.
type State uint8

// The states.
const (
	OK   State = iota // it may be asked
	Held              // it has asked to be left alone
	Down              // it cannot be reached
)

var stateNames = [...]string{OK: "ok", Held: "held", Down: "down"} //nolint:gochecknoglobals // never written

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "unknown"
}

// ErrLeftAlone is wrapped by the error of who was not let ask: that the host is left alone
// was logged when that began.
var ErrLeftAlone = errors.New("the host is left alone")

// Hold is what processes tell each other of a host.
type Hold struct {
	Host  string
	State State
	Left  time.Duration // for which it is not asked; 0 = it may be tried
	// Error is what who asks gets: *Busy* for a host that is held.
	Error *cache.Error // nil with OK
}

// Host is what all requests of a process to one host share.
//
// A request enters, waits for its turn, is sent, and is then followed by one of Answered,
// Refused, Unreachable and Dropped; that repeats with each attempt.
type Host struct {
	set  *Hosts
	name string
	gate gate

	crawl crawl

	used time.Time // guarded by the lock of set

	mu       sync.Mutex
	kind     Kind
	limiter  *rate.Limiter // nil before the first request
	empty    bool          // it begins without anything saved up
	state    State
	until    time.Time // not asked before; of a state other than OK
	err      *cache.Error
	fails    int  // how often in a row a hold or a failure followed another
	probing  bool // a request is trying a host that is down
	answered time.Time
	labelled bool // it has metrics of its own
	counted
}

// counted is what a Host has seen.
type counted struct {
	requests uint64
	rate     float64 // a second, as of last
	last     time.Time
	trouble  string // the latest
	troubled time.Time
}

// Name returns the name, in lower case.
func (h *Host) Name() string { return h.name }

// share is this process's part of what the cluster may.
func (h *Host) share() float64 { return min(max(h.set.cfg.Share(), 0.001), 1) }

// limit is how many requests this process may have at once.
func (h *Host) limit() int {
	h.mu.Lock()
	kind := h.kind
	h.mu.Unlock()
	return max(int(float64(h.set.atOnce(kind))*h.share()), 1)
}

// Enter waits for one of the places for requests at once, unless the host is not to be asked before
// deadline; then the error is as that of Turn. The caller calls leave when the body is
// done; calling it again does nothing.
func (h *Host) Enter(ctx context.Context, large bool, deadline time.Time) (leave func(), err error) {
	if err := h.set.await(ctx); err != nil {
		return nil, err
	}
	if err := h.refusal(deadline); err != nil {
		return nil, err
	}
	if err := h.gate.enter(ctx, large, h.limit()); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { h.gate.leave(large, h.limit()) }), nil
}

// Turn waits until a request may be sent, no longer than to the deadline. A host that is not to be
// asked before that is a *cache.Error at once: Busy, or what was wrong with it when it
// was last tried. Other errors are those of ctx.
func (h *Host) Turn(ctx context.Context, deadline time.Time) error {
	for {
		wait, err := h.turn(deadline)
		if err != nil || wait <= 0 {
			return err
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// turn returns how long to wait before the next look; 0: it is the caller's turn.
func (h *Host) turn(deadline time.Time) (time.Duration, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if err := h.refuse(now, deadline); err != nil {
		return 0, err
	}
	if wait := h.until.Sub(now); h.state == Held && wait > 0 {
		return wait, nil
	}
	if wait := h.paced(now); wait > 0 {
		if now.Add(wait).After(deadline) {
			return 0, &cache.Error{
				Reason: cache.Busy, Source: h.name, RetryAfter: wait,
				Text: fmt.Sprintf("more is asked of it than this cluster may (%.3g requests a second)", h.set.rate(h.kind)),
			}
		}
		return wait, nil
	}
	h.probing = h.state == Down
	h.count(now)
	return 0, nil
}

// paced takes one request off the rate, or returns how long there is none. The lock is held.
func (h *Host) paced(now time.Time) time.Duration {
	perSecond := rate.Limit(h.set.rate(h.kind) * h.share())
	burst := max(int(math.Ceil(float64(perSecond))), 1) // what a second brings
	switch {
	case h.limiter == nil || h.empty:
		h.limiter = rate.NewLimiter(perSecond, burst)
		if h.empty {
			h.limiter.AllowN(now, burst)
			h.empty = false
		}
	case h.limiter.Limit() != perSecond:
		h.limiter.SetLimitAt(now, perSecond)
		h.limiter.SetBurstAt(now, burst)
	}
	if h.limiter.AllowN(now, 1) {
		return 0
	}
	missing := 1 - h.limiter.TokensAt(now)
	return max(time.Duration(missing/float64(perSecond)*float64(time.Second)), time.Millisecond)
}

func (h *Host) refusal(deadline time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.refuse(time.Now(), deadline)
}

// refuse is the error for who cannot be served before deadline. The lock is held.
func (h *Host) refuse(now, deadline time.Time) error {
	left := h.until.Sub(now)
	switch {
	case h.state == Held && h.until.After(deadline) && left > 0:
		e := *h.err
		e.RetryAfter, e.Err = left, ErrLeftAlone
		return &e
	case h.state == Down && (left > 0 || h.probing):
		e := *h.err
		e.RetryAfter, e.Err = max(left, firstDown), ErrLeftAlone
		e.Text += fmt.Sprintf(" (seen %s ago, not asked again yet)", now.Sub(h.troubled).Round(time.Second))
		return &e
	}
	return nil
}

// Patient reports whether trying again is worth the wait: a host that is known to be
// away is tried once.
func (h *Host) Patient() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state != Down
}

// Answered notes an answer that was no refusal.
func (h *Host) Answered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	h.answered, h.probing = now, false
	if h.state == Held && h.until.After(now) {
		return // a request that was under way
	}
	h.recover(now)
}

// recover ends what was wrong. The lock is held.
func (h *Host) recover(now time.Time) {
	h.fails = 0
	if h.state == OK {
		return
	}
	h.set.log.Info("upstream host answers again", "upstream", h.name, "was", h.state.String(), "duration_ms", now.Sub(h.troubled).Milliseconds())
	h.state, h.until, h.err = OK, time.Time{}, nil
	h.set.tell(h.name)
}

// Refused notes an answer that asks to be left alone: for d, or for how long told is
// false. It returns the time that was made of that. text is what the host said.
func (h *Host) Refused(d time.Duration, told bool, text string) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	h.answered, h.probing = now, false
	h.note(now, text)
	inForce := h.state == Held && h.until.After(now)
	if !told {
		d = min(firstHold<<min(h.fails, 10), longHold)
	}
	d = min(max(d, 0), longest)
	if !inForce {
		h.fails++
	}
	until := now.Add(d)
	if inForce && !until.After(h.until) {
		return d
	}
	h.become(Held, until, &cache.Error{Reason: cache.Busy, Source: h.name, Text: text})
	h.set.tell(h.name)
	return d
}

// Unreachable notes that a request has failed for good, with all its attempts, the last of which
// began at that time.
func (h *Host) Unreachable(began time.Time, err *cache.Error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	tried := h.probing
	h.probing = false
	h.note(now, err.Error())
	if h.answered.After(began) || h.until.After(now) {
		return // it answers others; or this is known
	}
	if tried {
		h.fails++
	} else {
		h.fails = 0
	}
	h.become(Down, now.Add(min(firstDown<<min(h.fails, 10), longDown)), &cache.Error{Reason: err.Reason, Source: err.Source, Text: err.Text})
	h.set.tell(h.name)
}

// Dropped notes that nothing was learned of the host by a request.
func (h *Host) Dropped() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.probing = false
}

// become goes into a state. The lock is held.
func (h *Host) become(state State, until time.Time, err *cache.Error) {
	if h.state != state {
		h.set.log.Warn("upstream host is left alone", "upstream", h.name, "state", state.String(),
			"duration_ms", time.Until(until).Milliseconds(), "err", err)
	}
	h.state, h.until, h.err = state, until, err
	h.empty = h.empty || state == Held
}

// learn takes over what another process knew at that time.
func (h *Host) learn(at time.Time, hold Hold) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	until := at.Add(min(hold.Left, longest))
	switch {
	case hold.State == OK && h.state == Down:
		h.until = now // by one request
	case hold.Error == nil:
	case hold.State == Held && until.After(now) && (h.state != Held || until.After(h.until)):
		h.note(now, hold.Error.Text)
		h.become(Held, until, &cache.Error{Reason: cache.Busy, Source: h.name, Text: hold.Error.Text})
	case hold.State == Down && h.state == OK && now.Sub(h.answered) > recent && until.After(now):
		h.note(now, hold.Error.Error())
		h.become(Down, now.Add(min(until.Sub(now), hearsay)), hold.Error)
	}
}

// current is what others are told.
func (h *Host) current() Hold {
	h.mu.Lock()
	defer h.mu.Unlock()
	left := max(time.Until(h.until), 0)
	if h.state == OK || h.state == Held && left == 0 {
		return Hold{Host: h.name}
	}
	return Hold{Host: h.name, State: h.state, Left: left, Error: h.err}
}

// isIdle tells whether nothing would be lost with it.
func (h *Host) isIdle() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.kind != Proxy && !h.until.After(time.Now()) && h.gate.idle()
}

// note keeps what was wrong. The lock is held.
func (h *Host) note(now time.Time, text string) { h.trouble, h.troubled = text, now }

// count counts a request; the rate fades. The lock is held.
func (h *Host) count(now time.Time) {
	h.requests++
	h.rate = h.fading(now) + 1/rateWindow.Seconds()
	h.last = now
}

func (h *Host) fading(now time.Time) float64 {
	return h.rate * math.Exp(-now.Sub(h.last).Seconds()/rateWindow.Seconds())
}
