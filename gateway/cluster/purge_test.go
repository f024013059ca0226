package cluster_test

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
)

// Spools of what was purged are dropped, those that are being written cut; others stay.
func TestPurgeDropsSpools(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		data := pattern(1 << 20)
		f := newNodes(t, "eu/a/n1")
		reqs := zipsOf(t, f, "n1", 3, data)
		reg := prometheus.NewRegistry()
		c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Metrics = reg })
		share(t, f, c, reqs...)
		checkGet(t, c, reqs[0], data) // kept
		checkGet(t, c, reqs[1], data) // kept, and not purged
		f.change("n1", func(n *fakeNode) { n.steps = time.Second })
		running := open(t, c, reqs[2])
		time.Sleep(10*time.Second - time.Millisecond)
		gone := map[string]bool{reqs[0].Target.String(): true, reqs[2].Target.String(): true}
		c.Drop(func(name string) bool { return gone[name] })
		if n, err := io.Copy(io.Discard, running.Body); err == nil || n >= int64(len(data)) {
			t.Errorf("who follows got %d bytes, %v, want that they end", n, err)
		}
		running.Body.Close()
		f.change("n1", func(n *fakeNode) {
			n.says, n.caches = said(cache.Purged), said(cache.Purged)
			clear(n.holds)
		})
		for i, want := range []bool{false, true, false} {
			if _, _, err := get(t, c, reqs[i]); (err == nil) != want || !want && !reasonIs(err, cache.Purged) {
				t.Errorf("zip %d: %v", i, err)
			}
		}
		time.Sleep(time.Minute)
		checkSpools(t, reg, 0, 0)
	})
}
