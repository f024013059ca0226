package cluster_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
)

// slowUpstream is a last resort that lets a test wait, and counts.
type slowUpstream struct {
	gate chan struct{} // an answer for each value, any number once it is closed

	mu            sync.Mutex
	running, most int
}

func (u *slowUpstream) Get(ctx context.Context, _ cache.Request) (*cache.Object, error) {
	u.count(1)
	defer u.count(-1)
	select {
	case <-u.gate:
		return &cache.Object{Size: 1, Source: cache.Upstream, Body: io.NopCloser(bytes.NewReader([]byte("x")))}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// count returns how many there were at a time.
func (u *slowUpstream) count(n int) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.running += n
	u.most = max(u.most, u.running)
	return u.most
}

// A burst that finds all nodes dead is served by upstream, a few at a time; nobody
// fails for being one too many.
func TestLastResortsWaitForEachOther(t *testing.T) {
	t.Parallel()
	for _, serves := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			f := newNodes(t, "eu/a/n1", "eu/a/n2", "us/a/u1")
			for _, n := range f.nodes {
				n.fails = unavailable // they are up by gossip
			}
			u := &slowUpstream{gate: make(chan struct{})}
			c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Upstream = u })
			errs := make(chan error, 100)
			f.most = cap(errs)
			for range cap(errs) {
				go func() {
					_, _, err := get(t, c, request(t, modName))
					errs <- err
				}()
			}
			time.Sleep(10 * time.Second)
			if len(errs) > 0 {
				t.Errorf("%d answers before upstream has given any: %v", len(errs), <-errs)
			}
			if serves {
				close(u.gate)
			}
			time.Sleep(time.Minute)
			failed := 0
			for range len(errs) {
				err := <-errs
				if err == nil {
					continue
				}
				failed++
				if serves || !reasonIs(err, cache.Busy) || !strings.Contains(err.Error(), "on their way to upstream") {
					t.Errorf("serves %t: %v", serves, err)
				}
			}
			if !serves && failed == 0 {
				t.Error("nobody was told that upstream has too much to do")
			}
			if most := u.count(0); most > 32 {
				t.Errorf("%d fetches at a time, want 32 at most", most)
			}
			if !serves {
				close(u.gate)
				synctest.Wait()
			}
		})
	}
}

// A node that was found busy by a hedge is no more dead than any other.
func TestBusyHedgeIsNotDead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, "eu/a/n1", "eu/b/n2")
		f.nodes["n1"].silent = true
		f.nodes["n2"].fails = said(cache.Busy)
		u := &fakeUpstream{objects: map[string][]byte{zipName: []byte("x")}}
		c := newCluster(t, f, func(cfg *cluster.Config) { cfg.Upstream = u })
		if _, _, err := get(t, c, request(t, zipName)); !reasonIs(err, cache.Busy) {
			t.Errorf("got %v, want Busy", err)
		}
		if u.asked > 0 {
			t.Errorf("upstream was asked %d times", u.asked)
		}
	})
}
