package polite

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/ring"
)

// soon is a budget as requests have it.
func soon() time.Time { return time.Now().Add(10 * time.Second) }

// wantTurn fails unless the host may be asked at once.
func wantTurn(t *testing.T, h *Host) {
	t.Helper()
	start := time.Now()
	if err := h.Turn(t.Context(), soon()); err != nil || time.Since(start) > 0 {
		t.Fatalf("got a turn after %v, %v, want one at once", time.Since(start), err)
	}
}

// wantRefusal fails unless who asks is told so at once.
func wantRefusal(t *testing.T, h *Host, reason cache.Reason, text string, left time.Duration) {
	t.Helper()
	start := time.Now()
	err := h.Turn(t.Context(), soon())
	e, ok := errors.AsType[*cache.Error](err)
	if !ok || e.Reason != reason || e.Source != h.Name() || !strings.Contains(e.Text, text) || e.RetryAfter != left || time.Since(start) > 0 {
		t.Fatalf("got %#v after %v, want at once %v with %q, again in %v", err, time.Since(start), reason, text, left)
	}
}

func TestHeldHostIsLeftAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := New(Config{Rate: 10}).Host("Proxy.test", Proxy)
		for range 5 {
			wantTurn(t, h)
		}
		if got := h.Refused(30*time.Second, true, "429 Too Many Requests"); got != 30*time.Second {
			t.Errorf("held for %v, want 30s", got)
		}
		h.Answered() // a request that was under way
		wantRefusal(t, h, cache.Busy, "429 Too Many Requests", 30*time.Second)
		if _, err := h.Enter(t.Context(), false, soon()); cache.ReasonOf(err) != cache.Busy {
			t.Errorf("entered a host that is held: %v", err)
		}
		time.Sleep(25 * time.Second)
		start := time.Now()
		for i := range 11 { // who can wait does; nothing was saved up meanwhile
			if err := h.Turn(t.Context(), soon()); err != nil {
				t.Fatal(err)
			}
			want := 5*time.Second + time.Duration(i+1)*100*time.Millisecond
			if got := time.Since(start); got < want-5*time.Millisecond || got > want+50*time.Millisecond {
				t.Errorf("turn %d after %v, want %v", i, got, want)
			}
		}
		h.Answered()
		if got := h.current(); got.State != OK {
			t.Errorf("after an answer it is %v", got.State)
		}
	})
}

func TestShorterHoldDoesNotEndALongerOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := New(Config{}).Host("a", Proxy)
		h.Refused(time.Minute, true, "long")
		h.Refused(time.Second, true, "short")
		wantRefusal(t, h, cache.Busy, "long", time.Minute)
		if got := h.Refused(48*time.Hour, true, "longer"); got != longest {
			t.Errorf("believed %v, want %v", got, longest)
		}
	})
}

// TestTooManyWithoutATime has a host say 429 and not for how long, again and again.
func TestTooManyWithoutATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := New(Config{}).Host("a", Proxy)
		for _, seconds := range []int{10, 20, 40, 80, 160, 320, 600, 600} {
			want := time.Duration(seconds) * time.Second
			if err := h.Turn(t.Context(), soon()); err != nil {
				t.Fatal(err)
			}
			if got := h.Refused(0, false, "429"); got != want {
				t.Errorf("held for %v, want %v", got, want)
			}
			h.Refused(0, false, "429") // of a request beside it
			time.Sleep(2 * longHold)
		}
		h.Answered()
		if got := h.Refused(0, false, "429"); got != 10*time.Second {
			t.Errorf("after an answer held for %v, want 10s", got)
		}
	})
}

func TestHostThatIsDownIsTriedByOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := New(Config{}).Host("a", Proxy)
		gone := &cache.Error{Reason: cache.Broken, Source: "a", Text: "connection refused"}
		wantTurn(t, h)
		h.Unreachable(time.Now(), gone)
		h.Unreachable(time.Now(), gone) // of a request beside it
		for _, seconds := range []int{1, 2, 4, 8, 16, 30, 30} {
			left := time.Duration(seconds) * time.Second
			wantRefusal(t, h, cache.Broken, "connection refused", left)
			time.Sleep(left)
			wantTurn(t, h)
			if h.Patient() {
				t.Error("trying a host that is down is repeated")
			}
			wantRefusal(t, h, cache.Broken, "connection refused", firstDown) // who comes while that one tries
			time.Sleep(3 * time.Second)
			h.Unreachable(time.Now().Add(-3*time.Second), gone)
		}
		time.Sleep(longDown)
		wantTurn(t, h)
		h.Dropped() // its client has left: the next one tries
		wantTurn(t, h)
		h.Answered()
		wantTurn(t, h)
		wantTurn(t, h)
	})
}

func TestSlowFileIsNoHostThatIsDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := New(Config{}).Host("a", Proxy)
		wantTurn(t, h)
		began := time.Now()
		time.Sleep(10 * time.Second)
		wantTurn(t, h)
		h.Answered()
		time.Sleep(10 * time.Second)
		h.Unreachable(began, &cache.Error{Reason: cache.Slow, Text: "no answer within 20s"})
		wantTurn(t, h)
	})
}

// TestRate has more asked than is allowed, of a cluster and of one of its nodes.
func TestRate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		kind  Kind
		share float64
		want  int // in 10 s, with what a second had saved up
	}{{Proxy, 1, 1100}, {Proxy, 0.2, 220}, {Repository, 1, 220}, {Repository, 0.02, 5}} {
		synctest.Test(t, func(t *testing.T) {
			h := New(Config{Rate: 100, Share: func() float64 { return test.share }}).Host("a", test.kind)
			var group sync.WaitGroup
			var mu sync.Mutex
			got := 0
			end := time.Now().Add(10 * time.Second)
			for range 20 {
				group.Go(func() {
					for h.Turn(t.Context(), end) == nil {
						mu.Lock()
						got++
						mu.Unlock()
					}
				})
			}
			group.Wait()
			if got < test.want*9/10-1 || got > test.want+1 {
				t.Errorf("%+v: %d requests, want about %d", test, got, test.want)
			}
		})
	}
}

func TestRequestsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var share atomic.Int32 // one of so many
		share.Store(2)
		h := New(Config{AtOnce: 16, Share: func() float64 { return 1 / float64(share.Load()) }}).Host("a", Proxy)
		var mu sync.Mutex
		in := map[bool]int{}
		enter := func(large bool) {
			leave, err := h.Enter(t.Context(), large, soon())
			if err != nil {
				return
			}
			mu.Lock()
			in[large]++
			mu.Unlock()
			defer leave()
			time.Sleep(time.Second)
			mu.Lock()
			in[large]--
			mu.Unlock()
		}
		for range 20 {
			go enter(true)
		}
		now := func() (large, small int) {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return in[true], in[false]
		}
		if got, _ := now(); got != 6 {
			t.Errorf("%d large ones at once, want 6 of 8 places", got)
		}
		for range 20 {
			go enter(false)
		}
		if _, got := now(); got != 2 {
			t.Errorf("%d small ones beside 6 large ones, want 2", got)
		}
		share.Store(4)
		time.Sleep(1500 * time.Millisecond)
		if large, small := now(); large+small != 4 {
			t.Errorf("%d at once after the share was halved, want 4", large+small)
		}
		time.Sleep(time.Minute)
		if !h.gate.idle() {
			t.Error("places are not given back")
		}
	})
}

func TestWaitingForAPlaceEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := New(Config{AtOnce: 1}).Host("a", Proxy)
		leave, err := h.Enter(t.Context(), false, soon())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := h.Enter(ctx, false, soon()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting ended with %v", err)
		}
		leave()
		leave()
		if !h.gate.idle() {
			t.Error("who has given up holds a place")
		}
	})
}

func TestWhatOthersSay(t *testing.T) {
	t.Parallel()
	held := Hold{Host: "a", State: Held, Left: time.Minute, Error: &cache.Error{Reason: cache.Busy, Source: "a", Text: "429"}}
	down := Hold{Host: "a", State: Down, Left: time.Minute, Error: &cache.Error{Reason: cache.Broken, Source: "a", Text: "refused"}}
	for name, test := range map[string]struct {
		before func(h *Host)
		told   []Hold
		want   State
		left   time.Duration
	}{
		"held":                            {func(*Host) {}, []Hold{held}, Held, time.Minute},
		"held, though it answers":         {(*Host).Answered, []Hold{held}, Held, time.Minute},
		"held is nobody's to lift":        {func(*Host) {}, []Hold{held, {Host: "a"}}, Held, time.Minute},
		"held is more than down":          {func(*Host) {}, []Hold{held, down}, Held, time.Minute},
		"held after down":                 {func(*Host) {}, []Hold{down, held}, Held, time.Minute},
		"down, for a moment":              {func(*Host) {}, []Hold{down}, Down, hearsay},
		"down, where it answers":          {(*Host).Answered, []Hold{down}, OK, 0},
		"down, and up again":              {func(*Host) {}, []Hold{down, {Host: "a"}}, Down, 0},
		"a shorter time":                  {func(h *Host) { h.Refused(2*time.Minute, true, "") }, []Hold{held}, Held, 2 * time.Minute},
		"without what was said, nonsense": {func(*Host) {}, []Hold{{Host: "a", State: Held, Left: time.Minute}}, OK, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := New(Config{})
			h := s.Host("a", Proxy)
			test.before(h)
			s.Learn(time.Now(), test.told)
			if got := h.current(); got.State != test.want || got.Left != test.left {
				t.Errorf("%s: it is %v for %v, want %v for %v", name, got.State, got.Left, test.want, test.left)
			}
		})
	}
}

// TestHostsAreBounded has names made up.
func TestHostsAreBounded(t *testing.T) {
	t.Parallel()
	s := New(Config{})
	proxy, held := s.Host("proxy", Proxy), s.Host("held", Repository)
	held.Refused(time.Hour, true, "429")
	for i := range 2 * maxHosts {
		s.Host(fmt.Sprint("made-up-", i), Repository)
	}
	if got := len(s.all()); got > maxHosts {
		t.Errorf("%d hosts are kept, want at most %d", got, maxHosts)
	}
	if s.Host("PROXY", Repository) != proxy || s.Host("held", Repository) != held {
		t.Error("a host that matters was forgotten")
	}
}

func TestReports(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		for name, n := range map[string]int{"few": 2, "many": 20, "unused": 0, "down": 1} {
			h := s.Host(name, Proxy)
			for range n {
				wantTurn(t, h)
			}
		}
		s.Host("down", Proxy).Unreachable(time.Now(), &cache.Error{Reason: cache.Broken, Source: "down", Text: "refused"})
		var got []string
		for _, r := range s.Reports(2) {
			got = append(got, fmt.Sprintf("%s %v %d %.1f %q", r.Host, r.State, r.Requests, r.Rate, r.Trouble))
		}
		if got, want := strings.Join(got, "; "), `down down 1 0.1 "down: refused"; many ok 20 2.0 ""`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestShare(t *testing.T) {
	t.Parallel()
	var table ring.Members
	for i, m := range []ring.Member{
		{ID: "a1", Region: "a", Weight: 1}, {ID: "a2", Region: "a", Weight: 3}, {ID: "b1", Region: "b", Weight: 2},
	} {
		m.Boot, m.Epoch, m.State, m.Role, m.Addr, m.Spec = "boot", uint64(i+1), ring.Active, ring.Node, "127.0.0.1:1", ring.DefaultSpec().Hash()
		if _, err := table.Put(m); err != nil {
			t.Fatal(err)
		}
	}
	view, err := ring.NewView(ring.DefaultSpec(), &table)
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]float64{"a1": 0.125, "a2": 0.375, "b1": 0.5, "stranger": 1} {
		if got := Share(view, id); got != want {
			t.Errorf("share of %s: %v, want %v", id, got, want)
		}
	}
	if got := Share(nil, "a1"); got != 1 {
		t.Errorf("share of who knows nobody: %v", got)
	}
	if got := ShareOfGateway(view); got != 0.25 {
		t.Errorf("share of a gateway beside three nodes: %v", got)
	}
}
