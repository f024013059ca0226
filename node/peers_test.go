package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
)

const (
	modName  = "example.com/m/@v/v1.0.0.mod"
	zipName  = "example.com/m/@v/v1.0.0.zip"
	infoName = "example.com/m/@v/v1.0.0.info"

	modBody  = "module example.com/m\n"
	infoBody = `{"Version":"v1.0.0"}`
)

// What a coordinator gives is stored with the hash that it tells, and is not
// fetched from upstream.
func TestFillByWayOfTheCoordinator(t *testing.T) {
	t.Parallel()
	zip, h1 := zipOf(t, 1<<20)
	for _, test := range []struct {
		name, target string
		data         []byte
		h1           string
	}{
		{"zip", zipName, zip, h1}, {"mod", modName, []byte(modBody), ""}, {"info", infoName, []byte(infoBody), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				up := newScripted(nil)
				peers := newPeers(t, "far1", "far2", "self")
				peers.home = func(_ context.Context, _ string, req cache.Request) (*cache.Object, error) {
					time.Sleep(time.Second)
					if req.Target.String() != test.target {
						t.Errorf("asked for %v", req.Target)
					}
					return filling(test.data, -1, io.EOF, test.h1), nil
				}
				n, mem := newNode(t, node.Config{Upstream: up, Peers: peers})
				var callers sync.WaitGroup
				for range 50 {
					callers.Go(func() {
						got, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, test.target)})
						if err != nil || !bytes.Equal(got, test.data) {
							t.Errorf("read %d bytes, %v, want %d", len(got), err, len(test.data))
						}
					})
				}
				callers.Wait()
				sameStrings(t, "asked", peers.requests(), "far1")
				if got := up.count(test.target); got != 0 {
					t.Errorf("%d upstream requests, want 0", got)
				}
				time.Sleep(time.Minute)
				entry, err := mem.Stat(test.target)
				if err != nil || (test.h1 != "" && entry.H1 != test.h1) {
					t.Errorf("stored %+v, %v, want h1 %q", entry, err, test.h1)
				}
			})
		})
	}
}

// Who is asked next, and what is the answer, after a coordinator has failed.
func TestAfterACoordinator(t *testing.T) {
	t.Parallel()
	said := func(reason cache.Reason, source string) error {
		return &cache.Error{Reason: reason, Source: source, Text: "x"}
	}
	for _, test := range []struct {
		name   string
		route  []string
		err    error // of the first
		asked  []string
		up     int
		reason cache.Reason // of the answer; Internal: there is one
	}{
		{"ok", []string{"far1", "far2", "self"}, nil, []string{"far1"}, 0, 0},
		{"silent", []string{"far1", "far2", "self"}, trouble("far1"), []string{"far1", "far2"}, 0, 0},
		{"silent, the last", []string{"far1", "self", "far2"}, trouble("far1"), []string{"far1"}, 1, 0},
		{"silent, nobody else", []string{"far1"}, trouble("far1"), []string{"far1"}, 1, 0},
		{"overloaded", []string{"near1", "near2"}, &wire.PeerError{Code: codes.ResourceExhausted, Err: errors.New("x")}, []string{"near1", "near2"}, 0, 0},
		{"busy", []string{"far1", "far2"}, said(cache.Busy, "far1"), []string{"far1", "far2"}, 0, 0},
		{"upstream is busy", []string{"far1", "far2"}, said(cache.Busy, "proxy.example"), []string{"far1"}, 0, cache.Busy},
		{"offline", []string{"far1", "far2"}, said(cache.NotCached, "far1"), []string{"far1", "far2"}, 0, 0},
		{"its own fault", []string{"far1", "far2"}, said(cache.Internal, "far1"), []string{"far1", "far2"}, 0, 0},
		{"absent", []string{"far1", "far2"}, said(cache.NotFound, "proxy.example"), []string{"far1"}, 0, cache.NotFound},
		{"gone", []string{"far1", "far2"}, said(cache.Gone, "proxy.example"), []string{"far1"}, 0, cache.Gone},
		{"denied", []string{"far1", "far2"}, said(cache.Denied, "proxy.example"), []string{"far1"}, 0, cache.Denied},
		{"contradicted", []string{"far1", "far2"}, said(cache.Mismatch, "sum.example"), []string{"far1"}, 0, cache.Mismatch},
		{"slow", []string{"far1", "far2"}, said(cache.Slow, "proxy.example"), []string{"far1"}, 0, cache.Slow},
		{"broken, seen from far away", []string{"far1", "far2"}, said(cache.Broken, "proxy.example"), []string{"far1"}, 1, 0},
		{"broken, seen from here", []string{"near1", "near2"}, said(cache.Broken, "proxy.example"), []string{"near1"}, 0, cache.Broken},
		{"this node", []string{"self", "far1"}, nil, nil, 1, 0},
		{"nobody", nil, nil, nil, 1, 0},
	} {
		for _, name := range []string{modName, zipName, listName} {
			t.Run(test.name+" "+name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					zip, h1 := zipOf(t, 0)
					bodies := map[string]string{modName: modBody, zipName: string(zip), listName: "v1.0.0\n"}
					up := newScripted(bodies)
					peers := newPeers(t, test.route...)
					peers.home = func(_ context.Context, id string, _ cache.Request) (*cache.Object, error) {
						if id == test.route[0] && test.err != nil {
							return nil, test.err
						}
						return heldBy([]byte(bodies[name]), map[string]string{zipName: h1}[name]), nil
					}
					n, _ := newNode(t, node.Config{Upstream: up, Peers: peers})
					got, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, name)})
					if test.reason == 0 && (err != nil || string(got) != bodies[name]) || test.reason != 0 && cache.ReasonOf(err) != test.reason {
						t.Errorf("%d bytes, %v, want reason %v", len(got), err, test.reason)
					}
					sameStrings(t, "asked", peers.requests(), test.asked...)
					if got := up.count(name); got != test.up {
						t.Errorf("%d upstream requests, want %d", got, test.up)
					}
				})
			})
		}
	}
}

// A "no" is believed here as long as there.
func TestAbsenceKeepsItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		peers := newPeers(t, "far1")
		peers.home = func(context.Context, string, cache.Request) (*cache.Object, error) {
			return nil, &cache.Error{Reason: cache.NotFound, Source: "proxy.example", RetryAfter: 20 * time.Second}
		}
		n, _ := newNode(t, node.Config{Upstream: newScripted(nil), Peers: peers})
		for _, step := range []struct {
			wait  time.Duration
			asked int
			left  time.Duration
		}{{0, 1, 20 * time.Second}, {15 * time.Second, 0, 5 * time.Second}, {6 * time.Second, 1, 20 * time.Second}} {
			time.Sleep(step.wait)
			_, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, modName)})
			e, ok := errors.AsType[*cache.Error](err)
			if !ok || e.Reason != cache.NotFound || e.RetryAfter != step.left || len(peers.requests()) != step.asked {
				t.Errorf("after %v: %v, believed for %v, want %v", step.wait, err, e.RetryAfter, step.left)
			}
		}
	})
}

// The copies of the region come first, also when one of them breaks off.
func TestPeekComesFirst(t *testing.T) {
	t.Parallel()
	zip, h1 := zipOf(t, 1<<20)
	for _, breaks := range []int{0, 1, 2, 3} {
		synctest.Test(t, func(t *testing.T) {
			peers := newPeers(t, "far1", "self")
			calls := 0
			peers.peek = func(target.Target) (*cache.Object, error) {
				obj := heldBy(zip, h1)
				if calls++; calls <= breaks {
					obj.Body = &partly{bytes.NewReader(zip[:rand.IntN(len(zip))]), trouble("n2"), "", false}
				}
				return obj, nil
			}
			peers.home = func(context.Context, string, cache.Request) (*cache.Object, error) { return heldBy(zip, h1), nil }
			up := newScripted(nil)
			n, mem := newNode(t, node.Config{Upstream: up, Peers: peers})
			got, obj, err := read(t.Context(), n, cache.Request{Target: mustParse(t, zipName)})
			if err != nil || !bytes.Equal(got, zip) {
				t.Errorf("%d breaks: %d bytes, %v, want %d", breaks, len(got), err, len(zip))
			}
			if breaks == 0 && obj.Source != cache.Peer {
				t.Errorf("source %v, want %v", obj.Source, cache.Peer)
			}
			if asked := len(peers.requests()); asked != breaks/3 || up.count(zipName) != 0 {
				t.Errorf("%d breaks: %d coordinators, %d upstream requests", breaks, asked, up.count(zipName))
			}
			if entry, err := mem.Stat(zipName); err != nil || entry.H1 != h1 {
				t.Errorf("stored %+v, %v", entry, err)
			}
		})
	}
}

// A coordinator that dies in the middle of a zip is replaced, at whatever byte, and
// nobody who reads along notices.
func TestHandOver(t *testing.T) {
	t.Parallel()
	zip, h1 := zipOf(t, 1<<20)
	for range 8 {
		cut := []int{rand.IntN(len(zip) + 1), rand.IntN(len(zip) + 1), rand.IntN(len(zip) + 1)}
		sizes := []int64{-1, int64(len(zip))}
		synctest.Test(t, func(t *testing.T) {
			peers := newPeers(t, "far1", "far2", "far3", "self")
			peers.home = func(_ context.Context, id string, _ cache.Request) (*cache.Object, error) {
				i := int(id[3] - '1')
				obj := filling(zip[:cut[i]], sizes[rand.IntN(2)], trouble(id), h1)
				obj.Body.(*partly).Reader = &slowly{obj.Body.(*partly).Reader}
				return obj, nil
			}
			up := newScripted(map[string]string{zipName: string(zip)})
			n, mem := newNode(t, node.Config{Upstream: up, Peers: peers})
			var callers sync.WaitGroup
			for i := range 4 {
				callers.Go(func() {
					time.Sleep(time.Duration(i) * time.Second)
					got, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, zipName), Whole: i%3 == 0})
					if err != nil || !bytes.Equal(got, zip) {
						t.Errorf("cut at %d: %d bytes, %v, want %d", cut, len(got), err, len(zip))
					}
				})
			}
			callers.Wait()
			sameStrings(t, "asked", peers.requests(), "far1", "far2", "far3")
			if got := up.count(zipName); got != 1 {
				t.Errorf("%d upstream requests, want 1", got)
			}
			if entry, err := mem.Stat(zipName); err != nil || entry.H1 != h1 {
				t.Errorf("stored %+v, %v", entry, err)
			}
		})
	}
}

// slowly yields 64 KiB a second.
type slowly struct{ io.Reader }

func (s *slowly) Read(p []byte) (int, error) {
	time.Sleep(time.Second)
	return s.Reader.Read(p[:min(len(p), 64<<10)])
}

// When who goes on has other bytes, those who have some of the first are cut off,
// and the others get the second zip. No file mixes the two.
func TestHandOverToOtherBytes(t *testing.T) {
	t.Parallel()
	zip, h1 := zipOf(t, 1<<20)
	for name, other := range map[string][]byte{
		"one byte": func() []byte { b := bytes.Clone(zip); b[200<<10] ^= 1; return b }(),
		"longer":   append(bytes.Clone(zip), make([]byte, 100<<10)...),
		"shorter":  zip[:300<<10],
		"nothing":  {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				peers := newPeers(t, "far1", "far2")
				peers.home = func(_ context.Context, id string, _ cache.Request) (*cache.Object, error) {
					obj := filling(zip[:400<<10], int64(len(zip)), trouble(id), "")
					if id == "far2" {
						obj = filling(other, []int64{-1, int64(len(other))}[rand.IntN(2)], io.EOF, h1)
					}
					obj.Body.(*partly).Reader = &slowly{obj.Body.(*partly).Reader}
					return obj, nil
				}
				n, mem := newNode(t, node.Config{Upstream: newScripted(nil), Peers: peers})
				var callers sync.WaitGroup
				callers.Go(func() {
					got, obj, err := read(t.Context(), n, cache.Request{Target: mustParse(t, zipName)})
					if err == nil || len(got) == 0 || len(got) >= int(obj.Size) {
						t.Errorf("who had bytes of the first got %d of %d and %v, want an error", len(got), obj.Size, err)
					}
				})
				callers.Go(func() {
					got, obj, err := read(t.Context(), n, cache.Request{Target: mustParse(t, zipName), Whole: true})
					if err != nil || !bytes.Equal(got, other) || obj.Size != int64(len(other)) {
						t.Errorf("who waited got %d bytes and %v, want %d", len(got), err, len(other))
					}
				})
				callers.Wait()
				if entry, err := mem.Stat(zipName); err != nil || entry.Size != int64(len(other)) {
					t.Errorf("stored %+v, %v, want %d bytes", entry, err, len(other))
				}
			})
		})
	}
}

// A request to coordinate never waits for a fill that waits for somebody else,
// and both fills end well.
func TestCoordinateDoesNotWaitForOthers(t *testing.T) {
	t.Parallel()
	zip, h1 := zipOf(t, 1<<20)
	for _, test := range []struct {
		name string
		data []byte
	}{{zipName, zip}, {modName, []byte(modBody)}, {listName, []byte("v1.0.0\n")}} {
		synctest.Test(t, func(t *testing.T) {
			up := newScripted(map[string]string{test.name: string(test.data)})
			up.delay = time.Second
			peers := newPeers(t, "near1", "self")
			peers.home = func(context.Context, string, cache.Request) (*cache.Object, error) {
				time.Sleep(20 * time.Second)
				return filling(test.data, -1, io.EOF, h1), nil
			}
			n, mem := newNode(t, node.Config{Upstream: up, Peers: peers})
			ask := func(mode cache.Mode, took time.Duration) func() {
				return func() {
					start := time.Now()
					got, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, test.name), Mode: mode})
					if d := time.Since(start); err != nil || !bytes.Equal(got, test.data) || d != took {
						t.Errorf("%s, mode %d: %d bytes, %v after %v, want %v", test.name, mode, len(got), err, d, took)
					}
				}
			}
			var callers sync.WaitGroup
			callers.Go(ask(cache.AllowFill, 20*time.Second))
			synctest.Wait()
			for range 10 {
				callers.Go(ask(cache.Coordinate, time.Second))
			}
			callers.Wait()
			time.Sleep(10 * time.Second)
			if got := up.count(test.name); got != 1 {
				t.Errorf("%s: %d upstream requests, want 1", test.name, got)
			}
			if test.name != listName && !isStored(t, mem, test.name) {
				t.Errorf("%s is not stored", test.name)
			}
		})
	}
}

// Who takes over joins the fill that others have started here meanwhile.
func TestTakeOverJoinsTheDirectFill(t *testing.T) {
	t.Parallel()
	zip, _ := zipOf(t, 1<<20)
	for _, test := range []struct {
		name string
		data []byte
	}{{zipName, zip}, {modName, []byte(modBody)}, {listName, []byte("v1.0.0\n")}} {
		synctest.Test(t, func(t *testing.T) {
			up := newScripted(map[string]string{test.name: string(test.data)})
			up.delay = 10 * time.Second
			peers := newPeers(t, "near1", "self")
			peers.home = func(context.Context, string, cache.Request) (*cache.Object, error) {
				time.Sleep(3 * time.Second)
				return nil, trouble("near1")
			}
			n, _ := newNode(t, node.Config{Upstream: up, Peers: peers})
			var callers sync.WaitGroup
			for _, mode := range []cache.Mode{cache.AllowFill, cache.Coordinate, cache.AllowFill} {
				callers.Go(func() {
					got, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, test.name), Mode: mode})
					if err != nil || !bytes.Equal(got, test.data) {
						t.Errorf("%s, mode %d: %d bytes, %v", test.name, mode, len(got), err)
					}
				})
				synctest.Wait()
			}
			callers.Wait()
			if got := up.count(test.name); got != 1 {
				t.Errorf("%s: %d upstream requests, want 1", test.name, got)
			}
		})
	}
}

// What was passed on is not passed on again.
func TestHopsEnd(t *testing.T) {
	t.Parallel()
	for _, req := range []cache.Request{{Hops: 1}, {Hops: 2}, {Mode: cache.Coordinate}, {Mode: cache.Coordinate, Hops: 1}} {
		for _, name := range []string{modName, listName} {
			peers := newPeers(t, "near1", "far1")
			n, _ := newNode(t, node.Config{Upstream: newScripted(map[string]string{modName: modBody, listName: "v1.0.0\n"}), Peers: peers})
			req.Target = mustParse(t, name)
			if _, _, err := read(t.Context(), n, req); err != nil || len(peers.requests()) != 0 {
				t.Errorf("%+v: %v", req, err)
			}
		}
	}
}

// A node without an upstream gets what it can from the others, and only then says
// that it has not.
func TestOfflineWithPeers(t *testing.T) {
	t.Parallel()
	for _, name := range []string{modName, listName} {
		body := map[string]string{modName: modBody, listName: "v1.0.0\n"}[name]
		for _, test := range []struct {
			name       string
			peek, home bool
		}{{"a copy in the region", true, false}, {"a coordinator", false, true}, {"nobody", false, false}} {
			t.Run(fmt.Sprint(name, " ", test.name), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					up := newScripted(nil)
					up.offline = true
					peers := newPeers(t, "self", "near2", "far1")
					peers.home = func(_ context.Context, id string, _ cache.Request) (*cache.Object, error) {
						if !test.home || id != "far1" {
							return nil, &cache.Error{Reason: cache.NotCached, Source: id}
						}
						return heldBy([]byte(body), ""), nil
					}
					peers.peek = func(target.Target) (*cache.Object, error) {
						if !test.peek {
							return nil, &cache.Error{Reason: cache.NotCached}
						}
						obj := heldBy([]byte(body), "")
						obj.Age = time.Hour
						return obj, nil
					}
					n, _ := newNode(t, node.Config{Upstream: up, Peers: peers})
					got, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, name)})
					if test.peek || test.home {
						if err != nil || string(got) != body {
							t.Errorf("got %q, %v", got, err)
						}
					} else if cache.ReasonOf(err) != cache.NotCached {
						t.Errorf("got %q, %v, want NotCached", got, err)
					}
					if up.count(name) != 0 {
						t.Error("upstream was asked")
					}
				})
			})
		}
	}
}

// The fill that whoever takes over has joined may itself begin anew.
func TestTakeOverOfAFillThatBeginsAnew(t *testing.T) {
	t.Parallel()
	zip, _ := zipOf(t, 1<<20)
	other := bytes.Repeat([]byte{'x'}, 400<<10)
	synctest.Test(t, func(t *testing.T) {
		peers := newPeers(t, "near1", "self")
		peers.home = func(context.Context, string, cache.Request) (*cache.Object, error) { return nil, trouble("near1") }
		calls := 0
		peers.peek = func(target.Target) (*cache.Object, error) {
			if calls++; calls != 2 { // the second is of the fill that was joined
				return nil, &cache.Error{Reason: cache.NotCached}
			}
			obj := filling(other, int64(len(other))+1, trouble("near2"), "")
			obj.Body.(*partly).Reader = &slowly{obj.Body.(*partly).Reader}
			return obj, nil
		}
		up := newScripted(map[string]string{zipName: string(zip)})
		n, _ := newNode(t, node.Config{Upstream: up, Peers: peers})
		got, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, zipName), Whole: true})
		if err != nil || !bytes.Equal(got, zip) || up.count(zipName) != 1 {
			t.Errorf("%d bytes, %v, want %d", len(got), err, len(zip))
		}
	})
}

// The silence of several coordinators does not add up: who has met it looks who is
// there, and never asks two for one object at a time.
func TestSilentCoordinatorsDoNotAddUp(t *testing.T) {
	t.Parallel()
	for _, name := range []string{modName, zipName} {
		synctest.Test(t, func(t *testing.T) {
			zip, h1 := zipOf(t, 0)
			data := map[string][]byte{modName: []byte(modBody), zipName: zip}[name]
			peers := newPeers(t, "far1", "far2", "far3", "far4")
			peers.silent = []string{"far1", "far2", "far3"}
			running := 0
			peers.home = func(_ context.Context, id string, _ cache.Request) (*cache.Object, error) {
				if running++; running > 1 {
					t.Error("two coordinators are asked at a time")
				}
				defer func() { running-- }()
				if id != "far4" {
					time.Sleep(wire.Silence)
					return nil, trouble(id)
				}
				return heldBy(data, map[string]string{zipName: h1}[name]), nil
			}
			up := newScripted(nil)
			n, _ := newNode(t, node.Config{Upstream: up, Peers: peers})
			start := time.Now()
			got, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, name)})
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v, want %d", len(got), err, len(data))
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %v, want one silence and half of one at most", took)
			}
			sameStrings(t, "asked one after the other", peers.requests(), "far1", "far4")
		})
	}
}
