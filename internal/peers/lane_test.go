package peers_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

type smallStream = grpc.BidiStreamingServer[ringmodv1.GetSmallRequest, ringmodv1.GetSmallResponse]

// lanesOf answers all that comes over a lane with data, and counts.
type lanesOf struct {
	opened, answered atomic.Int64
	lasts            int64 // answers after which a lane ends; 0 = for ever
	declines         bool
}

func (l *lanesOf) serve(stream smallStream) error {
	l.opened.Add(1)
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		resp := &ringmodv1.GetSmallResponse{Id: req.GetId()}
		if !l.declines {
			resp.Header = headerOf(func(h *ringmodv1.Header) { h.Inline = data }).GetHeader()
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
		if n := l.answered.Add(1); n == l.lasts {
			return nil
		}
	}
}

// getMod asks n1 for a go.mod, as long as it is not there.
func getMod(t *testing.T, s *peers.Set) {
	t.Helper()
	parsed, err := target.Parse("example.com/m/@v/v1.0.0.mod")
	if err != nil {
		t.Fatal(err)
	}
	obj, err := s.Get(t.Context(), "n1", cache.Request{Target: parsed, Mode: cache.AllowFill}, wire.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if obj.Size != int64(len(data)) {
		t.Errorf("got %d bytes, want %d", obj.Size, len(data))
	}
	obj.Body.Close()
}

// What is small goes over a lane once there is a connection, and by a call where the
// lane does not answer, has ended, or there is none.
func TestLanes(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		region        string
		lanes         *lanesOf
		calls, opened int64 // of the first five requests
		later         int64 // calls of one more, after a while
	}{
		"lane":           {"eu", &lanesOf{}, 1, 1, 0},
		"far":            {"us", &lanesOf{}, 5, 0, 1},
		"none":           {"eu", nil, 5, 0, 1},
		"does not hold":  {"eu", &lanesOf{declines: true}, 5, 1, 1},
		"ends after one": {"eu", &lanesOf{lasts: 1}, 4, 1, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			var w network
			n := w.start(t, "n1:1", inline())
			counts := test.lanes
			if counts == nil {
				counts = &lanesOf{}
			} else {
				n.small = counts.serve
			}
			s := start(t, peers.Config{Self: "g1", Region: test.region, View: newView(entry("n1")), Dial: w.dial})
			for range 5 {
				getMod(t, s)
				synctest.Wait()
				if got := s.Stats("n1").InFlight; got != 0 {
					t.Errorf("%s: %d in flight", name, got)
				}
			}
			if got := n.asked.Load(); got != test.calls || counts.opened.Load() != test.opened {
				t.Errorf("%s: %d calls and %d lanes, want %d and %d", name, got, counts.opened.Load(), test.calls, test.opened)
			}
			time.Sleep(2 * time.Second)
			getMod(t, s)
			if got := n.asked.Load() - test.calls; got != test.later {
				t.Errorf("%s: %d calls later, want %d", name, got, test.later)
			}
		})
	}
}

// A member that leaves takes its lane along.
func TestLaneOfMemberThatLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var w network
		n := w.start(t, "n1:1", inline())
		n.small = (&lanesOf{}).serve
		v := newView(entry("n1"))
		s := start(t, peers.Config{Self: "g1", Region: "eu", View: v, Dial: w.dial})
		getMod(t, s)
		getMod(t, s)
		v.drop("n1")
		time.Sleep(3 * time.Second)
		if got := n.conns(); got != 0 {
			t.Errorf("%d connections to a member that has left", got)
		}
	})
}
