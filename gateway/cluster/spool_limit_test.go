package cluster_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
)

// The limit holds: what is kept makes room, what is read does not, and what has
// no room is passed through.
func TestSpoolLimit(t *testing.T) {
	t.Parallel()
	data := pattern(5 << 20)
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		reqs := zipsOf(t, f, "n1", 4, data)
		reg := prometheus.NewRegistry()
		c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Metrics, cfg.SpoolLimit = reg, 11<<20 })
		share(t, f, c, reqs...)
		for _, req := range reqs[:3] {
			checkGet(t, c, req, data)
			time.Sleep(time.Second)
		}
		checkSpools(t, reg, 2, 10<<20)
		f.asked()
		checkGet(t, c, reqs[1], data)
		checkAsked(t, f) // the first has made room
		first, third := open(t, c, reqs[1]), open(t, c, reqs[2])
		checkGet(t, c, reqs[3], data)
		checkAsked(t, f, "n1 fill", "n1 fill") // the spool had no room, as was found out when its size was known
		checkSpools(t, reg, 2, 10<<20)
		first.Body.Close()
		third.Body.Close()
		checkGet(t, c, reqs[3], data)
		checkSpools(t, reg, 2, 10<<20)
	})
	synctest.Test(t, func(t *testing.T) { // nothing at all
		f := newNodes(t, "eu/a/n1")
		reqs := zipsOf(t, f, "n1", 1, data)
		c := newCluster(t, f, unspooled)
		for range 3 {
			checkGet(t, c, reqs[0], data)
		}
		checkAsked(t, f, "n1 fill", "n1 fill", "n1 fill")
	})
}

// A spool that grows over the limit, because nobody knew its size, leaves its
// clients to themselves.
func TestSpoolIsGivenUp(t *testing.T) {
	t.Parallel()
	data := pattern(5 << 20)
	for _, other := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newNodes(t, "eu/a/n1")
			f.most = 3 // three clients
			f.upstream[zipName] = data
			f.nodes["n1"].unsized = true
			f.nodes["n1"].delay, f.nodes["n1"].steps = time.Millisecond, time.Millisecond
			reg := prometheus.NewRegistry()
			c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Metrics, cfg.SpoolLimit = reg, 5<<20 })
			var wait sync.WaitGroup
			for i := range 3 {
				wait.Go(func() {
					obj := open(t, c, request(t, zipName))
					defer obj.Body.Close()
					var got bytes.Buffer
					var err error
					if i == 0 {
						_, err = io.Copy(&got, struct{ io.Reader }{obj.Body})
					} else {
						_, err = obj.Body.(io.WriterTo).WriteTo(&got)
					}
					if !other && (err != nil || !bytes.Equal(got.Bytes(), data)) {
						t.Errorf("got %d bytes, %v", got.Len(), err)
					}
					if other && (err == nil || !bytes.HasPrefix(data, got.Bytes())) {
						t.Errorf("got %d bytes of two objects, %v", got.Len(), err)
					}
				})
			}
			if other {
				time.AfterFunc(10*time.Millisecond, func() {
					f.change("n1", func(n *fakeNode) {
						changed := bytes.Clone(data)
						changed[5]++
						n.holds[zipName] = changed
					})
				})
			}
			wait.Wait()
			checkSpools(t, reg, 0, 0)
		})
	}
}

// Without a folder zips are passed through, and the folder is tried again later.
func TestNoSpoolFolder(t *testing.T) {
	t.Parallel()
	data := pattern(1 << 20)
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.nodes["n1"].holds[zipName] = data
		reg := prometheus.NewRegistry()
		dir := filepath.Join(t.TempDir(), "missing")
		c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Metrics, cfg.SpoolDir = reg, dir })
		for range 3 {
			checkGet(t, c, request(t, zipName), data)
		}
		checkAsked(t, f, "n1 fill", "n1 fill", "n1 fill", "n1 fill") // the folder was tried once
		checkSpools(t, reg, 0, 0)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(31 * time.Second)
		share(t, f, c, request(t, zipName))
		checkGet(t, c, request(t, zipName), data)
		checkAsked(t, f, "n1 fill")
		checkSpools(t, reg, 1, 1<<20)
		if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
			t.Errorf("spools have names: %v, %v", files, err)
		}
	})
}

// What fails, fails for all who wait, and not for who comes later.
func TestSpoolFails(t *testing.T) {
	t.Parallel()
	data := pattern(1 << 20)
	for _, at := range []int64{0, 500_000, int64(len(data))} {
		synctest.Test(t, func(t *testing.T) {
			f := newNodes(t, "eu/a/n1")
			f.upstream[zipName] = data
			node := f.nodes["n1"]
			node.delay, node.steps, node.breakAt, node.broken = time.Second, time.Millisecond, at, said(cache.Mismatch)
			if at == 0 {
				node.says = said(cache.Mismatch)
			}
			reg := prometheus.NewRegistry()
			c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Metrics = reg })
			var wait sync.WaitGroup
			for range 5 {
				wait.Go(func() {
					got, _, err := get(t, c, request(t, zipName))
					if !reasonIs(err, cache.Mismatch) || len(got) == len(data) || !bytes.HasPrefix(data, got) {
						t.Errorf("broken at %d: got %d bytes, %v, want a mismatch and not all", at, len(got), err)
					}
				})
			}
			wait.Wait()
			if at == 0 { // nobody has received anything: those who joined look for a copy, together
				checkAsked(t, f, "n1 fill", "n1 cached")
			} else {
				checkAsked(t, f, "n1 fill")
			}
			checkSpools(t, reg, 0, 0)
			f.change("n1", func(n *fakeNode) { n.breakAt, n.says = 0, nil })
			checkGet(t, c, request(t, zipName), data)
		})
	}
}

// Who needs all of it waits for the spool that runs, and asks for himself when
// that fails.
func TestWholeWaits(t *testing.T) {
	t.Parallel()
	data := pattern(1 << 20)
	for _, fails := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newNodes(t, "eu/a/n1")
			f.most = 2
			f.upstream[zipName] = data
			f.nodes["n1"].steps = time.Millisecond
			c := newCluster(t, f, nil)
			share(t, f, c, request(t, zipName))
			if fails {
				f.nodes["n1"].breakAt, f.nodes["n1"].broken = 500_000, said(cache.Broken)
			}
			first := open(t, c, request(t, zipName))
			defer first.Body.Close()
			f.change("n1", func(n *fakeNode) { n.breakAt = 0 })
			req := request(t, zipName)
			req.Whole = true
			obj := open(t, c, req)
			defer obj.Body.Close()
			if _, ok := obj.Body.(io.ReadSeeker); !ok || obj.Size != int64(len(data)) {
				t.Errorf("got %+v, whose body is a %T", obj, obj.Body)
			}
			if got, err := io.ReadAll(obj.Body); err != nil || !bytes.Equal(got, data) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			if got := len(f.asked()); got != map[bool]int{false: 1, true: 2}[fails] {
				t.Errorf("asked %d times", got)
			}
		})
	}
}

// Run gives everything back, and what comes after is passed through.
func TestRun(t *testing.T) {
	t.Parallel()
	data := pattern(1 << 20)
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		reqs := zipsOf(t, f, "n1", 3, data)
		f.nodes["n1"].steps = time.Millisecond
		reg := prometheus.NewRegistry()
		c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Metrics = reg })
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.Run(ctx) }()
		share(t, f, c, reqs...)
		checkGet(t, c, reqs[0], data)
		running := open(t, c, reqs[1])
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if _, err := io.Copy(io.Discard, running.Body); err == nil {
			t.Error("a spool that was ended looks whole")
		}
		running.Body.Close()
		checkSpools(t, reg, 0, 0)
		checkGet(t, c, reqs[2], data)
		checkSpools(t, reg, 0, 0)
	})
}

// TestMany is for the race detector: clients that come, read and leave, over
// nodes that die.
func TestMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1", "eu/a/n2", "eu/b/n3")
		f.most = 1000
		large, small := pattern(270<<10), pattern(3000)
		var reqs []cache.Request
		for _, id := range []string{"n1", "n2", "n3"} {
			reqs = zipsOf(t, f, id, 10, large)
			f.nodes[id].holds[modName], f.nodes[id].holds[listName] = small, small
			f.nodes[id].steps = time.Millisecond
		}
		reqs = append(reqs, request(t, modName), request(t, listName))
		c := newCluster(t, f, func(cfg *cluster.Config) { cfg.SpoolLimit = 38 << 20 })
		var wait sync.WaitGroup
		for i := range 1000 {
			wait.Go(func() {
				time.Sleep(time.Duration(i%50) * time.Millisecond)
				req := reqs[i%len(reqs)]
				req.Whole = i%7 == 0
				obj, err := c.Get(t.Context(), req)
				if err != nil {
					t.Error(err)
					return
				}
				defer obj.Body.Close()
				if i%5 == 0 {
					_, _ = io.CopyN(io.Discard, obj.Body, 1000)
					return
				}
				want := small
				if i%len(reqs) < 10 {
					want = large
				}
				if got, err := io.ReadAll(obj.Body); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: got %d bytes, %v", req.Target, len(got), err)
				}
			})
		}
		for i := range 20 {
			id := []string{"n1", "n2", "n3"}[i%3]
			f.change(id, func(n *fakeNode) { n.breakAt = 100_000 })
			time.Sleep(5 * time.Millisecond)
			f.change(id, func(n *fakeNode) { n.breakAt = 0 })
		}
		wait.Wait()
	})
}

// From a spool the kernel can copy: what is written is a file and not bytes.
func TestSpoolIsAFile(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("descriptors are opened again through /proc")
	}
	data := pattern(1 << 20)
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.nodes["n1"].holds[zipName] = data
		c := newCluster(t, f, nil)
		share(t, f, c, request(t, zipName))
		for range 2 { // as it comes, and when it is there
			obj := open(t, c, request(t, zipName))
			to := &fileTaker{t: t}
			if _, err := obj.Body.(io.WriterTo).WriteTo(to); err != nil || !bytes.Equal(to.got.Bytes(), data) {
				t.Errorf("got %d bytes, %v", to.got.Len(), err)
			}
			obj.Body.Close()
		}
	})
}

// fileTaker is a writer that wants to be given files, as a TCP connection does.
type fileTaker struct {
	t   *testing.T
	got bytes.Buffer
}

func (w *fileTaker) Write(p []byte) (int, error) {
	w.t.Errorf("%d bytes were written", len(p))
	return w.got.Write(p)
}

func (w *fileTaker) ReadFrom(r io.Reader) (int64, error) {
	limited, ok := r.(*io.LimitedReader)
	if !ok {
		w.t.Fatalf("got a %T, want an *io.LimitedReader of a file", r)
	}
	if _, ok := limited.R.(*os.File); !ok {
		w.t.Errorf("got a %T, want an *os.File", limited.R)
	}
	return w.got.ReadFrom(r)
}
