package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
)

// zipsOf returns n requests for different zips, which one node holds.
func zipsOf(t testing.TB, f *fakeNodes, id string, n int, data []byte) []cache.Request {
	t.Helper()
	var reqs []cache.Request
	for i := range n {
		name := fmt.Sprintf("example.com/m%d/@v/v1.0.0.zip", i)
		f.nodes[id].holds[name] = data
		reqs = append(reqs, request(t, name))
	}
	return reqs
}

// checkSpools holds the gauges against what is wanted.
func checkSpools(t testing.TB, reg prometheus.Gatherer, files int, size int64) {
	t.Helper()
	synctest.Wait()
	if got := valueOf(t, reg, "ringmod_cluster_spools"); got != float64(files) {
		t.Errorf("%v spools, want %d", got, files)
	}
	if got := valueOf(t, reg, "ringmod_cluster_spool_bytes"); got != float64(size) {
		t.Errorf("%v bytes are reserved, want %d", got, size)
	}
}

// valueOf returns the value of a metric, summed up over those whose labels have
// all of these values.
func valueOf(t testing.TB, reg prometheus.Gatherer, name string, labels ...string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			has := map[string]bool{}
			for _, l := range m.GetLabel() {
				has[l.GetValue()] = true
			}
			if !slices.ContainsFunc(labels, func(l string) bool { return !has[l] }) {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func open(t testing.TB, c *cluster.Cluster, req cache.Request) *cache.Object {
	t.Helper()
	obj, err := c.Get(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return obj
}

// share makes c spool what it is asked for next: somebody else has asked a moment
// ago.
func share(t testing.TB, f *fakeNodes, c *cluster.Cluster, reqs ...cache.Request) {
	t.Helper()
	for _, req := range reqs {
		open(t, c, req).Body.Close()
	}
	f.asked()
}

// One stream serves all who ask at the same time, however fast they read.
func TestSpoolIsShared(t *testing.T) {
	t.Parallel()
	data := pattern(400<<10 + 3)
	for _, filled := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newNodes(t, "eu/a/n1")
			f.upstream[zipName] = data
			f.nodes["n1"].delay, f.nodes["n1"].steps = 1500*time.Microsecond, time.Millisecond
			if !filled {
				f.nodes["n1"].holds[zipName] = data
			}
			reg := prometheus.NewRegistry()
			c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Metrics = reg })
			var wait sync.WaitGroup
			for i := range 20 {
				wait.Go(func() {
					time.Sleep(time.Duration(i) * time.Millisecond)
					obj := open(t, c, request(t, zipName))
					defer obj.Body.Close()
					if want := map[bool]cache.Source{true: cache.Inflight, false: cache.Disk}[filled]; i > 0 && obj.Source != want {
						t.Errorf("source %v, want %v", obj.Source, want)
					}
					var got bytes.Buffer
					from := io.Reader(obj.Body)
					if i%2 == 0 {
						from = struct{ io.Reader }{from} // without WriteTo
					}
					buf := make([]byte, 5000+i*1000)
					for {
						n, err := from.Read(buf)
						got.Write(buf[:n])
						if i%3 == 0 {
							time.Sleep(10 * time.Millisecond)
						}
						if err == io.EOF {
							break
						}
						if err != nil {
							t.Error(err)
							break
						}
					}
					if !bytes.Equal(got.Bytes(), data) {
						t.Errorf("client %d got %d bytes", i, got.Len())
					}
				})
			}
			wait.Wait()
			checkAsked(t, f, "n1 fill")
			checkSpools(t, reg, 1, int64(len(data)))
			time.Sleep(11 * time.Second)
			checkSpools(t, reg, 0, 0)
		})
	}
}

// The node is done with when the slowest client has hardly begun.
func TestSlowClientHoldsNothing(t *testing.T) {
	t.Parallel()
	data := pattern(400 << 10)
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.nodes["n1"].holds[zipName] = data
		c := newCluster(t, f, nil)
		share(t, f, c, request(t, zipName))
		var clients []io.ReadCloser
		for range 64 {
			body := open(t, c, request(t, zipName)).Body
			if _, err := io.ReadFull(body, make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			clients = append(clients, body)
		}
		synctest.Wait()
		if n := f.opened(); n != 0 {
			t.Errorf("%d streams are open, want none", n)
		}
		time.Sleep(time.Hour)
		f.change("n1", func(n *fakeNode) { n.fails = unavailable })
		for _, body := range clients {
			if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, data[10:]) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			body.Close()
		}
	})
}

// A spool is cancelled when its last client leaves, and not before.
func TestClientsLeave(t *testing.T) {
	t.Parallel()
	data := pattern(1 << 20)
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.nodes["n1"].holds[zipName], f.nodes["n1"].steps = data, time.Second
		reg := prometheus.NewRegistry()
		c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Metrics = reg })
		share(t, f, c, request(t, zipName))
		ctx, leave := context.WithCancel(t.Context())
		first, err := c.Get(ctx, request(t, zipName))
		if err != nil {
			t.Fatal(err)
		}
		second := open(t, c, request(t, zipName))
		time.Sleep(2500 * time.Millisecond)
		leave()
		if _, err := io.Copy(io.Discard, first.Body); !errors.Is(err, context.Canceled) {
			t.Errorf("who has left: %v", err)
		}
		first.Body.Close()
		checkSpools(t, reg, 1, spoolStep)
		if _, err := io.CopyN(io.Discard, second.Body, 100_000); err != nil {
			t.Errorf("who stays: %v", err)
		}
		if f.opened() != 1 {
			t.Error("the stream was given up while somebody reads")
		}
		second.Body.Close()
		checkSpools(t, reg, 0, 0)
		if f.opened() != 0 {
			t.Error("the stream goes on for nobody")
		}
		f.change("n1", func(n *fakeNode) { n.steps = 0 })
		checkGet(t, c, request(t, zipName), data) // anew
		checkAsked(t, f, "n1 fill", "n1 fill")
	})
	// Nobody waits for the header any more.
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.nodes["n1"].holds[zipName], f.nodes["n1"].delay = data, time.Minute
		c := newCluster(t, f, nil)
		for i := range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i+1)*time.Second)
			defer cancel()
			go func() {
				if _, err := c.Get(ctx, request(t, zipName)); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v", err)
				}
			}()
		}
		time.Sleep(3500 * time.Millisecond)
		start := time.Now()
		checkGet(t, c, request(t, zipName), data)
		if took := time.Since(start); took != time.Minute {
			t.Errorf("took %v: joined what was given up", took)
		}
	})
}

const spoolStep = 4 << 20 // reserved at a time, at least

// A zip that was complete is served for a while without asking anybody.
func TestSpoolIsKept(t *testing.T) {
	t.Parallel()
	data := pattern(1 << 20)
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.nodes["n1"].holds[zipName] = data
		reg := prometheus.NewRegistry()
		c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Metrics = reg })
		share(t, f, c, request(t, zipName))
		checkGet(t, c, request(t, zipName), data)
		for range 5 {
			time.Sleep(9 * time.Second)
			obj := checkGet(t, c, request(t, zipName), data)
			if _, ok := obj.Body.(io.ReadSeeker); !ok || obj.Source != cache.Memory || obj.Size != int64(len(data)) || obj.SHA256 == [32]byte{} {
				t.Errorf("got %+v, whose body is a %T", obj, obj.Body)
			}
		}
		// Who may not fill gets it too, and so does who needs all of it.
		req := request(t, zipName)
		req.Mode, req.Whole = cache.OnlyIfCached, true
		checkGet(t, c, req, data)
		checkAsked(t, f, "n1 fill")
		obj := open(t, c, request(t, zipName))
		checkSpools(t, reg, 1, int64(len(data)))
		time.Sleep(time.Minute) // somebody reads
		checkSpools(t, reg, 1, int64(len(data)))
		if _, err := obj.Body.(io.Seeker).Seek(-5, io.SeekEnd); err != nil {
			t.Error(err)
		}
		if got, err := io.ReadAll(obj.Body); err != nil || !bytes.Equal(got, data[len(data)-5:]) {
			t.Errorf("got %q, %v", got, err)
		}
		obj.Body.Close()
		time.Sleep(11 * time.Second)
		checkSpools(t, reg, 0, 0)
		checkGet(t, c, request(t, zipName), data)
		checkAsked(t, f, "n1 fill")
	})
	// Whoever may fill is not content with what one was told who may not.
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.upstream[zipName] = data
		f.nodes["n1"].delay = time.Second
		c := newCluster(t, f, nil)
		done := make(chan struct{})
		go func() {
			defer close(done)
			req := request(t, zipName)
			req.Mode = cache.OnlyIfCached
			if _, _, err := get(t, c, req); !reasonIs(err, cache.NotCached) {
				t.Errorf("got %v, want NotCached", err)
			}
		}()
		time.Sleep(time.Millisecond)
		checkGet(t, c, request(t, zipName), data)
		<-done
	})
}

// Small zips are not spooled, but asked for once.
func TestSmallZip(t *testing.T) {
	t.Parallel()
	for _, size := range []int{100, 100 << 10, 256 << 10} {
		synctest.Test(t, func(t *testing.T) {
			data := pattern(size)
			f := newNodes(t, "eu/a/n1")
			f.nodes["n1"].holds[zipName], f.nodes["n1"].delay = data, time.Second
			reg := prometheus.NewRegistry()
			c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Metrics = reg })
			var wait sync.WaitGroup
			for range 10 {
				wait.Go(func() {
					obj := checkGet(t, c, request(t, zipName), data)
					if _, ok := obj.Body.(io.ReadSeeker); !ok {
						t.Errorf("the body is a %T, which the gateway does not keep in memory", obj.Body)
					}
				})
			}
			wait.Wait()
			checkAsked(t, f, "n1 fill")
			checkSpools(t, reg, 0, 0)
		})
	}
}

// Who joins a zip that ends in trouble gets a copy that came after all were asked for
// one.
func TestJoinsTrouble(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1", "eu/a/n2", "us/a/u1")
		ranks, data := f.ranks(zipName), pattern(100<<10)
		f.nodes[ranks[0]].delay, f.nodes[ranks[0]].says = 2*time.Second, &cache.Error{Reason: cache.Slow, Source: "upstream"}
		f.nodes["u1"].silent = true
		c := newCluster(t, f, nil)
		var wait sync.WaitGroup
		wait.Go(func() {
			if _, _, err := get(t, c, request(t, zipName)); !reasonIs(err, cache.Slow) {
				t.Errorf("the first: %v, want Slow", err)
			}
		})
		time.Sleep(3 * time.Second) // all have been asked, one may still answer
		f.change(ranks[1], func(n *fakeNode) { n.holds[zipName] = data })
		wait.Go(func() { checkGet(t, c, request(t, zipName), data) })
		wait.Wait()
	})
}
