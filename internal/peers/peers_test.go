package peers_test

import (
	"bytes"
	"context"
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
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// one runs a node, n1, and a Set that knows it.
func one(t *testing.T, get getFunc) (*peers.Set, *node, *view) {
	t.Helper()
	var w network
	n := w.start(t, "n1:1", get)
	v := newView(entry("n1"))
	return start(t, peers.Config{Self: "g1", Region: "eu", View: v, Dial: w.dial}), n, v
}

func TestDialsLazily(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, _ := one(t, well())
		if !s.Usable("n1") || s.Stats("n1") != (peers.Stats{}) {
			t.Errorf("before any call: usable %v, %+v", s.Usable("n1"), s.Stats("n1"))
		}
		if _, err := s.Conn("n1"); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		if got := n.dials.Load(); got != 0 {
			t.Errorf("%d connections before the first call, want 0", got)
		}
		for range 3 {
			if got, err := fetch(t.Context(), t, s, "n1"); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
		}
		synctest.Wait()
		if got := n.dials.Load(); got != 1 {
			t.Errorf("%d connections after calls one by one, want 1", got)
		}
		if got := s.Stats("n1").InFlight; got != 0 {
			t.Errorf("%d in flight, want 0", got)
		}
	})
}

func TestUnknownMembers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _, v := one(t, well())
		v.put(entry("g1"))
		gateway := entry("g2")
		gateway.Role, gateway.Addr = ring.Gateway, ""
		v.put(gateway)
		for _, id := range []string{"g1", "g2", "n9", ""} {
			_, err := fetch(t.Context(), t, s, id)
			if peer, ok := errors.AsType[*wire.PeerError](err); !ok || !errors.Is(err, peers.ErrUnknown) || peer.Node != id {
				t.Errorf("Get of %q: %v, want ErrUnknown", id, err)
			}
			if _, err := s.Conn(id); !errors.Is(err, peers.ErrUnknown) {
				t.Errorf("Conn of %q: %v, want ErrUnknown", id, err)
			}
		}
		if s.Usable("g1") || s.Usable("n9") {
			t.Error("oneself or a stranger is usable")
		}
	})
}

func TestStamps(t *testing.T) {
	t.Parallel()
	got := make(chan *ringmodv1.GetRequest, 1)
	get := func(req *ringmodv1.GetRequest, stream getStream) error {
		got <- req
		return well()(req, stream)
	}
	synctest.Test(t, func(t *testing.T) {
		s, _, v := one(t, get)
		template := &ringmodv1.GetRequest{Hops: 1, RequestId: "r1", Mode: ringmodv1.Mode_MODE_COORDINATE, CallerRegion: "x"}
		obj, err := s.Get(t.Context(), "n1", request(t), wire.Options{Template: template})
		if err != nil {
			t.Fatal(err)
		}
		obj.Body.Close()
		own := v.View()
		want := &ringmodv1.GetRequest{
			Target: "example.com/m/@v/v1.0.0.zip", Hops: 1, RequestId: "r1", Mode: ringmodv1.Mode_MODE_COORDINATE,
			CallerRegion: "eu", ViewDigest: own.Digest(), ViewSeq: own.Seq(), MaxInline: wire.MaxInline,
		}
		if req := <-got; req.String() != want.String() {
			t.Errorf("got %v, want %v", req, want)
		}
		if template.GetCallerRegion() != "x" || template.GetViewSeq() != 0 {
			t.Errorf("the caller's template became %v", template)
		}
	})
}

func TestBodyKeepsItsAbilities(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, _ := one(t, well())
		obj, err := s.Get(t.Context(), "n1", request(t), wire.Options{})
		if err != nil {
			t.Fatal(err)
		}
		body, ok := obj.Body.(*peers.Body)
		if !ok {
			t.Fatalf("a stream is a %T, want a *peers.Body", obj.Body)
		}
		if got := s.Stats("n1").InFlight; got != 1 {
			t.Errorf("%d in flight, want 1", got)
		}
		if _, err := io.ReadFull(body, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		if r, ok := body.Resume(); !ok || r.Offset != 100 {
			t.Errorf("Resume = %+v, %v, want byte 100", r, ok)
		}
		if at, _ := body.Prefix(); at != 100 {
			t.Errorf("Prefix of %d bytes, want 100", at)
		}
		body.Close()
		if _, err := body.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("Read after Close: %v", err)
		}
		body.Close()
		if got := s.Stats("n1").InFlight; got != 0 {
			t.Errorf("%d in flight after Close, want 0", got)
		}
		n.answer(inline())
		obj, err = s.Get(t.Context(), "n1", request(t), wire.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := obj.Body.(io.ReadSeeker); !ok || s.Stats("n1").InFlight != 0 {
			t.Errorf("inline: a %T, %d in flight, want an io.ReadSeeker and 0", obj.Body, s.Stats("n1").InFlight)
		}
	})
}

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

// A new boot id is a new life: nothing is held against it, and it is dialled anew.
func TestNewBoot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, v := one(t, well())
		n.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
		for range 3 {
			_, _ = fetch(t.Context(), t, s, "n1")
		}
		if s.Stats("n1").P95 == 0 {
			t.Fatal("no latency was measured")
		}
		breakIt(t, s, n)
		m := entry("n1")
		m.Boot = "b2"
		v.put(m)
		if got := s.Stats("n1"); !s.Usable("n1") || got != (peers.Stats{}) {
			t.Errorf("after a new boot: usable %v, %+v", s.Usable("n1"), got)
		}
		n.answer(well())
		if _, err := fetch(t.Context(), t, s, "n1"); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Second)
		if dials, conns := n.dials.Load(), n.conns.Load(); dials != 2 || conns != 1 {
			t.Errorf("%d dials, %d connections, want 2 and 1", dials, conns)
		}
	})
}

// A member that moves is dialled at its new address; what runs at the old one may
// end.
func TestNewAddress(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	get := func(req *ringmodv1.GetRequest, stream getStream) error {
		_ = play(nil, headerOf(nil), chunk(0, 1000))(req, stream)
		<-release
		return play(nil, chunk(1000, len(data)), trailer())(req, stream)
	}
	synctest.Test(t, func(t *testing.T) {
		var w network
		old := w.start(t, "n1:1", get)
		moved := w.start(t, "n1:2", well())
		v := newView(entry("n1"))
		s := start(t, peers.Config{Self: "g1", Region: "eu", View: v, Dial: w.dial})
		release = make(chan struct{})
		cc, err := s.Conn("n1")
		if err != nil {
			t.Fatal(err)
		}
		obj, err := s.Get(t.Context(), "n1", request(t), wire.Options{Silence: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		m := entry("n1")
		m.Addr = "n1:2"
		v.put(m)
		if _, err := fetch(t.Context(), t, s, "n1"); err != nil {
			t.Error(err)
		}
		if _, err := healthpb.NewHealthClient(cc).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
			t.Error(err)
		}
		time.Sleep(5 * time.Second)
		if got := [...]int64{old.asked.Load(), moved.asked.Load(), old.conns.Load(), moved.dials.Load()}; got != [...]int64{1, 1, 1, 1} {
			t.Errorf("old and new were asked, conns of the old, dials of the new: %v", got)
		}
		close(release)
		got, err := io.ReadAll(obj.Body)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("the old stream: %d bytes, %v", len(got), err)
		}
		obj.Body.Close()
		time.Sleep(2 * time.Second)
		if got := old.conns.Load(); got != 0 {
			t.Errorf("%d connections to the old address, want 0", got)
		}
	})
}

func TestMemberLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, v := one(t, well())
		cc, err := s.Conn("n1")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fetch(t.Context(), t, s, "n1")
		v.drop("n1")
		if _, err := fetch(t.Context(), t, s, "n1"); !errors.Is(err, peers.ErrUnknown) {
			t.Errorf("got %v, want ErrUnknown", err)
		}
		_, err = healthpb.NewHealthClient(cc).Check(t.Context(), &healthpb.HealthCheckRequest{})
		if status.Code(err) != codes.Unavailable {
			t.Errorf("over Conn: %v, want Unavailable", err)
		}
		time.Sleep(2 * time.Second)
		if got := n.conns.Load(); got != 0 {
			t.Errorf("%d connections, want 0", got)
		}
	})
}

func TestDownIsNotUsable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _, v := one(t, well())
		v.setDown("n1", true)
		if s.Usable("n1") {
			t.Error("usable though it is down")
		}
		if _, err := fetch(t.Context(), t, s, "n1"); err != nil {
			t.Errorf("asked all the same: %v", err)
		}
	})
}

func TestAfterRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var w network
		n := w.start(t, "n1:1", well())
		s := peers.New(peers.Config{View: newView(entry("n1"), entry("n2")), Dial: w.dial})
		if _, err := fetch(t.Context(), t, s, "n1"); err != nil {
			t.Errorf("before Run: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if got := n.conns.Load(); got != 0 {
			t.Errorf("%d connections, want 0", got)
		}
		for _, id := range []string{"n1", "n2"} {
			if _, err := fetch(t.Context(), t, s, id); !errors.Is(err, peers.ErrClosed) {
				t.Errorf("after Run: %v, want ErrClosed", err)
			}
		}
	})
}

func TestOtherViewIsReported(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := newView(entry("n1"))
		own := v.View()
		tests := []struct {
			name        string
			digest, seq uint64
			want        bool
		}{
			{"same", own.Digest(), own.Seq(), false},
			{"same placement, newer", own.Digest(), own.Seq() + 5, false},
			{"other", 1, own.Seq() + 5, true},
			{"other, older", 1, 1, true},
			{"unknown", 0, 0, false},
		}
		type report struct {
			id          string
			digest, seq uint64
		}
		var reports []report
		var w network
		n := w.start(t, "n1:1", well())
		s := start(t, peers.Config{View: v, Dial: w.dial, OnView: func(id string, digest, seq uint64) {
			reports = append(reports, report{id, digest, seq})
		}})
		for _, test := range tests {
			n.answer(play(nil, headerOf(func(h *ringmodv1.Header) { h.ViewDigest, h.ViewSeq = test.digest, test.seq }), chunk(0, len(data)), trailer()))
			reports = nil
			seen := false
			obj, err := s.Get(t.Context(), "n1", request(t), wire.Options{OnHeader: func(*ringmodv1.Header) { seen = true }})
			if err != nil {
				t.Fatal(err)
			}
			obj.Body.Close()
			if want := []report{{"n1", test.digest, test.seq}}; (len(reports) == 1 && reports[0] == want[0]) != test.want || len(reports) > 1 {
				t.Errorf("%s: reported %v, want that: %v", test.name, reports, test.want)
			}
			if !seen {
				t.Errorf("%s: the caller's OnHeader was left out", test.name)
			}
		}
	})
}
