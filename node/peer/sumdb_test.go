package peer_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	xsumdb "golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/note"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/peer"
	"github.com/ringmod/ringmod/node/sumdb"
	"github.com/ringmod/ringmod/ring"
)

const dbName = "sum.example.com"

// database is a checksum database in memory that counts what it is asked.
type database struct {
	server *xsumdb.Server
	spec   sumdb.Spec

	mu    sync.Mutex
	asked map[string]int
}

func newDatabase(t *testing.T) *database {
	t.Helper()
	skey, vkey, err := note.GenerateKey(nil, dbName)
	if err != nil {
		t.Fatal(err)
	}
	ops := xsumdb.NewTestServer(skey, func(path, version string) ([]byte, error) {
		return fmt.Appendf(nil, "%s %s h1:zip\n%s %s/go.mod h1:mod\n", path, version, path, version), nil
	})
	spec, err := sumdb.ParseSpec(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return &database{server: xsumdb.NewServer(ops), spec: spec, asked: map[string]int{}}
}

// Fetch implements sumdb.Remote.
func (d *database) Fetch(ctx context.Context, t target.Target) ([]byte, error) {
	d.mu.Lock()
	d.asked[t.Rest]++
	d.mu.Unlock()
	if err := wait(ctx, time.Second); err != nil {
		return nil, &cache.Error{Reason: cache.Slow, Err: err}
	}
	rec := httptest.NewRecorder()
	d.server.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/"+t.Rest, nil))
	if rec.Code != http.StatusOK {
		return nil, &cache.Error{Reason: cache.NotFound, Source: dbName, Text: rec.Body.String()}
	}
	return rec.Body.Bytes(), nil
}

func (d *database) count(prefix string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for rest, count := range d.asked {
		if strings.HasPrefix(rest, prefix) {
			n += count
		}
	}
	return n
}

// client completes the configuration of a node with a client of the database.
func (d *database) client(t *testing.T) func(*node.Config) {
	t.Helper()
	return func(cfg *node.Config) {
		cfg.Writes = node.NewWriteBehind(cfg.Store, nil)
		files := &node.ChecksumFiles{Store: cfg.Store, Documents: cfg.Documents, Writes: cfg.Writes}
		peers := cfg.Peers.(*peer.Peers)
		db, err := sumdb.New(sumdb.Config{Spec: d.spec, Remote: peers.Copies(d), Members: peers.Lookups(), Storage: files, Heads: files})
		if err != nil {
			t.Fatal(err)
		}
		cfg.Databases = []*sumdb.DB{db}
	}
}

// A lookup crosses upstream once for the cluster, whoever asks for it.
func TestOneLookupForTheCluster(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDatabase(t)
		w := newWorld(t, nil)
		all := members(2, "a", "b", "c")
		view := viewOf(t, all...)
		for _, m := range all {
			w.start(m.ID, view, d.client(t))
		}
		gateway := w.set("a-gw", view)
		var callers sync.WaitGroup
		for _, m := range all {
			for i := range 3 {
				callers.Go(func() {
					name := fmt.Sprintf("sumdb/%s/lookup/example.com/m%d@v1.0.0", dbName, i)
					got, err := fetch(t.Context(), gateway, m.ID, parse(t, name))
					if err != nil || !bytes.Contains(got, []byte("h1:zip")) {
						t.Errorf("%s from %s: %q, %v", name, m.ID, got, err)
					}
				})
			}
		}
		callers.Wait()
		if got := d.count("lookup/"); got != 3 {
			t.Errorf("%d lookups, want 3", got)
		}
	})
}

// Two nodes that take each other for the coordinator of a lookup do not wait for
// each other.
func TestLookupAtEachOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDatabase(t)
		w := newWorld(t, nil)
		name := parse(t, "sumdb/"+dbName+"/lookup/example.com/m@v1.0.0")
		start := time.Now()
		var callers sync.WaitGroup
		views := taking(t)
		for region, view := range views {
			w.start(region+"-1", view, d.client(t))
		}
		for region, view := range views {
			gateway := w.set(region+"-gw", view)
			callers.Go(func() {
				if _, err := fetch(t.Context(), gateway, region+"-1", name); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
		if d := time.Since(start); d > 30*time.Second {
			t.Errorf("took %v", d)
		}
		if got := d.count("lookup/"); got > 2 {
			t.Errorf("%d lookups, want 2 at most", got)
		}
	})
}

// Tiles are looked for in the region, and are to be had when nobody has them.
func TestTilesOfTheRegion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDatabase(t)
		w := newWorld(t, nil)
		all := members(2, "a")
		view := viewOf(t, all...)
		for _, m := range all {
			w.start(m.ID, view, d.client(t))
		}
		gateway := w.set("a-gw", view)
		for _, m := range all {
			for i := range 3 {
				name := parse(t, fmt.Sprintf("sumdb/%s/lookup/example.com/m%d@v1.0.0", dbName, i))
				if _, err := fetch(t.Context(), gateway, m.ID, name); err != nil {
					t.Fatal(err)
				}
			}
		}
		tile := parse(t, "sumdb/"+dbName+"/tile/8/0/000.p/3")
		partition := ring.OfTarget(tile)
		first := view.Member(view.Next().Ranks("a", partition)[0]).ID
		if _, err := fetch(t.Context(), gateway, first, tile); err != nil {
			t.Fatal(err)
		}
		before := d.count("tile/8/0/000.p/3")
		for _, m := range all {
			if _, err := fetch(t.Context(), gateway, m.ID, tile); err != nil {
				t.Error(err)
			}
		}
		if got := d.count("tile/8/0/000.p/3"); got != before || before != 1 {
			t.Errorf("the tile was fetched %d times, then %d", before, got)
		}
	})
}

// A lookup is looked for in the region first: a node of it may have stood in for the
// coordinator, which then does not know.
func TestLookupsOfTheRegion(t *testing.T) {
	t.Parallel()
	name := parse(t, "sumdb/"+dbName+"/lookup/example.com/m@v1.0.0")
	for _, regions := range [][]string{{"a"}, {"a", "b"}} {
		synctest.Test(t, func(t *testing.T) {
			d := newDatabase(t)
			w := newWorld(t, nil)
			view := viewOf(t, members(2, regions...)...)
			partition := ring.OfTarget(name)
			id := func(region string, rank int) string {
				return view.Member(view.Next().Ranks(region, partition)[rank]).ID
			}
			home := view.Next().Homes(partition)[0]
			other := regions[len(regions)-1] // also the home region, where there is one only
			if other == home {
				other = regions[0]
			}
			gateway := w.set("a-gw", view)
			ask := func(id string) {
				if _, err := fetch(t.Context(), gateway, id, name); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute) // until it is stored
			}
			w.start(id(other, 1), view, d.client(t))
			ask(id(other, 1))
			w.start(id(other, 0), view, d.client(t))
			if other != home {
				w.start(id(home, 0), view, d.client(t))
			}
			ask(id(other, 0))
			if got := d.count("lookup/"); got != 1 {
				t.Errorf("regions %q: %d lookups, want 1", regions, got)
			}
		})
	}
}
