package node_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/purge"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/store/storetest"
)

// graves are purges that are known from the beginning, unless wait is to be closed first.
type graves struct {
	*purge.Set

	wait chan struct{}
}

func (g graves) Wait(ctx context.Context) error {
	if g.wait == nil {
		return nil
	}
	select {
	case <-g.wait:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g graves) bury(t *testing.T, version string, lift bool) {
	t.Helper()
	names, err := purge.Names(module.Version{Path: "example.com/m", Version: version})
	if err == nil {
		_, err = g.Write(names, lift, "it leaks")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// answerOf returns a whole answer.
func answerOf(t *testing.T, n *node.Node, name string, mode cache.Mode) (string, error) {
	t.Helper()
	obj, err := n.Get(t.Context(), cache.Request{Target: mustParse(t, name), Mode: mode})
	if err != nil {
		return "", err
	}
	defer obj.Body.Close()
	body, err := io.ReadAll(obj.Body)
	return string(body), err
}

const (
	dir  = "example.com/m/@v/"
	info = `{"Version":"v1.0.0","Time":"2026-01-01T00:00:00Z"}`
)

func infoOf(version string) string { return strings.Replace(info, "v1.0.0", version, 1) }

func TestPurgedIsAbsentForAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		up := newScripted(map[string]string{dir + "v1.0.0.info": info, dir + "v1.1.0.info": infoOf("v1.1.0")})
		g := graves{Set: purge.NewSet()}
		peers := newPeers(t, "self")
		n, mem := newNode(t, node.Config{Upstream: up, Purges: g, Peers: peers})
		storetest.Put(t, mem, dir+"v1.0.0.info", info, "")
		g.bury(t, "v1.0.0", false)
		for _, mode := range []cache.Mode{cache.AllowFill, cache.Coordinate, cache.OnlyIfCached, cache.Peek} {
			got, err := answerOf(t, n, dir+"v1.0.0.info", mode)
			if cache.ReasonOf(err) != cache.Purged || !strings.Contains(err.Error(), "it leaks") {
				t.Errorf("mode %d: got %q, %v, want that it was purged", mode, got, err)
			}
		}
		if h, err := n.Holding(t.Context(), mustParse(t, dir+"v1.0.0.info")); err != nil || h.GetCopy() != nil || h.GetNegative() != nil {
			t.Errorf("Holding() = %v, %v, want nothing", h, err)
		}
		obj := &cache.Object{Size: int64(len(info)), Body: io.NopCloser(strings.NewReader(info))}
		if err := n.Take(t.Context(), mustParse(t, dir+"v1.0.0.info"), obj); cache.ReasonOf(err) != cache.Purged {
			t.Errorf("Take() = %v, want that it was purged", err)
		}
		if got := up.count(dir + "v1.0.0.info"); got != 0 || peers.peeks != 0 {
			t.Errorf("upstream was asked %d times, peers %d times", got, peers.peeks)
		}
		if got, err := answerOf(t, n, dir+"v1.1.0.info", cache.AllowFill); err != nil || got != infoOf("v1.1.0") {
			t.Errorf("another version: %q, %v", got, err)
		}
		g.bury(t, "v1.0.0", true)
		if got, err := answerOf(t, n, dir+"v1.0.0.info", cache.AllowFill); err != nil || got != info {
			t.Errorf("lifted: %q, %v", got, err)
		}
	})
}

// A version leaves the list, whoever has made it, and comes back when it is lifted, though
// upstream says then that nothing has changed.
func TestPurgedLeavesTheList(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		up := newScripted(map[string]string{listName: "v1.0.0\nv1.1.0\n"})
		up.etags[listName] = "same"
		g := graves{Set: purge.NewSet()}
		n, mem := newNode(t, node.Config{Upstream: up, Purges: g})
		want := func(want string) {
			t.Helper()
			if got, err := answerOf(t, n, listName, cache.AllowFill); err != nil || got != want {
				t.Errorf("list is %q, %v, want %q", got, err, want)
			}
		}
		want("v1.0.0\nv1.1.0\n")
		g.bury(t, "v1.0.0", false)
		want("v1.1.0\n")
		time.Sleep(time.Hour)
		want("v1.1.0\n")
		if doc, err := mem.Document(listName); err != nil || string(doc.Body) != "v1.1.0\n" || doc.ETag != "" {
			t.Errorf("stored is %q with ETag %q, %v", doc.Body, doc.ETag, err)
		}
		g.bury(t, "v1.0.0", true)
		time.Sleep(time.Hour)
		want("v1.0.0\nv1.1.0\n")
		g.bury(t, "", false)
		if got, err := answerOf(t, n, listName, cache.AllowFill); cache.ReasonOf(err) != cache.Purged {
			t.Errorf("list of a purged module: %q, %v", got, err)
		}
	})
}

func TestLatestIsTheNewestThatIsLeft(t *testing.T) {
	t.Parallel()
	const latest = "example.com/m/@latest"
	tests := []struct {
		name   string
		list   string
		purged []string
		want   string // version; "" wants that it was purged
	}{
		{"none is purged", "v1.0.0\nv1.1.0\nv1.2.0-rc\n", nil, "v1.1.0"},
		{"an older one is", "v1.0.0\nv1.1.0\nv1.2.0-rc\n", []string{"v1.0.0"}, "v1.1.0"},
		{"the latest is", "v1.0.0\nv1.1.0\nv1.2.0-rc\n", []string{"v1.1.0"}, "v1.0.0"},
		{"all releases are", "v1.0.0\nv1.1.0\nv1.2.0-rc\n", []string{"v1.1.0", "v1.0.0"}, "v1.2.0-rc"},
		{"all are", "v1.0.0\nv1.1.0\nv1.2.0-rc\n", []string{"v1.1.0", "v1.0.0", "v1.2.0-rc"}, ""},
		{"there is no list", "", []string{"v1.1.0"}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				up := newScripted(map[string]string{latest: infoOf("v1.1.0"), dir + "master.info": infoOf("v1.1.0")})
				if test.list != "" {
					up.bodies[listName] = []byte(test.list)
				}
				for version := range strings.FieldsSeq(test.list) {
					up.bodies[dir+version+".info"] = []byte(infoOf(version))
				}
				g := graves{Set: purge.NewSet()}
				n, _ := newNode(t, node.Config{Upstream: up, Purges: g})
				for _, version := range test.purged {
					g.bury(t, version, false)
				}
				got, err := answerOf(t, n, latest, cache.AllowFill)
				switch {
				case test.want == "" && cache.ReasonOf(err) != cache.Purged:
					t.Errorf("got %q, %v, want that it was purged", got, err)
				case test.want != "" && (err != nil || got != infoOf(test.want)):
					t.Errorf("got %q, %v, want %s", got, err, test.want)
				}
				purged := g.CheckVersion(module.Version{Path: "example.com/m", Version: "v1.1.0"}) != nil
				if got, err := answerOf(t, n, dir+"master.info", cache.AllowFill); (cache.ReasonOf(err) == cache.Purged) != purged {
					t.Errorf("a query for it: %q, %v", got, err)
				}
			})
		})
	}
}

// A fill that runs when the purge comes ends, for all who follow it, and stores nothing.
func TestPurgeEndsFills(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		up := newScripted(map[string]string{dir + "v1.0.0.info": info})
		up.delay = time.Minute
		g := graves{Set: purge.NewSet()}
		n, mem := newNode(t, node.Config{Upstream: up, Purges: g})
		answers := make(chan error, 2)
		for range 2 {
			go func() {
				_, err := n.Get(t.Context(), cache.Request{Target: mustParse(t, dir+"v1.0.0.info")})
				answers <- err
			}()
		}
		time.Sleep(time.Second)
		start := time.Now()
		g.bury(t, "v1.0.0", false)
		n.Drop(g.Purged)
		for range 2 {
			if err := <-answers; cache.ReasonOf(err) != cache.Purged {
				t.Errorf("who waited got %v", err)
			}
		}
		synctest.Wait()
		if time.Since(start) > time.Second || n.Fills() != 0 {
			t.Errorf("%d fills run after %v", n.Fills(), time.Since(start))
		}
		if _, err := mem.Stat(dir + "v1.0.0.info"); err == nil {
			t.Error("it was stored")
		}
	})
}

// A fill that has ended when the purge comes, but for the writing, is refused by the store.
func TestPurgedIsNotWrittenBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		up := newScripted(map[string]string{dir + "v1.0.0.info": info})
		g := graves{Set: purge.NewSet()}
		n, mem := newNode(t, node.Config{Upstream: up, Purges: g})
		mem.Refuse(g.Purged)
		if _, err := answerOf(t, n, dir+"v1.0.0.info", cache.AllowFill); err != nil {
			t.Fatal(err)
		}
		g.bury(t, "v1.0.0", false)
		if _, err := answerOf(t, n, dir+"v1.0.0.info", cache.AllowFill); cache.ReasonOf(err) != cache.Purged {
			t.Errorf("what waits to be written is answered: %v", err)
		}
		time.Sleep(time.Minute)
		stopNode(n)
		if _, err := mem.Stat(dir + "v1.0.0.info"); err == nil {
			t.Error("it was stored")
		}
	})
}

// Nothing is served before it is known what must not be.
func TestServesWhenPurgesAreKnown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := graves{Set: purge.NewSet(), wait: make(chan struct{})}
		n, mem := newNode(t, node.Config{Upstream: newScripted(nil), Purges: g})
		storetest.Put(t, mem, dir+"v1.0.0.info", info, "")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Get(ctx, cache.Request{Target: mustParse(t, dir+"v1.0.0.info")}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("served before: %v", err)
		}
		g.bury(t, "v1.0.0", false)
		close(g.wait)
		if _, err := answerOf(t, n, dir+"v1.0.0.info", cache.AllowFill); cache.ReasonOf(err) != cache.Purged {
			t.Errorf("then: %v", err)
		}
	})
}

// What a coordinator says of a purge is final, and no reason to answer with an old list.
func TestCoordinatorKnowsOfPurge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		peers := newPeers(t, "n1", "n2")
		peers.home = func(context.Context, string, cache.Request) (*cache.Object, error) {
			return nil, &cache.Error{Reason: cache.Purged, Text: "purged"}
		}
		up := newScripted(map[string]string{dir + "v1.0.0.info": info, listName: "v1.0.0\n"})
		n, mem := newNode(t, node.Config{Upstream: up, Peers: peers})
		storetest.Put(t, mem, dir+"v1.1.0.info", infoOf("v1.1.0"), "")
		if err := mem.PutDocument(listName, store.Document{Body: []byte("v1.0.0\n"), Fetched: time.Now().Add(-time.Hour)}); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{dir + "v1.0.0.info", listName} {
			if got, err := answerOf(t, n, name, cache.AllowFill); cache.ReasonOf(err) != cache.Purged {
				t.Errorf("%s: got %q, %v", name, got, err)
			}
			if up.count(name) != 0 {
				t.Errorf("upstream was asked for %s", name)
			}
		}
	})
}
