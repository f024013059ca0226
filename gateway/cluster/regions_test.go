package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
)

func TestOtherRegions(t *testing.T) {
	t.Parallel()
	data := pattern(300 << 10)
	tests := []struct {
		name   string
		target string
		setup  func(f *fakeNodes)
		source cache.Source
		want   cache.Reason
		took   time.Duration
		ok     bool
	}{
		{"our region is dead, another has it", zipName, func(f *fakeNodes) {
			f.nodes["e1"].fails, f.nodes["u1"].holds[zipName] = unavailable, data
		}, cache.Region, 0, 0, true},
		{"our region is down, another fills", zipName, func(f *fakeNodes) {
			f.nodes["e1"].down = true
		}, cache.Upstream, 0, 0, true},
		{"the nearest first", zipName, func(f *fakeNodes) {
			f.nodes["e1"].down, f.nodes["u1"].fails = true, said(cache.Internal)
			f.nodes["a1"].holds[zipName] = data
		}, cache.Region, 0, 0, true},
		{"upstream has lost it, another region has not", zipName, func(f *fakeNodes) {
			f.nodes["e1"].says, f.nodes["a1"].holds[zipName] = said(cache.NotFound), data
		}, cache.Region, 0, 0, true},
		{"upstream is broken, another region has it", modName, func(f *fakeNodes) {
			f.nodes["e1"].says, f.nodes["a1"].holds[modName], f.nodes["a1"].delay = said(cache.Broken), data, time.Second
		}, cache.Region, 0, time.Second, true},
		{"upstream is broken, the others are silent", modName, func(f *fakeNodes) {
			f.nodes["e1"].says, f.nodes["a1"].silent, f.nodes["u1"].silent = said(cache.Broken), true, true
		}, 0, cache.Broken, 2 * time.Second, false},
		{"upstream is broken, nobody has it", modName, func(f *fakeNodes) {
			f.nodes["e1"].says, f.nodes["u1"].fails = said(cache.Slow), unavailable
		}, 0, cache.Slow, 0, false},
		{"another region says no while a third has it", modName, func(f *fakeNodes) {
			f.nodes["e1"].fails, f.nodes["u1"].says, f.nodes["a1"].holds[modName] = unavailable, said(cache.Gone), data
		}, cache.Region, 0, 0, true},
		{"an absent list is absent", listName, func(f *fakeNodes) {
			f.nodes["e1"].says, f.nodes["a1"].holds[listName] = said(cache.NotFound), data
		}, 0, cache.NotFound, 0, false},
		{"the youngest list", listName, func(f *fakeNodes) {
			f.nodes["e1"].says = said(cache.Broken)
			f.nodes["u1"].holds[listName], f.nodes["u1"].age = data[:100], time.Hour
			f.nodes["a1"].holds[listName], f.nodes["a1"].age, f.nodes["a1"].delay = data, time.Minute, time.Second
		}, cache.Region, 0, time.Second, true},
		{"an older list that comes later", listName, func(f *fakeNodes) {
			f.nodes["e1"].says = said(cache.Broken)
			f.nodes["u1"].holds[listName], f.nodes["u1"].age = data, time.Minute
			f.nodes["a1"].holds[listName], f.nodes["a1"].age, f.nodes["a1"].delay = data[:100], time.Hour, time.Second
		}, cache.Region, 0, time.Second, true},
		{"a list that was put together comes later", listName, func(f *fakeNodes) {
			f.nodes["e1"].says = said(cache.Broken)
			f.nodes["u1"].holds[listName], f.nodes["u1"].age = data, time.Hour
			f.nodes["a1"].holds[listName], f.nodes["a1"].undated, f.nodes["a1"].delay = data[:100], true, time.Second
		}, cache.Region, 0, time.Second, true},
		{"the youngest list that comes in time", listName, func(f *fakeNodes) {
			f.nodes["e1"].says = said(cache.Busy)
			f.nodes["e1"].fails = said(cache.Broken)
			f.nodes["u1"].holds[listName], f.nodes["u1"].age = data, time.Hour
			f.nodes["a1"].holds[listName], f.nodes["a1"].age, f.nodes["a1"].delay = data[:100], time.Minute, time.Minute
		}, cache.Region, 0, 2 * time.Second, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newNodes(t, "eu/a/e1", "us/a/u1", "asia/a/a1")
				f.nodes["u1"].stats.RTT, f.nodes["a1"].stats.RTT = 80*time.Millisecond, 200*time.Millisecond
				f.upstream[test.target] = data
				test.setup(f)
				start := time.Now()
				got, obj, err := get(t, newCluster(t, f, nil), request(t, test.target))
				if test.ok && (err != nil || !bytes.Equal(got, data) || obj.Source != test.source) {
					t.Errorf("got %d bytes, %+v, %v, want source %v", len(got), obj, err, test.source)
				}
				if !test.ok && !reasonIs(err, test.want) {
					t.Errorf("got %v, want %v", err, test.want)
				}
				if took := time.Since(start); took != test.took {
					t.Errorf("took %v, want %v", took, test.took)
				}
			})
		})
	}
}

// What a coordinator says of upstream in the middle of a fill is no reason to fail
// either while another region has a copy: also when upstream has announced another
// size, as far as what is answered was held back.
func TestCopiesAfterHalfAFill(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		size  int  // of the object
		other bool // upstream sends something shorter
		at    int64
		ok    bool
	}{
		"small, at its first byte": {1000, false, 1, true},
		"small, of another size":   {200 << 10, true, 100_000, true},
		"large":                    {300 << 10, false, 100_000, true},
		"large, at its last byte":  {300 << 10, false, 300<<10 - 1, true},
		"large, of another size":   {300 << 10, true, 100_000, false},
		"large, of other bytes":    {300 << 10, false, -100_000, false},
	} {
		for _, reason := range []cache.Reason{cache.Broken, cache.Slow, cache.Mismatch, cache.NotFound} {
			bothWays(t, func(t way) {
				data := pattern(tt.size)
				f := newNodes(t, "eu/a/e1", "us/a/u1", "asia/a/a1")
				f.nodes["a1"].holds[zipName] = data
				e1 := f.nodes["e1"]
				e1.breakAt, e1.broken = tt.at, said(reason)
				f.upstream[zipName] = data
				if tt.other {
					f.upstream[zipName] = data[:len(data)-10]
				}
				if tt.at < 0 {
					f.upstream[zipName], e1.breakAt = append([]byte{1}, data[1:]...), -tt.at
				}
				got, _, err := get(t, newCluster(t, f, t.change), request(t, zipName))
				if tt.ok && (err != nil || !bytes.Equal(got, data)) {
					t.Errorf("%s, %v: got %d bytes, %v, want all", name, reason, len(got), err)
				}
				if !tt.ok && !reasonIs(err, reason) {
					t.Errorf("%s, %v: got %v", name, reason, err)
				}
			})
		}
	}
}

// Nor is a node whose disk fails under a fill of what upstream sends wrong.
func TestCopyAfterAFillOfAFailingNode(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t way) {
		data := pattern(1000)
		f := newNodes(t, "eu/a/e1", "us/a/u1")
		f.nodes["u1"].holds[zipName] = data
		f.upstream[zipName] = data[:900]
		f.nodes["e1"].breakAt, f.nodes["e1"].broken = 1, said(cache.Internal)
		got, _, err := get(t, newCluster(t, f, t.change), request(t, zipName))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("got %d bytes, %v, want all of the copy", len(got), err)
		}
	})
}

// fakeUpstream is the last resort.
type fakeUpstream struct {
	objects map[string][]byte
	asked   int
	panics  bool
	short   bool // bodies end before they should
}

func (u *fakeUpstream) Get(_ context.Context, req cache.Request) (*cache.Object, error) {
	u.asked++
	data, ok := u.objects[req.Target.String()]
	switch {
	case u.panics:
		panic("upstream")
	case !ok:
		return nil, said(cache.NotFound)
	}
	body := data
	if u.short {
		body = data[:len(data)-1]
	}
	return &cache.Object{Size: int64(len(data)), Source: cache.Upstream, Body: io.NopCloser(bytes.NewReader(body))}, nil
}

func TestLastResort(t *testing.T) {
	t.Parallel()
	data := pattern(300 << 10)
	tests := []struct {
		name  string
		req   cache.Request
		setup func(f *fakeNodes)
		want  cache.Reason
		ok    bool
		asked int
	}{
		{"zip", request(t, zipName), func(*fakeNodes) {}, 0, true, 1},
		{"list", request(t, listName), func(*fakeNodes) {}, 0, true, 1},
		{"absent", request(t, modName), func(*fakeNodes) {}, cache.NotFound, false, 1},
		{"private", request(t, "corp.example.com/x/@v/v1.0.0.zip"), func(*fakeNodes) {}, cache.Busy, false, 0},
		{"private lookup", request(t, "sumdb/sum.golang.org/lookup/corp.example.com/x@v1.0.0"), func(*fakeNodes) {}, cache.Busy, false, 0},
		{"no fill", cache.Request{Target: mustParse(t, zipName), Mode: cache.OnlyIfCached}, func(*fakeNodes) {}, cache.Busy, false, 0},
		{"busy is not dead", request(t, zipName), func(f *fakeNodes) { f.nodes["n1"].fails = said(cache.Busy) }, cache.Busy, false, 0},
		{"somebody answers", request(t, zipName), func(f *fakeNodes) { f.nodes["n1"].fails = said(cache.Slow) }, cache.Slow, false, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newNodes(t, "eu/a/n1", "eu/a/n2", "us/a/u1")
				for _, n := range f.nodes {
					n.fails = unavailable
				}
				for _, id := range f.ranks(test.req.Target.String())[:1] { // so that it is asked with leave to fill
					f.nodes["n1"], f.nodes[id] = f.nodes[id], f.nodes["n1"]
				}
				u := &fakeUpstream{objects: map[string][]byte{zipName: data, listName: data, "corp.example.com/x/@v/v1.0.0.zip": data}}
				test.setup(f)
				c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Upstream, cfg.Private = u, "corp.example.com" })
				got, obj, err := get(t, c, test.req)
				if test.ok && (err != nil || !bytes.Equal(got, data) || obj.Source != cache.Upstream) || !test.ok && !reasonIs(err, test.want) {
					t.Errorf("got %d bytes, %v, want ok %t, %v", len(got), err, test.ok, test.want)
				}
				if u.asked != test.asked {
					t.Errorf("upstream was asked %d times, want %d", u.asked, test.asked)
				}
				if !test.ok {
					return
				}
				_, _, err = get(t, c, test.req)
				if immutable := test.req.Target.Kind.Immutable(); err != nil || u.asked != 2 || obj.Unverified != immutable {
					t.Errorf("asked again: %v, by upstream %d times, unverified %t: want nothing kept", err, u.asked, obj.Unverified)
				}
			})
		})
	}
}

// What ends too early never looks whole.
func TestShortLastResort(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t way) {
		f := newNodes(t, "eu/a/n1")
		f.nodes["n1"].fails = unavailable
		u := &fakeUpstream{objects: map[string][]byte{zipName: pattern(300 << 10), modName: pattern(100)}, short: true}
		c := newCluster(t, f, func(cfg *cluster.Config) {
			cfg.Upstream = u
			if t.change != nil {
				t.change(cfg)
			}
		})
		for _, name := range []string{zipName, modName} {
			if got, _, err := get(t, c, request(t, name)); err == nil {
				t.Errorf("%s: got %d bytes and no error", name, len(got))
			}
		}
	})
}

func TestNobody(t *testing.T) {
	t.Parallel()
	text := func(err error) string {
		e, _ := errors.AsType[*cache.Error](err)
		if e == nil || e.Reason != cache.Busy || e.RetryAfter == 0 {
			t.Errorf("got %v, want Busy with a pause", err)
			return ""
		}
		return e.Text
	}
	for _, name := range []string{zipName, modName, listName} {
		synctest.Test(t, func(t *testing.T) {
			f := newNodes(t, "eu/a/n1", "eu/a/n2", "us/a/u1")
			for _, n := range f.nodes {
				n.fails, n.down = unavailable, true
			}
			c := newCluster(t, f, nil)
			_, _, err := get(t, c, request(t, name))
			if got, want := text(err), "no node of cluster test can be reached (3 known, 0 up)"; got != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
			if !errors.Is(err, unavailable) {
				t.Errorf("%s: %v does not tell why", name, err)
			}
			if got, want := text(c.Ready()), "no node of cluster test can be reached (3 known, 0 up)"; got != want {
				t.Errorf("ready: got %q, want %q", got, want)
			}
			f.change("u1", func(n *fakeNode) { n.down = false })
			if err := c.Ready(); err != nil {
				t.Errorf("ready: got %v with a node that is up", err)
			}
			_, _, err = get(t, c, request(t, name))
			if got, want := text(err), "no node of cluster test can answer (3 known, 1 up)"; got != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		})
		synctest.Test(t, func(t *testing.T) {
			u := &fakeUpstream{objects: map[string][]byte{name: []byte("x")}}
			for what, f := range map[string]*fakeNodes{"no view": {t: t}, "an empty view": newNodes(t)} {
				c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Upstream = u })
				_, _, err := get(t, c, request(t, name))
				if got := text(err); !strings.Contains(got, "--join") || text(c.Ready()) != got {
					t.Errorf("%s: got %q, ready %v", what, got, c.Ready())
				}
			}
			if u.asked > 0 {
				t.Error("upstream was asked by a gateway that knows no node")
			}
		})
	}
}

// A node that is away for a moment is waited for.
func TestPersistence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.nodes["n1"].holds[modName] = []byte("m")
		f.nodes["n1"].fails = unavailable
		time.AfterFunc(200*time.Millisecond, func() { f.change("n1", func(n *fakeNode) { n.fails = nil }) })
		start := time.Now()
		checkGet(t, newCluster(t, f, nil), request(t, modName), []byte("m"))
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// What was said before nobody could be reached counts no more when somebody can.
func TestPersistenceAsksAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, ranks := three(t, modName, 1)
		f.upstream[modName] = []byte("m")
		for _, id := range ranks[:2] { // who coordinates is dead, who is near has nothing and dies then
			f.nodes[id].fails = unavailable
		}
		f.nodes[ranks[2]].down = true
		f.nodes[ranks[1]].fails, f.nodes[ranks[1]].says = nil, said(cache.Internal)
		time.AfterFunc(10*time.Millisecond, func() { f.change(ranks[1], func(n *fakeNode) { n.says = nil }) })
		checkGet(t, newCluster(t, f, nil), request(t, modName), []byte("m"))
	})
}

// While nobody is there, not everybody waits for that to change.
func TestOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.nodes["n1"].holds[modName] = []byte("m")
		away := func(err error) { f.change("n1", func(n *fakeNode) { n.fails = err }) }
		c := newCluster(t, f, nil)
		waits := func(want bool) {
			t.Helper()
			start := time.Now()
			if _, _, err := get(t, c, request(t, modName)); !reasonIs(err, cache.Busy) {
				t.Errorf("got %v, want Busy", err)
			}
			if took := time.Since(start); (took > 0) != want || took > 2*time.Second {
				t.Errorf("took %v, want a wait %t", took, want)
			}
		}
		away(unavailable)
		waits(true)
		for range 30 {
			waits(false)
			time.Sleep(time.Second)
		}
		time.Sleep(10 * time.Second)
		waits(true)
		waits(false)
		away(nil)
		checkGet(t, c, request(t, modName), []byte("m"))
		away(unavailable)
		waits(true)
	})
}

// A caller that leaves gets its own error, and nobody is asked on its behalf any
// more.
func TestCallerLeaves(t *testing.T) {
	t.Parallel()
	for _, name := range []string{zipName, modName, listName} {
		for _, whole := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				f := newNodes(t, "eu/a/n1", "eu/a/n2")
				for _, n := range f.nodes {
					n.silent = true
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				req := request(t, name)
				req.Whole = whole
				if obj, err := newCluster(t, f, nil).Get(ctx, req); !errors.Is(err, context.DeadlineExceeded) || obj != nil {
					t.Errorf("%s: got %v, %v, want the caller's deadline", name, obj, err)
				}
				synctest.Wait()
				before := len(f.asked())
				time.Sleep(time.Minute)
				if after := len(f.asked()); before == 0 || after != 0 {
					t.Errorf("%s: asked %d times, then %d times more", name, before, after)
				}
			})
		}
	}
}

// What is small has a limit in all, and one that a slow upstream does not meet.
func TestSmallLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.upstream[modName] = []byte("m")
		f.nodes["n1"].delay = 100 * time.Second
		checkGet(t, newCluster(t, f, nil), request(t, modName), []byte("m"))
	})
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.upstream[modName] = []byte("m")
		f.nodes["n1"].delay = 200 * time.Second
		if _, _, err := get(t, newCluster(t, f, nil), request(t, modName)); !reasonIs(err, cache.Slow) {
			t.Errorf("got %v, want Slow", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.upstream[zipName] = []byte("z")
		f.nodes["n1"].delay = time.Hour
		checkGet(t, newCluster(t, f, nil), request(t, zipName), []byte("z"))
	})
}

// A panic in there ends one call.
func TestPanic(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Peers = panicking{f} })
		for _, name := range []string{modName, zipName} {
			if _, _, err := get(t, c, request(t, name)); !reasonIs(err, cache.Busy) {
				t.Errorf("%s: got %v, want Busy", name, err)
			}
		}
		c = newCluster(t, f, func(cfg *cluster.Config) { cfg.Peers, cfg.Upstream = panicking{f}, &fakeUpstream{panics: true} })
		if _, _, err := get(t, c, request(t, zipName)); err == nil {
			t.Error("got no error from what panics")
		}
	})
}

type panicking struct{ *fakeNodes }

func (panicking) Get(context.Context, string, cache.Request, wire.Options) (*cache.Object, error) {
	panic("peers")
}
