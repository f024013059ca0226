package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/store/storetest"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// stutter is a fill that yields a piece at each tick, and then ends with err.
type stutter struct {
	pieces [][]byte
	pause  time.Duration
	err    error
}

func (s *stutter) Read(p []byte) (int, error) {
	time.Sleep(s.pause)
	if len(s.pieces) == 0 {
		return 0, s.err
	}
	n := copy(p, s.pieces[0])
	s.pieces = s.pieces[1:]
	return n, nil
}

func (*stutter) Close() error { return nil }

// dripping is an upstream that yields a zip piece by piece, and then err.
type dripping struct {
	size   int64
	pieces int
	err    error
}

func (dripping) Offline() bool { return false }

func (d dripping) Fetch(context.Context, target.Target, upstream.Validators) (*upstream.Response, error) {
	pieces := slices.Repeat([][]byte{bytes.Repeat([]byte{'x'}, 100<<10)}, d.pieces)
	return &upstream.Response{Source: "up", Size: d.size, Body: &stutter{pieces, 10 * time.Second, d.err}}, nil
}

// A zip whose upstream breaks in the middle ends as upstream's trouble, however
// much of it was sent, and never as a shorter zip.
func TestServiceBrokenUpstream(t *testing.T) {
	t.Parallel()
	reset := &cache.Error{Reason: cache.Broken, Source: "up", Text: "reset"}
	for name, up := range map[string]dripping{
		"cut": {1 << 20, 5, reset}, "cut, size unknown": {-1, 5, reset}, "short": {1 << 20, 5, io.EOF}, "not a zip": {500 << 10, 5, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				n, mem := newNode(t, node.Config{Upstream: up})
				cc := serveCache(t, node.ServiceConfig{Cache: n})
				zip := fileOf(t, modPath, modVers, target.Zip)
				got, _, err := fetchWire(t.Context(), cc, cache.Request{Target: zip}, wire.Options{Node: "n1"})
				e, ok := errors.AsType[*cache.Error](err)
				if !ok || e.Reason.Absent() || e.Reason == cache.Internal || e.Source == "" {
					t.Errorf("got %d bytes, %v, want upstream's trouble", len(got), err)
				}
				if len(got) == 0 || len(got) > 500<<10-64<<10 {
					t.Errorf("got %d bytes of 500 KiB, want those before the last 64 KiB", len(got))
				}
				if isStored(t, mem, zip.String()) {
					t.Error("it is stored")
				}
			})
		})
	}
}

func TestServiceUnknownSize(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t, oneModule(1<<20))
	fake.Fault(".zip", upstreamtest.Fault{Chunked: true})
	n, _ := newNode(t, node.Config{Upstream: loopbackClient(t, fake.URL)})
	cc := serveCache(t, node.ServiceConfig{Cache: n})
	got, _, err := fetchWire(t.Context(), cc, cache.Request{Target: fileOf(t, modPath, modVers, target.Zip)}, wire.Options{CRCOnly: true})
	if want := fake.Zip(modPath, modVers); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v, want %d", len(got), err, len(want))
	}
}

// However slow the upstream is, before the header and behind it, the node does
// not look dead; and a fill that breaks never looks whole.
func TestServiceSlowFill(t *testing.T) {
	t.Parallel()
	broken := &cache.Error{Reason: cache.Broken, Source: "up", Text: "reset"}
	for _, test := range []struct {
		name string
		size int64
		err  error
		want func(error) bool
	}{
		{"good", 300, io.EOF, func(err error) bool { return err == nil }},
		{"good, size unknown", -1, io.EOF, func(err error) bool { return err == nil }},
		{"short", 301, io.EOF, func(err error) bool { _, ok := errors.AsType[*wire.PeerError](err); return ok }},
		{"broken", 301, broken, func(err error) bool { return cache.ReasonOf(err) == cache.Broken }},
		{"broken, size unknown", -1, broken, func(err error) bool { return cache.ReasonOf(err) == cache.Broken }},
		{"broken at the end", 300, broken, func(err error) bool { return cache.ReasonOf(err) == cache.Broken }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				piece := bytes.Repeat([]byte{'x'}, 100)
				cc := serveCache(t, node.ServiceConfig{Cache: cacheFunc(func(context.Context, cache.Request) (*cache.Object, error) {
					time.Sleep(time.Minute)
					return &cache.Object{Size: test.size, Source: cache.Upstream, Body: &stutter{[][]byte{piece, piece, piece}, time.Minute, test.err}}, nil
				})})
				start := time.Now()
				got, _, err := fetchWire(t.Context(), cc, cache.Request{Target: fileOf(t, modPath, modVers, target.Zip)}, wire.Options{})
				if !test.want(err) {
					t.Errorf("got %d bytes, %v", len(got), err)
				}
				if d := time.Since(start); d < 5*time.Minute {
					t.Errorf("ended after %v, want 5m", d)
				}
			})
		})
	}
}

func TestServiceProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cc := serveCache(t, node.ServiceConfig{Cache: cacheFunc(func(context.Context, cache.Request) (*cache.Object, error) {
			time.Sleep(2500 * time.Millisecond)
			return &cache.Object{Size: 5, Source: cache.Inflight, Body: &stutter{[][]byte{[]byte("abc"), []byte("de")}, 1500 * time.Millisecond, io.EOF}}, nil
		})})
		stream, err := ringmodv1.NewCacheServiceClient(cc).Get(t.Context(), &ringmodv1.GetRequest{
			Target: fileOf(t, modPath, modVers, target.Zip).String(), Mode: ringmodv1.Mode_MODE_ALLOW_FILL,
		})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		var got []string
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			at := time.Since(start)
			switch {
			case m.GetProgress() != nil:
				p := m.GetProgress()
				got = append(got, fmt.Sprintf("%v %v %d/%d", at, p.GetPhase(), p.GetFetched(), p.GetTotal()))
			case m.GetHeader() != nil:
				got = append(got, fmt.Sprintf("%v header %d %v", at, m.GetHeader().GetSize(), m.GetHeader().GetSource()))
			case m.GetChunk() != nil:
				got = append(got, fmt.Sprintf("%v chunk %d %q", at, m.GetChunk().GetOffset(), m.GetChunk().GetData()))
			case m.GetTrailer() != nil:
				got = append(got, fmt.Sprintf("%v trailer %d", at, m.GetTrailer().GetSize()))
			}
		}
		want := []string{
			"1s FILL_PHASE_WAITING 0/0", "2s FILL_PHASE_WAITING 0/0", "2.5s header 5 SOURCE_INFLIGHT",
			"3.5s FILL_PHASE_RECEIVING 0/5", "4s chunk 0 \"abc\"", "5s FILL_PHASE_RECEIVING 3/5", "5.5s chunk 3 \"de\"",
			"6.5s FILL_PHASE_RECEIVING 5/5", "7s trailer 5",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// What is held and does not come is not covered up by signs of life.
func TestServiceHungDiskIsSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cc := serveCache(t, node.ServiceConfig{Cache: cacheFunc(func(context.Context, cache.Request) (*cache.Object, error) {
			return &cache.Object{Size: 1 << 20, SHA256: [32]byte{1}, Source: cache.Disk, Body: &stutter{pause: time.Minute, err: io.EOF}}, nil
		})})
		defer time.Sleep(time.Minute) // the handler hangs as long
		_, _, err := fetchWire(t.Context(), cc, cache.Request{Target: fileOf(t, modPath, modVers, target.Zip)}, wire.Options{})
		if !errors.Is(err, wire.ErrSilent) {
			t.Errorf("got %v, want ErrSilent", err)
		}
	})
}

// slowDisk takes its time to open an object, in steps.
type slowDisk struct {
	*store.Mem

	steps int
	step  time.Duration
}

func (d slowDisk) Open(ctx context.Context, name string) (*store.Object, error) {
	for range d.steps {
		time.Sleep(d.step)
		store.Progress(ctx)()
	}
	return d.Mem.Open(ctx, name)
}

// A disk that hangs before it has opened an object is not covered up either; one that reads a
// large file is not taken for one.
func TestServiceWaitsForTheDisk(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		steps int
		step  time.Duration
		want  error
	}{
		"hangs":   {1, time.Minute, wire.ErrSilent},
		"is slow": {60, time.Second / 2, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				disk := slowDisk{store.NewMem(), tc.steps, tc.step}
				file := fileOf(t, modPath, modVers, target.Zip)
				storetest.Put(t, disk, file.String(), "a zip", "")
				n := node.New(node.Config{Store: disk, Documents: disk, Upstream: newScripted(nil)})
				t.Cleanup(func() { stopNode(n) })
				cc := serveCache(t, node.ServiceConfig{Cache: n})
				defer time.Sleep(time.Minute) // the handler hangs as long
				_, _, err := fetchWire(t.Context(), cc, cache.Request{Target: file}, wire.Options{})
				if !errors.Is(err, tc.want) {
					t.Errorf("got %v, want %v", err, tc.want)
				}
			})
		})
	}
}

func TestServiceRealNodeSlowUpstream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const body = "module example.com/m\n"
		up := newScripted(map[string]string{modPath + "/@v/" + modVers + ".mod": body})
		up.delay = 20 * time.Second
		n, _ := newNode(t, node.Config{Upstream: up})
		cc := serveCache(t, node.ServiceConfig{Cache: n})
		mod := fileOf(t, modPath, modVers, target.Mod)
		got, _, err := fetchWire(t.Context(), cc, cache.Request{Target: mod}, wire.Options{})
		if err != nil || string(got) != body {
			t.Errorf("got %q, %v, want %q", got, err, body)
		}
		_, _, err = fetchWire(t.Context(), cc, cache.Request{Target: fileOf(t, modPath, "v1.9.0", target.Mod)}, wire.Options{})
		if e, ok := errors.AsType[*cache.Error](err); !ok || e.Reason != cache.NotFound || e.Source != "scripted" {
			t.Errorf("absent: %v, want NotFound of scripted", err)
		}
		_, _, err = fetchWire(t.Context(), cc, cache.Request{Target: fileOf(t, modPath, "v1.8.0", target.Mod), Mode: cache.OnlyIfCached}, wire.Options{})
		if cache.ReasonOf(err) != cache.NotCached {
			t.Errorf("only if cached: %v, want NotCached", err)
		}
	})
}

// No sign of life comes behind the end of a fill, also when both are due at the
// same time.
func TestServiceEndsOnABeat(t *testing.T) {
	t.Parallel()
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			piece := bytes.Repeat([]byte{'x'}, 100)
			cc := serveCache(t, node.ServiceConfig{Cache: cacheFunc(func(context.Context, cache.Request) (*cache.Object, error) {
				return &cache.Object{Size: -1, Source: cache.Upstream, Body: &stutter{[][]byte{piece}, wire.Heartbeat, io.EOF}}, nil
			})})
			got, _, err := fetchWire(t.Context(), cc, cache.Request{Target: fileOf(t, modPath, modVers, target.Zip)}, wire.Options{})
			if err != nil || !bytes.Equal(got, piece) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}
