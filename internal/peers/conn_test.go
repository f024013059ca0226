package peers_test

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// The second connection is made behind a busy first one, and takes what comes
// then. Calls of other services count.
func TestLeastBusyConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, _ := one(t, stuck)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		cc, err := s.Conn("n1")
		if err != nil {
			t.Fatal(err)
		}
		watch := func() {
			stream, err := healthpb.NewHealthClient(cc).Watch(ctx, &healthpb.HealthCheckRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		for i, want := range []int64{1, 2, 2, 2} {
			watch()
			synctest.Wait()
			if got := n.dials.Load(); got != want {
				t.Errorf("%d connections with %d streams, want %d", got, i+1, want)
			}
		}
		if got, want := n.perConn(), []int64{2, 2}; !slices.Equal(got, want) {
			t.Errorf("streams by connection: %v, want %v", got, want)
		}
	})
}

// What may be read slowly has connections of its own, so that no other stream gets
// their windows.
func TestNarrowConnections(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n, _ := one(t, well())
		for i, narrow := range []bool{false, true, false, true} {
			obj, err := s.Get(t.Context(), "n1", request(t), wire.Options{Narrow: narrow})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(obj.Body); err != nil || len(got) != len(data) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			obj.Body.Close()
			if got, want := n.dials.Load(), int64(min(i+1, 2)); got != want {
				t.Errorf("%d connections after %d calls, want %d", got, i+1, want)
			}
		}
	})
}

// Between regions a node may send what a window of 16 MiB holds before anybody
// reads it, inside one it may not, and never more than 1 MiB where that may be read
// slowly.
func TestWindows(t *testing.T) {
	t.Parallel()
	tests := []struct {
		region      string
		narrow      bool
		least, most int64 // bytes that a node sends unread
	}{
		{"eu", false, 0, 12<<20 - 1},
		{"us", false, 12 << 20, 13 << 20},
		{"eu", true, 1 << 20, 3 << 19},
		{"us", true, 12 << 20, 13 << 20},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			var sent atomic.Int64
			var w network
			w.start(t, "n1:1", func(_ *ringmodv1.GetRequest, stream getStream) error {
				if err := stream.Send(headerOf(nil)); err != nil {
					return err
				}
				for ; sent.Load() < 12<<20; sent.Add(int64(len(data))) {
					if err := stream.Send(chunk(0, len(data))); err != nil {
						return err
					}
				}
				return nil
			})
			m := entry("n1")
			m.Region = tt.region
			s := start(t, peers.Config{Region: "eu", View: newView(m), Dial: w.dial})
			obj, err := s.Get(t.Context(), "n1", request(t), wire.Options{Narrow: tt.narrow})
			if err != nil {
				t.Fatal(err)
			}
			defer obj.Body.Close()
			time.Sleep(time.Second)
			if got := sent.Load(); got < tt.least || got > tt.most {
				t.Errorf("a member in %s, narrow %v, sent %d bytes unread, want %d to %d", tt.region, tt.narrow, got, tt.least, tt.most)
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var asked []string
		var w network
		w.start(t, "n1:1", well())
		w.start(t, "g2:1", well())
		gateway := entry("g2")
		gateway.Role = ring.Gateway
		s := start(t, peers.Config{
			View: newView(entry("n1"), gateway), Dial: w.dial,
			Credentials: func(id string, role ring.Role) credentials.TransportCredentials {
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, fmt.Sprint(id, " ", role))
				return insecure.NewCredentials()
			},
		})
		for _, id := range []string{"n1", "g2"} {
			if _, err := fetch(t.Context(), t, s, id); err != nil {
				t.Error(err)
			}
		}
		if got, want := slices.Compact(asked), []string{"n1 node", "g2 gateway"}; !slices.Equal(got, want) {
			t.Errorf("credentials for %q, want %q", got, want)
		}
	})
}

// What a peer has to fetch first, and connecting, say nothing of how fast it is.
func TestWhatCountsAsLatency(t *testing.T) {
	t.Parallel()
	from := func(source ringmodv1.Source) getFunc {
		return play(nil, headerOf(func(h *ringmodv1.Header) { h.Source = source }), chunk(0, len(data)), trailer())
	}
	for _, test := range []struct {
		name string
		get  getFunc
		want time.Duration
	}{
		{"disk", from(ringmodv1.Source_SOURCE_DISK), 70 * time.Millisecond},
		{"memory", from(ringmodv1.Source_SOURCE_MEMORY), 70 * time.Millisecond},
		{"not cached", play(wire.Status(&cache.Error{Reason: cache.NotCached})), 70 * time.Millisecond},
		{"upstream", from(ringmodv1.Source_SOURCE_UPSTREAM), 0},
		{"another fill", from(ringmodv1.Source_SOURCE_INFLIGHT), 0},
		{"another node", from(ringmodv1.Source_SOURCE_PEER), 0},
		{"not found", play(wire.Status(&cache.Error{Reason: cache.NotFound})), 0},
		{"broken", play(status.Error(codes.Unavailable, "")), 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, _, _ := one(t, func(req *ringmodv1.GetRequest, stream getStream) error {
				time.Sleep(70 * time.Millisecond)
				return test.get(req, stream)
			})
			_, _ = fetch(t.Context(), t, s, "n1")
			if got := s.Stats("n1"); got != (peers.Stats{}) {
				t.Errorf("%s: %+v after the call that connected, want nothing", test.name, got)
			}
			_, _ = fetch(t.Context(), t, s, "n1")
			if got, want := s.Stats("n1"), (peers.Stats{Latency: test.want, P95: test.want, RTT: test.want}); got != want {
				t.Errorf("%s: %+v, want %+v", test.name, got, want)
			}
		})
	}
}

func TestRTTByGossip(t *testing.T) {
	t.Parallel()
	s := peers.New(peers.Config{View: newView(entry("n1")), RTT: func(id string) time.Duration {
		return map[string]time.Duration{"n1": 42}[id]
	}})
	if got, want := s.Stats("n1"), (peers.Stats{RTT: 42}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := s.Stats("n2"); got != (peers.Stats{}) {
		t.Errorf("got %+v, want nothing", got)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var w network
		n := w.start(t, "n1:1", well())
		reg := prometheus.NewPedanticRegistry()
		s := start(t, peers.Config{View: newView(entry("n1")), Dial: w.dial, Metrics: reg})
		_, _ = fetch(t.Context(), t, s, "n1")
		n.answer(play(wire.Status(&cache.Error{Reason: cache.NotCached})))
		_, _ = fetch(t.Context(), t, s, "n1")
		n.answer(play(status.Error(codes.ResourceExhausted, "")))
		_, _ = fetch(t.Context(), t, s, "n1")
		n.answer(play(status.Error(codes.DataLoss, "")))
		_, _ = fetch(t.Context(), t, s, "n1")
		breakIt(t, s, n)
		n.answer(play(nil, headerOf(nil)))
		obj, err := s.Get(t.Context(), "n1", request(t), wire.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer obj.Body.Close()
		got := gather(t, reg)
		want := []string{
			"ringmod_peer_breaker n1 2", "ringmod_peer_in_flight n1 1", "ringmod_peer_p95_seconds n1 0",
			"ringmod_peer_requests_total failed 5", "ringmod_peer_requests_total flawed 1", "ringmod_peer_requests_total not_cached 1",
			"ringmod_peer_requests_total ok 1", "ringmod_peer_requests_total overloaded 1",
		}
		for i := range got { // virtual time stands still: any latency is tiny
			if rest, ok := strings.CutPrefix(got[i], "ringmod_peer_p95_seconds n1 "); ok && strings.HasSuffix(rest, "e-09") {
				got[i] = "ringmod_peer_p95_seconds n1 0"
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// gather returns name, label and value of each metric.
func gather(t *testing.T, reg prometheus.Gatherer) []string {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			value := m.GetGauge().GetValue() + m.GetCounter().GetValue()
			lines = append(lines, fmt.Sprint(f.GetName(), " ", m.GetLabel()[0].GetValue(), " ", value))
		}
	}
	return lines
}

// Callers come and leave while members come, move, fail and go.
func TestConcurrency(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var w network
		ids := []string{"n1", "n2", "n3"}
		var nodes []*node
		for _, id := range ids {
			nodes = append(nodes, w.start(t, id+":1", well()))
		}
		v := newView()
		s := start(t, peers.Config{Self: "g1", Region: "eu", View: v, Dial: w.dial, Metrics: prometheus.NewRegistry()})
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				for i := range 60 {
					id := ids[(i+worker)%len(ids)]
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+i%3)*time.Second)
					if obj, err := s.Get(ctx, id, request(t), wire.Options{}); err == nil {
						wg.Go(func() { _, _ = io.CopyN(io.Discard, obj.Body, 1000) })
						if i%2 == 0 {
							time.Sleep(time.Millisecond)
						}
						obj.Body.Close()
					}
					cancel()
					s.Usable(id)
					s.Stats(id)
					time.Sleep(10 * time.Millisecond)
				}
			})
		}
		for i := range 60 {
			n, m := nodes[i%3], entry(ids[i%3])
			m.Boot = fmt.Sprint("b", i/6)
			v.put(m)
			n.answer([]getFunc{well(), stuck, play(status.Error(codes.Unavailable, "")), inline()}[i%4])
			if i%7 == 0 {
				v.drop(ids[i%3])
			}
			time.Sleep(50 * time.Millisecond)
		}
		wg.Wait()
		time.Sleep(10 * time.Second)
		for i, id := range ids {
			if got := s.Stats(id).InFlight; got != 0 {
				t.Errorf("%s: %d in flight, want 0", id, got)
			}
			if got := nodes[i].conns(); got > 2 {
				t.Errorf("%s: %d connections, want 2 at most", id, got)
			}
		}
	})
}
