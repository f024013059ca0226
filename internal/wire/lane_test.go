package wire_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

type (
	smallRequest  = ringmodv1.GetSmallRequest
	smallResponse = ringmodv1.GetSmallResponse
	smallStream   = grpc.BidiStreamingServer[smallRequest, smallResponse]
)

// laneNode is a node whose GetSmall does what a test says.
type laneNode struct {
	ringmodv1.UnimplementedCacheServiceServer

	small func(smallStream) error
}

func (n *laneNode) GetSmall(stream smallStream) error { return n.small(stream) }

// openLane runs a lane to a node and returns it with the reason of its end.
func openLane(t *testing.T, small func(smallStream) error) (*wire.Lane, <-chan error) {
	t.Helper()
	cc, _ := serveCacheService(t, &laneNode{small: small})
	lane, ended := wire.NewLane("n1"), make(chan error, 1)
	go func() { ended <- lane.Run(t.Context(), cc) }()
	return lane, ended
}

const modName = "example.com/m/@v/v1.0.0.mod"

// askLane asks for a go.mod; nil = Get is to be asked.
func askLane(t *testing.T, lane *wire.Lane) []byte {
	t.Helper()
	obj := lane.Get(t.Context(), cache.Request{Target: mustParse(t, modName), Mode: cache.OnlyIfCached}, wire.Options{})
	if obj == nil {
		return nil
	}
	defer obj.Body.Close()
	got, err := io.ReadAll(obj.Body)
	if _, whole := obj.Body.(io.ReadSeeker); err != nil || !whole || obj.Size != int64(len(got)) || obj.Source != cache.Disk {
		t.Errorf("got %+v, %v, want all of it", obj, err)
	}
	return got
}

// smallHeader holds data whole.
func smallHeader(data []byte) *ringmodv1.Header {
	sum := sha256.Sum256(data)
	return &ringmodv1.Header{Size: new(uint64(len(data))), Sha256: sum[:], Source: ringmodv1.Source_SOURCE_DISK, Inline: data}
}

// Requests that wait at the same time get each its own answer, in whatever order
// the node answers.
func TestLaneOutOfOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 20
		lane, _ := openLane(t, func(stream smallStream) error {
			var requests []*smallRequest
			for range n {
				req, err := stream.Recv()
				if err != nil {
					return err
				}
				if g := req.GetGet(); g.GetTarget() != modName || g.GetMode() != ringmodv1.Mode_MODE_ONLY_IF_CACHED || g.GetMaxInline() != wire.MaxInline {
					t.Errorf("asked for %v", g)
				}
				requests = append(requests, req)
			}
			for i := range requests {
				id := requests[n-1-i].GetId()
				if err := stream.Send(&smallResponse{Id: id, Header: smallHeader([]byte{byte(id)})}); err != nil {
					return err
				}
			}
			_, err := stream.Recv()
			return err
		})
		answers := make(chan []byte, n)
		for range n {
			go func() { answers <- askLane(t, lane) }()
		}
		seen := map[string]bool{}
		for range n {
			seen[string(<-answers)] = true
		}
		if len(seen) != n || seen[""] {
			t.Errorf("got %d different answers, want %d", len(seen), n)
		}
	})
}

// What a lane must not take for an answer.
func TestLaneDeclines(t *testing.T) {
	t.Parallel()
	good := smallHeader([]byte("module example.com/m\n"))
	with := func(change func(*ringmodv1.Header)) *ringmodv1.Header {
		h := smallHeader(good.GetInline())
		change(h)
		return h
	}
	for name, test := range map[string]struct {
		header *ringmodv1.Header
		want   []byte
	}{
		"good":           {good, good.GetInline()},
		"no header":      {nil, nil},
		"no bytes":       {with(func(h *ringmodv1.Header) { h.Inline = nil }), nil},
		"other bytes":    {with(func(h *ringmodv1.Header) { h.Inline = []byte("module example.com/n\n") }), nil},
		"too few bytes":  {with(func(h *ringmodv1.Header) { h.Inline = h.GetInline()[1:] }), nil},
		"another size":   {with(func(h *ringmodv1.Header) { h.Size = new(uint64(3)) }), nil},
		"no size":        {with(func(h *ringmodv1.Header) { h.Size = nil }), nil},
		"no digest":      {with(func(h *ringmodv1.Header) { h.Sha256 = nil }), nil},
		"a short digest": {with(func(h *ringmodv1.Header) { h.Sha256 = []byte{1} }), nil},
		"too many bytes": {smallHeader(pattern(wire.MaxInline + 1)), nil},
	} {
		synctest.Test(t, func(t *testing.T) {
			lane, _ := openLane(t, func(stream smallStream) error {
				for {
					req, err := stream.Recv()
					if err != nil {
						return err
					}
					if err := stream.Send(&smallResponse{Id: req.GetId(), Header: test.header}); err != nil {
						return err
					}
				}
			})
			if got := askLane(t, lane); !bytes.Equal(got, test.want) {
				t.Errorf("%s: got %q, want %q", name, got, test.want)
			}
		})
	}
}

// A node that is silent is asked with Get after 100 ms, and not over the lane for a
// second; a late answer harms nothing.
func TestLaneSilence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lane, _ := openLane(t, func(stream smallStream) error {
			for slow := true; ; slow = false {
				req, err := stream.Recv()
				if err != nil {
					return err
				}
				if slow {
					time.Sleep(time.Second)
				}
				if err := stream.Send(&smallResponse{Id: req.GetId(), Header: smallHeader([]byte("x"))}); err != nil {
					return err
				}
			}
		})
		for _, test := range []struct {
			want string
			took time.Duration
		}{{"", 100 * time.Millisecond}, {"", 0}} {
			start := time.Now()
			if got := askLane(t, lane); string(got) != test.want || time.Since(start) != test.took {
				t.Errorf("got %q after %v, want %q after %v", got, time.Since(start), test.want, test.took)
			}
		}
		time.Sleep(2 * time.Second)
		if got := askLane(t, lane); string(got) != "x" {
			t.Errorf("got %q after a rest, want x", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if obj := lane.Get(ctx, cache.Request{Target: mustParse(t, modName)}, wire.Options{}); obj != nil {
			obj.Body.Close()
		}
	})
}

// A node that stops answers what it has received, and gets no more.
func TestLaneOfNodeThatStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lane, ended := openLane(t, func(stream smallStream) error {
			req, err := stream.Recv()
			if err != nil {
				return err
			}
			for _, resp := range []*smallResponse{{}, {}, {Id: req.GetId(), Header: smallHeader([]byte("x"))}, {Id: 4711}} {
				if err := stream.Send(resp); err != nil {
					return err
				}
			}
			if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("received %v, want the end", err)
			}
			return nil
		})
		if got := askLane(t, lane); string(got) != "x" {
			t.Errorf("got %q, want x", got)
		}
		if err := <-ended; !errors.Is(err, io.EOF) || !lane.Closed() {
			t.Errorf("ended with %v, want EOF", err)
		}
		if got := askLane(t, lane); got != nil {
			t.Errorf("got %q of a closed lane", got)
		}
	})
}

// A stream that breaks leaves nobody waiting.
func TestLaneBreaks(t *testing.T) {
	t.Parallel()
	for _, code := range []codes.Code{codes.Unavailable, codes.Unimplemented} {
		synctest.Test(t, func(t *testing.T) {
			lane, ended := openLane(t, func(stream smallStream) error {
				_, _ = stream.Recv()
				return status.Error(code, "")
			})
			start := time.Now()
			if got := askLane(t, lane); got != nil || time.Since(start) > 0 {
				t.Errorf("got %q after %v", got, time.Since(start))
			}
			if err := <-ended; status.Code(err) != code || !lane.Closed() {
				t.Errorf("ended with %v, want %v", err, code)
			}
		})
	}
}

// What goes by Get from the start.
func TestSuitsLane(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		mode cache.Mode
		o    wire.Options
		want bool
	}{
		{modName, cache.OnlyIfCached, wire.Options{}, true},
		{modName, cache.AllowFill, wire.Options{}, true},
		{"sumdb/sum.example.com/tile/8/0/000", cache.OnlyIfCached, wire.Options{}, true},
		{modName, cache.Peek, wire.Options{}, false},
		{modName, cache.Coordinate, wire.Options{}, false},
		{modName, cache.OnlyIfCached, wire.Options{Resume: &wire.Resume{}}, false},
		{modName, cache.OnlyIfCached, wire.Options{MaxInline: -1}, false},
		{zipName, cache.OnlyIfCached, wire.Options{}, false},
		{"example.com/m/@v/list", cache.OnlyIfCached, wire.Options{}, false},
		{"example.com/m/@v/master.info", cache.OnlyIfCached, wire.Options{}, false},
	} {
		req := cache.Request{Target: mustParse(t, test.name), Mode: test.mode}
		if got := wire.SuitsLane(req, test.o); got != test.want {
			t.Errorf("%s, %v, %+v: got %v, want %v", test.name, test.mode, test.o, got, test.want)
		}
	}
}
