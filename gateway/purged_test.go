package gateway_test

import (
	"bytes"
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/internal/cache"
)

// graves are versions of example.com/m that were purged.
type graves struct {
	mu       sync.Mutex
	versions []string
}

func (g *graves) bury(version string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.versions = append(g.versions, version)
}

func (g *graves) find(version string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if slices.Contains(g.versions, version) {
		return &cache.Error{Reason: cache.Purged, Text: "purged: it leaks"}
	}
	return nil
}

func (g *graves) Check(name string) error {
	version, ok := strings.CutPrefix(name, "example.com/m/@v/")
	if !ok {
		return nil
	}
	return g.find(strings.TrimSuffix(strings.TrimSuffix(version, ".info"), ".zip"))
}

func (g *graves) purged(name string) bool { return g.Check(name) != nil }

func (g *graves) CheckVersion(m module.Version) error { return g.find(m.Version) }

func (g *graves) List(_ string, list []byte) []byte {
	var left []byte
	for line := range bytes.Lines(list) {
		if g.find(strings.TrimSpace(string(line))) == nil {
			left = append(left, line...)
		}
	}
	return left
}

const (
	listPath   = "example.com/m/@v/list"
	latestPath = "example.com/m/@latest"
	infoPath   = "example.com/m/@v/v1.0.0.info"
	zipPath    = "example.com/m/@v/v1.0.0.zip"
)

// What was purged is answered from no memory, and nobody is asked for it.
func TestPurged(t *testing.T) {
	t.Parallel()
	f, buried := newFakeCache(t), &graves{}
	g := newGateway(t, gateway.Config{Cache: f, Purges: buried})
	for _, name := range []string{infoPath, zipPath} {
		f.serve(name, []byte("bytes"), cache.Object{})
		if r := do(g, http.MethodGet, "/"+name); r.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d", name, r.StatusCode)
		}
	}
	buried.bury("v1.0.0")
	g.Drop(buried.purged)
	asked := len(f.asked())
	for _, name := range []string{infoPath, zipPath, "cached-only/" + infoPath} {
		r := do(g, http.MethodGet, "/"+name)
		if r.StatusCode != http.StatusGone || body(t, r) != "not found: example.com/m@v1.0.0: purged: it leaks\n" {
			t.Errorf("%s: %d %q", name, r.StatusCode, body(t, r))
		}
		checkHeaders(t, r, "Cache-Control", "public, max-age=60", "Cache-Status", "ringmod; fwd=miss; detail=purged")
	}
	if more := len(f.asked()) - asked; more != 0 {
		t.Errorf("the cache was asked %d times", more)
	}
}

// Lists, latest and queries are asked for anew, and a node that has not heard of the purge
// yet tells nobody of the version.
func TestPurgedLeavesLists(t *testing.T) {
	t.Parallel()
	f, buried := newFakeCache(t), &graves{}
	g := newGateway(t, gateway.Config{Cache: f, Purges: buried})
	f.serve(listPath, []byte("v1.0.0\nv1.1.0\n"), cache.Object{TTL: 1 << 40})
	f.serve(latestPath, []byte(`{"Version":"v1.0.0"}`), cache.Object{TTL: 1 << 40})
	f.serve("example.com/m/@v/main.info", []byte(`{"Version":"v1.1.0"}`), cache.Object{TTL: 1 << 40})
	get := func(name string) string { return body(t, do(g, http.MethodGet, "/"+name)) }
	if got := get(listPath) + get(latestPath); got != "v1.0.0\nv1.1.0\n"+`{"Version":"v1.0.0"}` {
		t.Fatalf("before: %q", got)
	}
	buried.bury("v1.0.0")
	g.Drop(buried.purged)
	for range 2 {
		if got := get(listPath); got != "v1.1.0\n" {
			t.Errorf("list: %q", got)
		}
		if r := do(g, http.MethodGet, "/"+latestPath); r.StatusCode != http.StatusGone {
			t.Errorf("latest: %d", r.StatusCode)
		}
		if got := get("example.com/m/@v/main.info"); got != `{"Version":"v1.1.0"}` {
			t.Errorf("query: %q", got)
		}
	}
}

// A purge is no reason to tell anybody something older about other modules.
func TestPurgeLeavesOtherLists(t *testing.T) {
	t.Parallel()
	f, buried := newFakeCache(t), &graves{}
	g := newGateway(t, gateway.Config{Cache: f, Purges: buried})
	const other = "example.com/other/@v/list"
	f.serve(other, []byte("v1.2.0\n"), cache.Object{TTL: 1 << 40})
	if got := body(t, do(g, http.MethodGet, "/"+other)); got != "v1.2.0\n" {
		t.Fatalf("before: %q", got)
	}
	f.serve(other, []byte("v1.1.0\n"), cache.Object{TTL: 1 << 40, Age: 1 << 35})
	buried.bury("v1.0.0")
	g.Drop(buried.purged)
	if got := body(t, do(g, http.MethodGet, "/"+other)); got != "v1.2.0\n" {
		t.Errorf("after: %q", got)
	}
}

// What was asked for before a purge is not kept when it comes after it.
func TestPurgeWhileAsking(t *testing.T) {
	t.Parallel()
	f, buried := newFakeCache(t), &graves{}
	g := newGateway(t, gateway.Config{Cache: f, Purges: buried})
	f.on(listPath, func(context.Context, cache.Request) (*cache.Object, error) {
		buried.bury("v1.1.0")
		g.Drop(buried.purged)
		return whole([]byte("v1.0.0\nv1.1.0\n"), cache.Object{TTL: 1 << 40}), nil
	})
	for range 2 {
		if got := body(t, do(g, http.MethodGet, "/"+listPath)); got != "v1.0.0\n" {
			t.Errorf("got %q", got)
		}
	}
}
