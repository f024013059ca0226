package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
)

func unspooled(cfg *cluster.Config) { cfg.SpoolLimit = -1 }

// way is how a test's zips get to its clients.
type way struct {
	*testing.T

	change func(*cluster.Config)
}

// bothWays runs test with spools and without.
func bothWays(t *testing.T, test func(way)) {
	t.Helper()
	for name, change := range map[string]func(*cluster.Config){"spooled": nil, "unspooled": unspooled} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { test(way{t, change}) })
		})
	}
}

// A node that dies in mid-body is followed by another at the same byte.
func TestBodyGoesOn(t *testing.T) {
	t.Parallel()
	data := pattern(300<<10 + 7)
	for _, at := range []int64{1, piece, 100_000, int64(len(data)) - 1, int64(len(data))} {
		bothWays(t, func(t way) {
			f, ranks := three(t, zipName, 1)
			for _, id := range ranks {
				f.nodes[id].holds[zipName] = data
			}
			f.nodes[ranks[1]].breakAt = at
			obj := checkGet(t, newCluster(t, f, t.change), request(t, zipName), data)
			if obj.Source != cache.Disk || obj.SHA256 == [32]byte{} {
				t.Errorf("got %+v", obj)
			}
			calls := translate(ranks, f.asked())
			if want := []string{"r1 cached", asked{"r0", cache.AllowFill, at}.String()}; !slices.Equal(calls, want) {
				t.Errorf("asked %q, want %q", calls, want)
			}
		})
	}
}

// Each node may die once; the only one that is left is asked again.
func TestBodyGoesOnAgainAndAgain(t *testing.T) {
	t.Parallel()
	data := pattern(300 << 10)
	bothWays(t, func(t way) {
		f := newNodes(t, "eu/a/n1", "eu/a/n2", "us/a/u1")
		for i, id := range []string{"n1", "n2", "u1"} {
			f.nodes[id].holds[zipName], f.nodes[id].breakAt = data, int64(i+1)*50_000
		}
		time.AfterFunc(20*time.Millisecond, func() { f.change("n1", func(n *fakeNode) { n.breakAt = 0 }) }) // it comes back well
		checkGet(t, newCluster(t, f, t.change), request(t, zipName), data)
	})
	bothWays(t, func(t way) {
		f := newNodes(t, "eu/a/n1")
		f.nodes["n1"].holds[zipName], f.nodes["n1"].breakAt = data, 100_000
		time.AfterFunc(10*time.Millisecond, func() { f.change("n1", func(n *fakeNode) { n.breakAt = 0 }) })
		checkGet(t, newCluster(t, f, t.change), request(t, zipName), data)
		checkAsked(t, f, "n1 fill", "n1 fill@100000")
	})
	bothWays(t, func(t way) { // however often, while it goes on at all
		f := newNodes(t, "eu/a/n1", "eu/a/n2")
		for _, n := range f.nodes {
			n.holds[zipName], n.yields = data, 10_000
		}
		checkGet(t, newCluster(t, f, t.change), request(t, zipName), data)
	})
}

// Nobody who goes on without progress is asked for ever.
func TestBodyGivesUp(t *testing.T) {
	t.Parallel()
	data := pattern(300 << 10)
	bothWays(t, func(t way) {
		f, ranks := three(t, zipName, 1)
		for _, id := range ranks {
			f.nodes[id].holds[zipName], f.nodes[id].breakAt, f.nodes[id].broken = data, 100_000, corrupt
		}
		got, _, err := get(t, newCluster(t, f, t.change), request(t, zipName))
		if !reasonIs(err, cache.Busy) || !errors.Is(err, corrupt) || !bytes.Equal(got, data[:100_000]) {
			t.Errorf("got %d bytes, %v, want 100000 and Busy", len(got), err)
		}
		if n := len(f.asked()); n > 5 {
			t.Errorf("asked %d times", n)
		}
	})
}

// While an object is being filled nobody knows its digest: the next coordinator
// begins anew and must come to the same bytes.
func TestFillGoesOn(t *testing.T) {
	t.Parallel()
	data := pattern(300<<10 + 7)
	for _, unsized := range []bool{false, true} {
		for _, at := range []int64{1, piece, 100_000, int64(len(data)) - 1, int64(len(data))} {
			bothWays(t, func(t way) {
				f, ranks := three(t, zipName, 0)
				f.upstream[zipName] = data
				for _, id := range ranks {
					f.nodes[id].unsized = unsized
				}
				f.nodes[ranks[0]].breakAt = at
				checkGet(t, newCluster(t, f, t.change), request(t, zipName), data)
				if calls := translate(ranks, f.asked()); !slices.Equal(calls, []string{"r0 fill", "r1 fill"}) {
					t.Errorf("asked %q", calls)
				}
				if f.fetched != 2 {
					t.Errorf("fetched %d times, want 2", f.fetched)
				}
			})
		}
	}
}

// What does not begin with the bytes that are out already must not follow them.
func TestOtherBytesAbort(t *testing.T) {
	t.Parallel()
	data := pattern(300 << 10)
	other := bytes.Clone(data)
	other[50_000]++
	for name, second := range map[string][]byte{"other bytes": other, "too short": data[:60_000], "longer": append(bytes.Clone(data), 1)} {
		for _, unsized := range []bool{false, true} {
			if unsized && name == "longer" {
				continue // there is nothing wrong with it
			}
			bothWays(t, func(t way) {
				f, ranks := three(t, zipName, 0)
				f.upstream[zipName] = data
				for _, id := range ranks {
					f.nodes[id].unsized = unsized
				}
				f.nodes[ranks[0]].breakAt, f.nodes[ranks[0]].steps = 100_000, time.Millisecond
				time.AfterFunc(2*time.Millisecond, func() {
					f.mu.Lock()
					defer f.mu.Unlock()
					f.upstream[zipName] = second
				})
				got, _, err := get(t, newCluster(t, f, t.change), request(t, zipName))
				if err == nil || !bytes.Equal(got, data[:100_000]) {
					t.Errorf("%s: got %d bytes, %v, want 100000 and an error", name, len(got), err)
				}
			})
		}
	}
	// The same where the digest is known: whoever has other bytes says so.
	bothWays(t, func(t way) {
		f, ranks := three(t, zipName, 0)
		f.nodes[ranks[0]].holds[zipName], f.nodes[ranks[0]].breakAt = data, 100_000
		f.nodes[ranks[1]].holds[zipName], f.nodes[ranks[2]].holds[zipName] = other, other
		got, _, err := get(t, newCluster(t, f, t.change), request(t, zipName))
		if err == nil || !bytes.Equal(got, data[:100_000]) {
			t.Errorf("got %d bytes, %v, want 100000 and an error", len(got), err)
		}
	})
}

// What the node says of the object in mid-body, and not of itself, is the end.
func TestBodyFailsAsSaid(t *testing.T) {
	t.Parallel()
	data := pattern(300 << 10)
	tests := []struct {
		reason   cache.Reason
		held     bool // else it is being filled
		goesOn   bool
		wantFill bool
	}{
		{cache.Mismatch, false, false, false},
		{cache.Broken, false, false, false},
		{cache.Slow, false, false, false},
		{cache.NotFound, false, false, false},
		{cache.Internal, false, true, true},
		{cache.Busy, false, true, true},
		{cache.Mismatch, true, false, false},
		{cache.Broken, true, true, false},
		{cache.NotCached, true, true, false},
		{cache.Internal, true, true, false},
		{cache.Busy, true, true, false},
	}
	for _, test := range tests {
		bothWays(t, func(t way) {
			f, ranks := three(t, zipName, 0)
			f.upstream[zipName] = data
			f.nodes[ranks[0]].breakAt, f.nodes[ranks[0]].broken = 100_000, said(test.reason)
			if test.held {
				f.nodes[ranks[0]].holds[zipName], f.nodes[ranks[1]].holds[zipName] = data, data
			}
			got, _, err := get(t, newCluster(t, f, t.change), request(t, zipName))
			calls := len(slices.DeleteFunc(f.asked(), func(call string) bool { return strings.HasSuffix(call, " cached") }))
			if test.goesOn && (err != nil || !bytes.Equal(got, data) || calls != 2) {
				t.Errorf("%v, held %t: got %d bytes, %v, asked %d times", test.reason, test.held, len(got), err, calls)
			}
			if !test.goesOn && (!reasonIs(err, test.reason) || len(got) > 100_000 || calls != 1) {
				t.Errorf("%v, held %t: got %d bytes, %v, asked %d times, want that reason", test.reason, test.held, len(got), err, calls)
			}
		})
	}
}

// What is small is read before it is answered, so that nobody sees it break; what
// changes is asked for anew, since every node may have another one.
func TestSmallBodiesDoNotBreak(t *testing.T) {
	t.Parallel()
	data := pattern(300 << 10)
	for name, want := range map[string][]string{
		modName:  {"r0 fill", "r1 fill@100000"},
		listName: {"r0 fill", "r1 fill"},
	} {
		synctest.Test(t, func(t *testing.T) {
			f, ranks := three(t, name, 0)
			for _, id := range ranks {
				f.nodes[id].holds[name] = data
			}
			f.nodes[ranks[0]].breakAt = 100_000
			obj, err := newCluster(t, f, nil).Get(t.Context(), request(t, name))
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := obj.Body.(io.ReadSeeker); !ok {
				t.Errorf("%s: the body is a %T, which cannot seek", name, obj.Body)
			}
			if got, err := io.ReadAll(obj.Body); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: got %d bytes, %v", name, len(got), err)
			}
			if err := obj.Body.Close(); err != nil {
				t.Error(err)
			}
			if calls := translate(ranks, f.asked()); !slices.Equal(calls, want) && name != modName {
				t.Errorf("%s: asked %q, want %q", name, calls, want)
			}
		})
	}
	// What is too large for memory streams.
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.nodes["n1"].holds[listName] = pattern(3 << 20)
		obj := checkGet(t, newCluster(t, f, nil), request(t, listName), pattern(3<<20))
		if obj.Size != 3<<20 {
			t.Errorf("got %+v", obj)
		}
	})
}

// TestSeek reads here and there in a zip that nobody has spooled.
func TestSeek(t *testing.T) {
	t.Parallel()
	data := pattern(300 << 10)
	synctest.Test(t, func(t *testing.T) {
		f, ranks := three(t, zipName, 1)
		for _, id := range ranks {
			f.nodes[id].holds[zipName] = data
		}
		req := request(t, zipName)
		req.Whole = true
		obj, err := newCluster(t, f, nil).Get(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		defer obj.Body.Close()
		body := obj.Body.(io.ReadSeeker)
		if n, err := body.Seek(0, io.SeekEnd); n != int64(len(data)) || err != nil {
			t.Errorf("the end is at %d, %v", n, err)
		}
		if n, err := body.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %d, %v", n, err)
		}
		if _, err := body.Seek(-1, io.SeekStart); err == nil {
			t.Error("could seek before the start")
		}
		checkAsked(t, f, ranks[1]+" cached") // nothing yet that costs anything
		for _, from := range []int64{0, 200_000, 100_000} {
			if _, err := body.Seek(from, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 50_000)
			if _, err := io.ReadFull(body, got); err != nil || !bytes.Equal(got, data[from:from+50_000]) {
				t.Errorf("from %d: %v", from, err)
			}
		}
		calls := f.asked()
		for i, want := range []string{"@200000", "@100000"} {
			if i >= len(calls) || !strings.HasSuffix(calls[i], want) {
				t.Errorf("asked %q, want the bytes at 200000 and 100000", calls)
			}
		}
		// It breaks like others, and goes on like others.
		f.change(ranks[0], func(n *fakeNode) { n.breakAt = 20_000 })
		f.change(ranks[1], func(n *fakeNode) { n.breakAt = 20_000 })
		if _, err := body.Seek(10_000, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 5_000)
		if _, err := io.ReadFull(body, got); err != nil || !bytes.Equal(got, data[10_000:15_000]) {
			t.Errorf("from 10000: %v", err)
		}
		f.change(ranks[0], func(n *fakeNode) { n.breakAt = 0 })
		f.change(ranks[1], func(n *fakeNode) { n.breakAt = 0 })
		got = make([]byte, 50_000)
		if _, err := io.ReadFull(body, got); err != nil || !bytes.Equal(got, data[15_000:65_000]) {
			t.Errorf("from 15000: %v", err)
		}
	})
}

// A client that leaves while another node is looked for ends that too.
func TestCloseDuringTakeover(t *testing.T) {
	t.Parallel()
	data := pattern(300 << 10)
	bothWays(t, func(t way) {
		f, ranks := three(t, zipName, 1)
		for _, id := range ranks {
			f.nodes[id].holds[zipName], f.nodes[id].silent = data, id != ranks[1]
		}
		f.nodes[ranks[1]].breakAt = 100_000
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		obj, err := newCluster(t, f, t.change).Get(ctx, request(t, zipName))
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		n, err := io.Copy(io.Discard, obj.Body)
		if !errors.Is(err, context.Canceled) || n > 100_000 {
			t.Errorf("got %d bytes, %v, want context.Canceled", n, err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %v, want 1s", took)
		}
		obj.Body.Close()
	})
}
