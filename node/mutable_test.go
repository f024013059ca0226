package node_test

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/upstream"
)

const listName = "example.com/m/@v/list"

// step is one moment in the life of a mutable answer.
type step struct {
	after   time.Duration
	change  func(*scriptedUpstream)
	body    string // "" wants an error
	reason  cache.Reason
	stale   bool
	fetched int           // upstream requests so far, once all is quiet
	took    time.Duration // until what is stale is answered
}

func TestAgesOfAList(t *testing.T) {
	t.Parallel()
	down := func(s *scriptedUpstream) { s.fail = &cache.Error{Reason: cache.Broken, Text: "connection refused"} }
	up := func(s *scriptedUpstream) { s.fail, s.delay = nil, 0 }
	grow := func(s *scriptedUpstream) { s.bodies[listName] = []byte("v1.0.0\nv1.1.0\n") }
	silent := func(s *scriptedUpstream) {
		down(s)
		s.delay = 30 * time.Second
	}
	slow := func(s *scriptedUpstream) { grow(s); s.delay = 4500 * time.Millisecond }
	gone := func(s *scriptedUpstream) { delete(s.bodies, listName) }
	tests := []struct {
		name  string
		steps []step
	}{
		{"asked for anew before it is a minute old", []step{
			{body: "v1.0.0\n", fetched: 1},
			{after: 44 * time.Second, change: grow, body: "v1.0.0\n", fetched: 1},
			{after: 2 * time.Second, body: "v1.0.0\n", fetched: 2},
			{after: time.Second, body: "v1.0.0\nv1.1.0\n", fetched: 2},
		}},
		{"waits for upstream rather than be more than a minute old", []step{
			{body: "v1.0.0\n", fetched: 1},
			{after: 61 * time.Second, change: grow, body: "v1.0.0\nv1.1.0\n", fetched: 2},
		}},
		{"stale when upstream takes longer than a moment", []step{
			{body: "v1.0.0\n", fetched: 1},
			{after: 2 * time.Minute, change: slow, body: "v1.0.0\n", stale: true, fetched: 2, took: 3 * time.Second},
			{body: "v1.0.0\n", stale: true, fetched: 2},
			{after: 2 * time.Second, body: "v1.0.0\nv1.1.0\n", fetched: 2},
		}},
		{"a host that is down costs the first client a moment and the next ones nothing", []step{
			{body: "v1.0.0\n", fetched: 1},
			{after: time.Hour, change: silent, body: "v1.0.0\n", stale: true, fetched: 2, took: 10 * time.Second},
			{after: time.Second, body: "v1.0.0\n", stale: true, fetched: 2},
			{after: 10 * time.Second, body: "v1.0.0\n", stale: true, fetched: 2},
			{after: 20 * time.Second, body: "v1.0.0\n", stale: true, fetched: 3},
			{after: 20 * time.Second, change: up, body: "v1.0.0\n", stale: true, fetched: 3},
			{after: 20 * time.Second, body: "v1.0.0\n", fetched: 3},
		}},
		{"waits for upstream when it is too old", []step{
			{body: "v1.0.0\n", fetched: 1},
			{after: 12 * time.Minute, change: grow, body: "v1.0.0\nv1.1.0\n", fetched: 2},
		}},
		{"stale for a week when upstream fails", []step{
			{body: "v1.0.0\n", fetched: 1},
			{after: 24 * time.Hour, change: down, body: "v1.0.0\n", stale: true, fetched: 2},
			{after: time.Second, body: "v1.0.0\n", stale: true, fetched: 2},
			{after: 10 * time.Second, body: "v1.0.0\n", stale: true, fetched: 3},
			{after: 7 * 24 * time.Hour, reason: cache.Broken, fetched: 4},
			{after: time.Second, reason: cache.Broken, fetched: 5},
			{after: time.Second, change: up, body: "v1.0.0\n", fetched: 6},
		}},
		{"absence is repeated for a minute", []step{
			{change: gone, reason: cache.NotFound, fetched: 1},
			{after: 59 * time.Second, change: grow, reason: cache.NotFound, fetched: 1},
			{after: 2 * time.Second, body: "v1.0.0\nv1.1.0\n", fetched: 2},
		}},
		{"absence is asked for once a minute where there is something stale, too", []step{
			{body: "v1.0.0\n", fetched: 1},
			{after: 2 * time.Minute, change: gone, reason: cache.NotFound, fetched: 2},
			{after: time.Second, reason: cache.NotFound, fetched: 2},
			{after: 50 * time.Second, reason: cache.NotFound, fetched: 2},
		}},
		{"trouble is never repeated", []step{
			{change: down, reason: cache.Broken, fetched: 1},
			{change: up, body: "v1.0.0\n", fetched: 2},
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				script := newScripted(map[string]string{listName: "v1.0.0\n"})
				n, _ := newNode(t, node.Config{Upstream: script})
				for i, s := range test.steps {
					time.Sleep(s.after)
					if s.change != nil {
						script.set(func() { s.change(script) })
					}
					start := time.Now()
					body, obj, err := read(t.Context(), n, cache.Request{Target: mustParse(t, listName)})
					if took := time.Since(start); s.stale && took != s.took {
						t.Errorf("step %d: answered after %v, want %v", i, took, s.took)
					}
					synctest.Wait()
					if s.body == "" {
						if err == nil || cache.ReasonOf(err) != s.reason {
							t.Errorf("step %d: %q, %v, want reason %v", i, body, err, s.reason)
						}
					} else if err != nil || string(body) != s.body || obj.Stale != s.stale {
						t.Errorf("step %d: %q, %v, want %q, stale %v", i, body, err, s.body, s.stale)
					}
					if got := script.count(listName); got != s.fetched {
						t.Errorf("step %d: %d upstream requests, want %d", i, got, s.fetched)
					}
				}
			})
		})
	}
}

func TestOneRefreshForManyCallers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		script := newScripted(map[string]string{listName: "v1.0.0\n"})
		script.delay = time.Second
		n, _ := newNode(t, node.Config{Upstream: script})
		for range 100 {
			go func() {
				if body, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, listName)}); err != nil || string(body) != "v1.0.0\n" {
					t.Errorf("read %q, %v", body, err)
				}
			}()
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := script.count(listName); got != 1 {
			t.Errorf("%d upstream requests, want 1", got)
		}
	})
}

// slowBodies is an upstream whose bodies take a while to end.
type slowBodies struct {
	*scriptedUpstream

	pause time.Duration
}

func (s slowBodies) Fetch(ctx context.Context, t target.Target, v upstream.Validators) (*upstream.Response, error) {
	resp, err := s.scriptedUpstream.Fetch(ctx, t, v)
	if err == nil {
		resp.Body = slowBody{resp.Body, s.pause}
	}
	return resp, err
}

type slowBody struct {
	io.ReadCloser

	pause time.Duration
}

func (b slowBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		time.Sleep(b.pause)
	}
	return n, err
}

// What upstream sends slowly is as old as its beginning.
func TestAgeOfASlowAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const pause = 8 * time.Second
		n, _ := newNode(t, node.Config{Upstream: slowBodies{newScripted(map[string]string{listName: "v1.0.0\n"}), pause}})
		if _, obj, err := read(t.Context(), n, cache.Request{Target: mustParse(t, listName)}); err != nil || obj.Age != pause {
			t.Errorf("age %v, %v, want %v", obj.Age, err, pause)
		}
	})
}

func TestUnchangedListIsNotSentAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		script := newScripted(map[string]string{listName: "v1.0.0\n"})
		script.etags[listName] = `"a"`
		n, _ := newNode(t, node.Config{Upstream: script})
		for range 2 {
			body, obj, err := read(t.Context(), n, cache.Request{Target: mustParse(t, listName)})
			if err != nil || string(body) != "v1.0.0\n" || obj.Age != 0 {
				t.Errorf("read %q with age %v, %v", body, obj.Age, err)
			}
			time.Sleep(time.Hour)
		}
	})
}

// TestListOutdoesAbsence lists a version whose .info was absent a moment ago:
// what we list must be had (protocol.md F4).
func TestListOutdoesAbsence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		info := "example.com/m/@v/v1.0.0.info"
		script := newScripted(nil)
		n, _ := newNode(t, node.Config{Upstream: script})
		if _, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, info)}); cache.ReasonOf(err) != cache.NotFound {
			t.Fatalf("an absent version: %v", err)
		}
		script.set(func() {
			script.bodies[info], script.bodies[listName] = []byte(`{"Version":"v1.0.0"}`), []byte("v1.0.0\n")
		})
		if _, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, listName)}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, info)}); err != nil {
			t.Errorf("a version that we list: %v", err)
		}
	})
}

// TestAnswersFromWhatIsHeld takes the upstream away from a node that holds
// versions but has never been asked for their list.
func TestAnswersFromWhatIsHeld(t *testing.T) {
	t.Parallel()
	versions := []string{"v1.0.0", "v1.2.0", "v1.10.0", "v2.0.0-rc.1", "v1.10.1-0.20260101000000-abcdefabcdef"}
	bodies := map[string]string{}
	for _, v := range versions {
		bodies["example.com/m/@v/"+v+".info"] = `{"Version":"` + v + `"}`
	}
	delete(bodies, "example.com/m/@v/v2.0.0-rc.1.info")
	script := newScripted(bodies)
	n, _ := newNode(t, node.Config{Upstream: script})
	for name := range bodies {
		if _, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, name)}); err != nil {
			t.Fatal(err)
		}
	}
	latest, err := target.ForModule("example.com/m", target.Latest)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "all versions are stored", func() bool {
		body, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, listName), Mode: cache.OnlyIfCached})
		return err == nil && string(body) == "v1.0.0\nv1.2.0\nv1.10.0\n"
	})
	script.set(func() { script.fail = &cache.Error{Reason: cache.Slow, Text: "no answer"} })
	tests := []struct {
		target target.Target
		want   string
	}{
		{mustParse(t, listName), "v1.0.0\nv1.2.0\nv1.10.0\n"},
		{latest, `{"Version":"v1.10.0"}`},
	}
	for _, test := range tests {
		body, obj, err := read(t.Context(), n, cache.Request{Target: test.target})
		if err != nil || string(body) != test.want || !obj.Stale {
			t.Errorf("%v: %q, %v, want %q, stale", test.target, body, err, test.want)
		}
	}
	if _, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, "example.com/m/@v/main.info")}); cache.ReasonOf(err) != cache.Slow {
		t.Errorf("a query while upstream is away: %v, want upstream's trouble", err)
	}
}

func TestOffline(t *testing.T) {
	t.Parallel()
	script := newScripted(map[string]string{listName: "v1.0.0\n"})
	script.offline = true
	n, _ := newNode(t, node.Config{Upstream: script})
	for _, name := range []string{listName, "example.com/m/@latest", "example.com/m/@v/main.info", "example.com/m/@v/v1.0.0.zip"} {
		if _, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, name)}); cache.ReasonOf(err) != cache.NotCached {
			t.Errorf("%s: %v, want reason %v", name, err, cache.NotCached)
		}
		if got := script.count(name); got != 0 {
			t.Errorf("%s: upstream was asked %d times", name, got)
		}
	}
}
