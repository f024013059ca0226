package peers_test

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/internal/wire"
)

// Any trouble with the peer, in the header or in mid-body, opens the breaker.
func TestBreakerOpens(t *testing.T) {
	t.Parallel()
	gone := status.Error(codes.Unavailable, "gone")
	tests := []struct {
		name string
		get  getFunc
		want int // calls before it opens, 0 = never
	}{
		{"unavailable", play(gone), 5},
		{"internal without detail", play(status.Error(codes.Internal, "?")), 5},
		{"in mid-body", play(gone, headerOf(nil), chunk(0, 1000)), 5},
		{"silent", stuck, 5},
		{"bad copies", play(status.Error(codes.DataLoss, "bad")), 20},
		{"wrong answers", play(nil), 20},
		{"overload without detail", play(status.Error(codes.ResourceExhausted, "")), 0},
		{"overload in mid-body", play(status.Error(codes.ResourceExhausted, ""), headerOf(nil), chunk(0, 1000)), 0},
		{"busy", play(wire.Status(&cache.Error{Reason: cache.Busy})), 0},
		{"upstream broken", play(wire.Status(&cache.Error{Reason: cache.Broken})), 0},
		{"internal with detail", play(wire.Status(&cache.Error{Reason: cache.Internal})), 0},
		{"not cached", play(wire.Status(&cache.Error{Reason: cache.NotCached})), 0},
		{"well", well(), 0},
		{"inline", inline(), 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, _, _ := one(t, test.get)
				for i := 1; i <= 100; i++ {
					_, _ = fetch(t.Context(), t, s, "n1")
					if !s.Usable("n1") {
						if i != test.want {
							t.Errorf("not usable after %d calls, want %d", i, test.want)
						}
						break
					}
				}
				if got := s.Usable("n1"); got != (test.want == 0) {
					t.Errorf("usable: %v", got)
				}
				if got := s.Stats("n1").InFlight; got != 0 {
					t.Errorf("%d in flight, want 0", got)
				}
			})
		})
	}
}

// Half of the calls fail, never five in a row.
func TestBreakerOpensByHalf(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, _ := one(t, well())
		for i := range 20 {
			if !s.Usable("n1") {
				t.Fatalf("not usable after %d calls", i)
			}
			n.answer(well())
			if i%2 == 1 {
				n.answer(play(status.Error(codes.Unavailable, "")))
			}
			_, _ = fetch(t.Context(), t, s, "n1")
		}
		if s.Usable("n1") {
			t.Error("usable though 10 of 20 calls failed")
		}
	})
}

// breakIt opens the breaker of n1.
func breakIt(t *testing.T, s *peers.Set, n *node) {
	t.Helper()
	n.answer(play(status.Error(codes.Unavailable, "")))
	for s.Usable("n1") {
		_, _ = fetch(t.Context(), t, s, "n1")
	}
}

func TestBreakerCloses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, _ := one(t, well())
		breakIt(t, s, n)
		time.Sleep(900 * time.Millisecond)
		if s.Usable("n1") {
			t.Error("usable before the first probe")
		}
		time.Sleep(200 * time.Millisecond)
		if !s.Usable("n1") {
			t.Fatal("not usable though its health is good")
		}
		_, _ = fetch(t.Context(), t, s, "n1")
		if s.Usable("n1") {
			t.Fatal("usable though the trial failed")
		}
		time.Sleep(1900 * time.Millisecond)
		if s.Usable("n1") {
			t.Error("usable before the second pause")
		}
		time.Sleep(200 * time.Millisecond)
		n.answer(well())
		if _, err := fetch(t.Context(), t, s, "n1"); err != nil {
			t.Fatal(err)
		}
		breakIt(t, s, n) // takes five again, and the first pause
		time.Sleep(1100 * time.Millisecond)
		if !s.Usable("n1") {
			t.Error("not usable after the first pause")
		}
	})
}

func TestUnhealthyStaysOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, _ := one(t, well())
		n.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
		breakIt(t, s, n)
		for range 600 {
			time.Sleep(time.Second)
			if s.Usable("n1") {
				t.Fatal("usable though it says that it is not")
			}
		}
		n.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
		time.Sleep(10 * time.Second)
		if !s.Usable("n1") {
			t.Error("not usable 10 s after it said that it is")
		}
	})
}

// A call that works closes an open breaker, too: who has nobody else tries.
func TestSuccessCloses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, _ := one(t, well())
		breakIt(t, s, n)
		n.answer(well())
		if _, err := fetch(t.Context(), t, s, "n1"); err != nil || !s.Usable("n1") {
			t.Errorf("usable: %v, %v", s.Usable("n1"), err)
		}
	})
}

// Overload neither opens a breaker nor speaks for the peer.
func TestOverloadSaysNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, _ := one(t, well())
		gone, crowded := play(status.Error(codes.Unavailable, "")), play(status.Error(codes.ResourceExhausted, ""))
		for _, answer := range []getFunc{gone, gone, crowded, gone, gone, crowded} {
			n.answer(answer)
			_, _ = fetch(t.Context(), t, s, "n1")
		}
		if !s.Usable("n1") {
			t.Error("not usable after four failures")
		}
		n.answer(gone)
		_, _ = fetch(t.Context(), t, s, "n1")
		if s.Usable("n1") {
			t.Error("usable after five failures with overload among them")
		}
		n.answer(crowded)
		_, _ = fetch(t.Context(), t, s, "n1")
		if s.Usable("n1") {
			t.Error("overload has closed the breaker")
		}
	})
}

// A body that breaks counts, however it is read.
func TestBrokenBodies(t *testing.T) {
	t.Parallel()
	reads := map[string]func(io.Reader) error{
		"Read":    func(r io.Reader) error { _, err := io.ReadAll(r); return err },
		"WriteTo": func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err },
	}
	for name, read := range reads {
		synctest.Test(t, func(t *testing.T) {
			s, _, _ := one(t, play(status.Error(codes.Unavailable, ""), headerOf(nil), chunk(0, 1000)))
			for range 5 {
				obj, err := s.Get(t.Context(), "n1", request(t), wire.Options{})
				if err != nil {
					t.Fatal(err)
				}
				if err := read(obj.Body); err == nil {
					t.Errorf("%s: no error", name)
				}
				if got := s.Stats("n1").InFlight; got != 0 {
					t.Errorf("%s: %d in flight behind the end, want 0", name, got)
				}
				obj.Body.Close()
			}
			if s.Usable("n1") {
				t.Errorf("%s: usable after five broken bodies", name)
			}
		})
	}
}

// Whoever cannot write on says nothing of the peer.
func TestWriterFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, _ := one(t, well())
		breakIt(t, s, n)
		n.answer(well())
		obj, err := s.Get(t.Context(), "n1", request(t), wire.Options{})
		if err != nil {
			t.Fatal(err)
		}
		r, w := io.Pipe()
		r.Close()
		if _, err := io.Copy(w, obj.Body); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("got %v, want the writer's error", err)
		}
		obj.Body.Close()
		if s.Usable("n1") {
			t.Error("an answer that nobody has read to its end has closed the breaker")
		}
	})
}

// A peer without a health service is well when it answers at all.
func TestNoHealthService(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := network{bare: true}
		n := w.start(t, "n1:1", well())
		s := start(t, peers.Config{View: newView(entry("n1")), Dial: w.dial})
		breakIt(t, s, n)
		time.Sleep(1100 * time.Millisecond)
		if !s.Usable("n1") {
			t.Error("not usable")
		}
	})
}

// A peer that could not be reached for a while is usable soon after it can be.
func TestReachedAgain(t *testing.T) {
	t.Parallel()
	for _, away := range []time.Duration{5 * time.Second, 61 * time.Second, 10 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			var w network
			n := w.start(t, "n1:1", well())
			s := start(t, peers.Config{View: newView(entry("n1")), Dial: w.dial})
			_, _ = fetch(t.Context(), t, s, "n1")
			w.refuse(true)
			n.hangUp()
			for range 5 {
				_, _ = fetch(t.Context(), t, s, "n1")
			}
			if s.Usable("n1") {
				t.Error("usable though it refuses")
			}
			time.Sleep(away)
			w.refuse(false)
			back := time.Now()
			for !s.Usable("n1") {
				time.Sleep(10 * time.Millisecond)
			}
			if took := time.Since(back); took > 4*time.Second {
				t.Errorf("away for %v: usable after %v, want 4s at most", away, took)
			}
		})
	}
}
