package node_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node"
)

// A tag that vanishes upstream stays in the list while a node holds its zip.
func TestVanishedTagsStay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		held := "v1.1.0"
		peers := newPeers(t, "self")
		peers.peek = func(asked target.Target) (*cache.Object, error) {
			if asked.Kind == target.Zip && asked.Version == held {
				return heldBy([]byte("zip"), ""), nil
			}
			return nil, &cache.Error{Reason: cache.NotCached}
		}
		script := newScripted(nil)
		n, _ := newNode(t, node.Config{Upstream: script, Peers: peers})
		for _, step := range []struct{ upstream, want string }{
			{"v1.0.0\nv1.1.0\nv1.2.0\nv2.0.0+incompatible\n", "v1.0.0\nv1.1.0\nv1.2.0\nv2.0.0+incompatible\n"},
			{"v1.2.0", "v1.2.0\nv1.1.0\n"},
			{"v1.2.0\nv1.3.0\n", "v1.2.0\nv1.3.0\nv1.1.0\n"},
			{"v1.1.0\nv1.2.0\n", "v1.1.0\nv1.2.0\n"},
			{"", "v1.1.0\n"},
			{"v1.2.0\n", "v1.2.0\nv1.1.0\n"},
		} {
			script.set(func() { script.bodies[listName] = []byte(step.upstream) })
			body, obj, err := read(t.Context(), n, cache.Request{Target: mustParse(t, listName)})
			if err != nil || string(body) != step.want || obj.Stale {
				t.Errorf("upstream lists %q: %q, %v, want %q", step.upstream, body, err, step.want)
			}
			time.Sleep(2 * time.Minute)
		}
		held = "none"
		script.set(func() { script.bodies[listName] = []byte("v1.2.0\nv1.4.0\n") })
		if body, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, listName)}); err != nil || strings.Contains(string(body), "v1.1.0") {
			t.Errorf("after the last copy is gone: %q, %v", body, err)
		}
	})
}
