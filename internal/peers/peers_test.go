package peers_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

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
	synctest.Test(t, func(t *testing.T) {
		got := make(chan *ringmodv1.GetRequest, 1)
		s, _, v := one(t, func(req *ringmodv1.GetRequest, stream getStream) error {
			got <- req
			return well()(req, stream)
		})
		template := &ringmodv1.GetRequest{RequestId: "r1", CallerRegion: "x"}
		req := request(t)
		req.Mode, req.Hops = cache.Coordinate, 1
		obj, err := s.Get(t.Context(), "n1", req, wire.Options{Template: template})
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
		if got := s.Stats("n1").InFlight; got != 0 {
			t.Errorf("%d in flight after Close, want 0", got)
		}
		if _, err := body.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("Read after Close: %v", err)
		}
		body.Close()
		if got := s.Stats("n1").InFlight; got != 0 {
			t.Errorf("%d in flight after another Close, want 0", got)
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
