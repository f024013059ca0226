package peers_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

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
		if dials, conns := n.dials.Load(), n.conns(); dials != 2 || conns != 1 {
			t.Errorf("%d dials, %d connections, want 2 and 1", dials, conns)
		}
	})
}

// A member that moves is dialled at its new address; what runs at the old one may
// end.
func TestNewAddress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var w network
		old := w.start(t, "n1:1", func(req *ringmodv1.GetRequest, stream getStream) error {
			_ = play(nil, headerOf(nil), chunk(0, 1000))(req, stream)
			<-release
			return play(nil, chunk(1000, len(data)), trailer())(req, stream)
		})
		moved := w.start(t, "n1:2", well())
		v := newView(entry("n1"))
		s := start(t, peers.Config{Self: "g1", Region: "eu", View: v, Dial: w.dial})
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
		if got := [...]int64{old.asked.Load(), moved.asked.Load(), int64(old.conns()), moved.dials.Load()}; got != [...]int64{1, 1, 1, 1} {
			t.Errorf("old and new were asked, conns of the old, dials of the new: %v", got)
		}
		close(release)
		got, err := io.ReadAll(obj.Body)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("the old stream: %d bytes, %v", len(got), err)
		}
		obj.Body.Close()
		time.Sleep(2 * time.Second)
		if got := old.conns(); got != 0 {
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
		if got := n.conns(); got != 0 {
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
		if got := n.conns(); got != 0 {
			t.Errorf("%d connections, want 0", got)
		}
		for _, id := range []string{"n1", "n2"} {
			if _, err := fetch(t.Context(), t, s, id); !errors.Is(err, peers.ErrClosed) {
				t.Errorf("after Run: %v, want ErrClosed", err)
			}
		}
	})
}

// Two calls that come first at the same time share what one of them has made.
func TestFirstCallsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var w network
		w.start(t, "n1:1", stuck)
		both := make(chan struct{})
		var came atomic.Int64
		s := start(t, peers.Config{
			View: newView(entry("n1")), Dial: w.dial,
			Credentials: func(string, ring.Role) credentials.TransportCredentials {
				if came.Add(1) == 2 {
					close(both)
				}
				<-both
				return insecure.NewCredentials()
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range 2 {
			go func() { _, _ = fetch(ctx, t, s, "n1") }()
		}
		synctest.Wait()
		if got := s.Stats("n1").InFlight; got != 2 {
			t.Errorf("%d in flight, want 2", got)
		}
	})
}

// Nobody goes on asking for the health of a member that has left.
func TestStoppedMemberLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, v := one(t, well())
		breakIt(t, s, n)
		n.freeze()
		time.Sleep(1500 * time.Millisecond)
		if got := n.conns(); got != 1 {
			t.Fatalf("%d connections, want 1", got)
		}
		v.drop("n1")
		time.Sleep(2500 * time.Millisecond)
		n.thaw()
		synctest.Wait()
		if got := n.conns(); got != 0 {
			t.Errorf("%d connections, want 0", got)
		}
	})
}

// Without a Dial the address is one of TCP.
func TestTCP(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(well(), true)
	go func() { _ = n.server.Serve(listener) }()
	defer n.server.Stop()
	m := entry("n1")
	m.Addr = listener.Addr().String()
	s := start(t, peers.Config{View: newView(m)})
	if got, err := fetch(t.Context(), t, s, "n1"); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v, want %d", len(got), err, len(data))
	}
}
