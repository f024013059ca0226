package peers_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// A stopped process is left out within seconds, and is back as soon as it goes on.
func TestStoppedProcess(t *testing.T) {
	t.Parallel()
	for _, limit := range []time.Duration{20 * time.Millisecond, time.Hour} { // of the callers' patience
		synctest.Test(t, func(t *testing.T) {
			s, n, _ := one(t, well())
			_, _ = fetch(t.Context(), t, s, "n1")
			n.freeze()
			start := time.Now()
			for s.Usable("n1") && time.Since(start) < time.Minute {
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				go func() {
					defer cancel()
					_, _ = fetch(ctx, t, s, "n1")
				}()
				time.Sleep(50 * time.Millisecond)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("patience %v: left out after %v, want 5s at most", limit, took)
			}
			time.Sleep(30 * time.Second)
			if s.Usable("n1") {
				t.Error("usable while it is stopped")
			}
			n.thaw()
			start = time.Now()
			for !s.Usable("n1") {
				time.Sleep(10 * time.Millisecond)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("patience %v: back after %v, want 5s at most", limit, took)
			}
			if _, err := fetch(t.Context(), t, s, "n1"); err != nil {
				t.Error(err)
			}
		})
	}
}

// Callers that leave say nothing against a peer that answers.
func TestCancelIsNoFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, _ := one(t, stuck)
		for i := range 200 {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			if i%2 == 0 { // in mid-body
				n.answer(func(req *ringmodv1.GetRequest, stream getStream) error {
					_ = play(nil, headerOf(nil), chunk(0, 1000))(req, stream)
					return stuck(req, stream)
				})
			}
			if _, err := fetch(ctx, t, s, "n1"); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got %v, want the caller's own deadline", err)
			}
			cancel()
			n.answer(stuck)
			if !s.Usable("n1") || s.Stats("n1").InFlight != 0 {
				t.Fatalf("after %d: usable %v, %d in flight", i, s.Usable("n1"), s.Stats("n1").InFlight)
			}
		}
	})
}

// Who gives up on a peer makes Run ask for its health, once a second at most and
// not when it has answered somebody since.
func TestDoubt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, _ := one(t, stuck)
		giveUp := func() {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			_, _ = fetch(ctx, t, s, "n1")
		}
		for range 1000 {
			giveUp()
		}
		if got := n.checks.Load(); got < 9 || got > 10 {
			t.Errorf("%d checks in 10 s of doubt, want 9 or 10", got)
		}
		time.Sleep(time.Minute)
		checks := n.checks.Load()
		giveUp()
		n.answer(well())
		if _, err := fetch(t.Context(), t, s, "n1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := n.checks.Load(); got != checks {
			t.Errorf("%d checks without doubt, want 0", got-checks)
		}
	})
}

// A peer that keeps its callers waiting and says that it is not well is left out.
func TestDoubtConfirmed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, _ := one(t, stuck)
		n.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			_, _ = fetch(ctx, t, s, "n1")
			cancel()
		}
		if s.Usable("n1") {
			t.Error("usable after 10 s")
		}
	})
}

// A short limit for the first message is the caller's affair; a long one, on a
// connection that stands, is the peer's.
func TestImpatience(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		limit   time.Duration
		connect bool // anew for each call
		want    bool // usable afterwards
	}{
		{500 * time.Millisecond, false, true},
		{time.Second, false, false},
		{500 * time.Millisecond, true, true},
		{1100 * time.Millisecond, true, true},
		{wire.Silence, true, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, n, _ := one(t, well())
			_, _ = fetch(t.Context(), t, s, "n1")
			n.answer(stuck)
			for range 5 {
				if test.connect {
					n.hangUp()
					synctest.Wait()
				}
				if _, err := s.Get(t.Context(), "n1", request(t), wire.Options{First: test.limit}); !errors.Is(err, wire.ErrSilent) {
					t.Errorf("got %v, want ErrSilent", err)
				}
			}
			if got := s.Usable("n1"); got != test.want {
				t.Errorf("limit %v, connecting %v: usable %v, want %v", test.limit, test.connect, got, test.want)
			}
		})
	}
}

// One miss at a peer that is stopped is enough: who comes next asks others.
func TestSilentFillOpens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, _ := one(t, well())
		_, _ = fetch(t.Context(), t, s, "n1")
		n.freeze()
		start := time.Now()
		if _, err := s.Get(t.Context(), "n1", mayFill(t), wire.Options{}); !errors.Is(err, wire.ErrSilent) {
			t.Errorf("got %v, want ErrSilent", err)
		}
		if took := time.Since(start); took != wire.Silence {
			t.Errorf("took %v, want %v", took, wire.Silence)
		}
		if s.Usable("n1") {
			t.Error("usable after a silence in which it did not say how it is either")
		}
		n.thaw()
	})
}

func mayFill(t *testing.T) cache.Request {
	t.Helper()
	req := request(t)
	req.Mode = cache.AllowFill
	return req
}

// A peer that says that it is well is not left out for one answer that does not come.
func TestSilentCallOfOneThatIsWell(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, _ := one(t, well())
		_, _ = fetch(t.Context(), t, s, "n1")
		n.answer(stuck)
		if _, err := s.Get(t.Context(), "n1", mayFill(t), wire.Options{}); !errors.Is(err, wire.ErrSilent) {
			t.Errorf("got %v, want ErrSilent", err)
		}
		if !s.Usable("n1") {
			t.Error("left out")
		}
	})
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, _ := one(t, well())
		check := func(id string, want bool, within time.Duration) {
			t.Helper()
			start := time.Now()
			if got := s.Answers(t.Context(), id); got != want || time.Since(start) != within {
				t.Errorf("%s: %t after %v, want %t after %v", id, got, time.Since(start), want, within)
			}
		}
		check("n1", true, 0)
		check("nobody", false, 0)
		n.freeze()
		check("n1", false, wire.Silence/2)
		n.thaw()
	})
}
