package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
)

// Who is alone with a zip reads the stream himself; a second client makes a spool,
// and so does one who comes within 10 s.
func TestAloneWithAZip(t *testing.T) {
	t.Parallel()
	data := pattern(1 << 20)
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.nodes["n1"].holds[zipName] = data
		reg := prometheus.NewRegistry()
		c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Metrics = reg })
		first := open(t, c, request(t, zipName))
		defer first.Body.Close()
		if _, err := io.ReadFull(first.Body, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		checkSpools(t, reg, 0, 0)
		if f.opened() != 1 || f.narrow != 1 || first.Source != cache.Disk {
			t.Errorf("%d streams are open, %d of them narrow, source %v; want one, narrow, from disk", f.opened(), f.narrow, first.Source)
		}
		for range 3 {
			time.Sleep(time.Minute)
			checkGet(t, c, request(t, zipName), data)
			checkSpools(t, reg, 1, int64(len(data)))
		}
		checkAsked(t, f, "n1 fill", "n1 fill", "n1 fill", "n1 fill")
		if f.narrow != 1 {
			t.Errorf("%d streams were narrow, want but the first", f.narrow)
		}
		var got bytes.Buffer
		if _, err := first.Body.(io.WriterTo).WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), data[10:]) {
			t.Errorf("got %d bytes, %v", got.Len(), err)
		}
		first.Body.Close()
		time.Sleep(11 * time.Second)
		for _, spools := range []int{0, 1} {
			checkGet(t, c, request(t, zipName), data)
			checkSpools(t, reg, spools, int64(spools*len(data)))
			time.Sleep(9 * time.Second)
		}
	})
}

// The stream ends with its client.
func TestAloneAndGone(t *testing.T) {
	t.Parallel()
	data := pattern(1 << 20)
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.nodes["n1"].holds[zipName], f.nodes["n1"].steps = data, time.Second
		c := newCluster(t, f, nil)
		ctx, leave := context.WithCancel(t.Context())
		obj, err := c.Get(ctx, request(t, zipName))
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(1500*time.Millisecond, leave)
		if _, err := io.Copy(io.Discard, obj.Body); !errors.Is(err, context.Canceled) {
			t.Errorf("who has left: %v", err)
		}
		obj.Body.Close()
		synctest.Wait()
		if f.opened() != 0 {
			t.Errorf("%d streams go on for nobody", f.opened())
		}
	})
}

// Many who are alone are more than what may be passed through, and many zips more
// than what is remembered: the others are spooled.
func TestManyAlone(t *testing.T) {
	t.Parallel()
	data := pattern(300 << 10)
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		reqs := zipsOf(t, f, "n1", 4200, data)
		reg := prometheus.NewRegistry()
		c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Metrics = reg })
		var bodies []io.Closer
		for _, req := range reqs[:70] {
			bodies = append(bodies, open(t, c, req).Body)
		}
		if f.narrow != 64 {
			t.Errorf("%d of 70 streams are passed through, want 64", f.narrow)
		}
		for _, body := range bodies {
			body.Close()
		}
		f.narrow = 0
		for _, req := range reqs {
			open(t, c, req).Body.Close()
		}
		if want := 4096 - 64; f.narrow != want {
			t.Errorf("%d zips were passed through, want %d more", f.narrow, want)
		}
		time.Sleep(11 * time.Second)
		f.narrow = 0
		for _, req := range reqs[:10] {
			open(t, c, req).Body.Close()
		}
		if f.narrow != 10 {
			t.Errorf("%d of 10 zips were passed through later", f.narrow)
		}
		time.Sleep(11 * time.Second)
		checkSpools(t, reg, 0, 0)
	})
}

// Nobody waits for the header any more: what comes then is nobody's.
func TestAloneLeavesEarly(t *testing.T) {
	t.Parallel()
	data := pattern(1 << 20)
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		f.nodes["n1"].holds[zipName], f.nodes["n1"].delay = data, time.Second
		reg := prometheus.NewRegistry()
		c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Metrics = reg })
		for _, limit := range []time.Duration{time.Millisecond, time.Second} { // the second just when the header comes
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			if obj, err := c.Get(ctx, request(t, zipName)); err == nil {
				obj.Body.Close()
			} else if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			cancel()
			synctest.Wait()
			if f.opened() != 0 {
				t.Errorf("%d streams are open for nobody", f.opened())
			}
			time.Sleep(time.Minute)
		}
		checkGet(t, c, request(t, zipName), data)
		checkSpools(t, reg, 0, 0)
	})
}

// leaver is nodes that a client leaves when they answer.
type leaver struct {
	*fakeNodes

	leave func()
}

func (l *leaver) Get(ctx context.Context, id string, req cache.Request, o wire.Options) (*cache.Object, error) {
	obj, err := l.fakeNodes.Get(ctx, id, req, o)
	go l.leave()
	return obj, err
}

// Whoever leaves at the moment in which the stream is given to him leaves nothing
// open.
func TestAloneLeavesAtOnce(t *testing.T) {
	t.Parallel()
	data := pattern(300 << 10)
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1")
		nodes := &leaver{fakeNodes: f}
		c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Peers = nodes })
		for _, req := range zipsOf(t, f, "n1", 500, data) {
			ctx, cancel := context.WithCancel(t.Context())
			nodes.leave = cancel
			obj, err := c.Get(ctx, req)
			switch {
			case err == nil:
				obj.Body.Close()
			case !errors.Is(err, context.Canceled):
				t.Errorf("got %v", err)
			}
			synctest.Wait()
			if n := f.opened(); n != 0 {
				t.Fatalf("%d streams are open for nobody", n)
			}
		}
	})
}

// A node dies under who is alone with a zip: another goes on.
func TestAloneGoesOn(t *testing.T) {
	t.Parallel()
	data := pattern(1 << 20)
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1", "eu/a/n2")
		for _, n := range f.nodes {
			n.holds[zipName], n.breakAt = data, 500_000
		}
		c := newCluster(t, f, nil)
		obj := open(t, c, request(t, zipName))
		if _, err := io.ReadFull(obj.Body, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"n1", "n2"} {
			f.change(id, func(n *fakeNode) { n.breakAt = 0 })
		}
		if got, err := io.ReadAll(obj.Body); err != nil || !bytes.Equal(got, data[10:]) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		obj.Body.Close()
		if got := len(f.asked()); got != 2 || f.narrow != 2 {
			t.Errorf("asked %d times, %d of them narrow, want twice", got, f.narrow)
		}
	})
}
