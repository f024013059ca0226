package node_test

import (
	"bytes"
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
)

// listed is a list with an age, as another node gives it.
func listed(body string, age time.Duration, stale bool) *cache.Object {
	return &cache.Object{
		Size: int64(len(body)), SHA256: [32]byte{1}, Age: age, TTL: max(0, time.Minute-age), Stale: stale,
		Body: &partly{bytes.NewReader([]byte(body)), io.EOF, "", false},
	}
}

// What a node answers with a list of its own (of that age, 0 for none), what the
// coordinator gives or not, and what there is in the region; and what it keeps.
func TestListFromOthers(t *testing.T) {
	t.Parallel()
	const own, home, region = "v1.0.0\n", "v1.0.0\nv1.1.0\n", "v1.0.0\nv1.2.0\n"
	nobody := func() (*cache.Object, error) { return nil, &cache.Error{Reason: cache.Slow, Source: "proxy.example"} }
	gives := func(body string, age time.Duration, stale bool) func() (*cache.Object, error) {
		return func() (*cache.Object, error) { return listed(body, age, stale), nil }
	}
	const hour = time.Hour
	for _, test := range []struct {
		name     string
		own      time.Duration
		home     func() (*cache.Object, error)
		region   func() (*cache.Object, error)
		want     string // "": no answer
		age      time.Duration
		stale    bool
		kept     string
		keptAged time.Duration
	}{
		{"new", 0, gives(home, 20*time.Second, false), nobody, home, 20 * time.Second, false, home, 20 * time.Second},
		{"younger", hour, gives(home, 20*time.Second, false), nobody, home, 20 * time.Second, false, home, 20 * time.Second},
		{"stale and younger", hour, gives(home, 10*time.Minute, true), nobody, home, 10 * time.Minute, true, home, 10 * time.Minute},
		{"stale and older", hour, gives(home, 2*hour, true), nobody, own, hour, true, own, hour},
		{"stale, none here", 0, gives(home, 2*hour, true), nobody, home, 2 * hour, true, home, 2 * hour},
		{"made from what is held", 0, gives(home, 0, true), nobody, home, 0, true, "", 0},
		{"made from what is held, a document here", hour, gives(home, 0, true), nobody, own, hour, true, own, hour},
		{"garbage", hour, gives("<html>", 0, false), nobody, "v1.9.0\n", 0, false, "v1.9.0\n", 0},
		{"trouble, younger in the region", hour, nobody, gives(region, 10*time.Minute, true), region, 10 * time.Minute, true, region, 10 * time.Minute},
		{"trouble, older in the region", hour, nobody, gives(region, 2*hour, true), own, hour, true, own, hour},
		{"trouble, something in the region", 0, nobody, gives(region, 2*hour, true), region, 2 * hour, true, region, 2 * hour},
		{"trouble, too old in the region", 0, nobody, gives(region, 8*24*hour, true), "", 0, false, region, 8 * 24 * hour},
		{"trouble", hour, nobody, nobody, own, hour, true, own, hour},
		{"trouble, nothing anywhere", 0, nobody, nobody, "", 0, false, "", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				up := newScripted(map[string]string{listName: "v1.9.0\n"})
				peers := newPeers(t, "near1")
				peers.home = func(context.Context, string, cache.Request) (*cache.Object, error) { return test.home() }
				peers.peek = func(target.Target) (*cache.Object, error) { return test.region() }
				n, mem := newNode(t, node.Config{Upstream: up, Peers: peers})
				if test.own > 0 {
					if err := mem.PutDocument(listName, store.Document{Body: []byte(own), Fetched: time.Now().Add(-test.own)}); err != nil {
						t.Fatal(err)
					}
				}
				body, obj, err := read(t.Context(), n, cache.Request{Target: mustParse(t, listName)})
				if test.want == "" {
					if cache.ReasonOf(err) != cache.Slow {
						t.Errorf("got %q, %v, want upstream's trouble", body, err)
					}
				} else if err != nil || string(body) != test.want || obj.Age != test.age || obj.Stale != test.stale {
					t.Errorf("got %q, %v, %+v, want %q, age %v, stale %v", body, err, obj, test.want, test.age, test.stale)
				}
				doc, err := mem.Document(listName)
				if string(doc.Body) != test.kept || (err == nil && time.Since(doc.Fetched) != test.keptAged) {
					t.Errorf("kept %q of %v, want %q of %v", doc.Body, doc.Fetched, test.kept, test.keptAged)
				}
			})
		})
	}
}

// A coordinator in trouble is not asked at each request.
func TestStaleListIsNotAskedForAgainAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		peers := newPeers(t, "near1")
		peers.home = func(context.Context, string, cache.Request) (*cache.Object, error) {
			return listed("v1.0.0\n", time.Hour, true), nil
		}
		n, _ := newNode(t, node.Config{Upstream: newScripted(nil), Peers: peers})
		for _, step := range []struct {
			after time.Duration
			asked int
		}{{0, 1}, {time.Second, 0}, {3 * time.Second, 0}, {2 * time.Second, 1}} {
			time.Sleep(step.after)
			if _, obj, err := read(t.Context(), n, cache.Request{Target: mustParse(t, listName)}); err != nil || !obj.Stale {
				t.Errorf("after %v: %+v, %v", step.after, obj, err)
			}
			synctest.Wait() // whoever has heard of trouble does not wait
			if got := len(peers.requests()); got != step.asked {
				t.Errorf("after %v: asked %d times, want %d", step.after, got, step.asked)
			}
		}
	})
}

// Who peeks gets a document or nothing: a list made from what a node happens to
// hold has no age.
func TestPeekAtAList(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		up := newScripted(map[string]string{infoName: infoBody, listName: "v1.0.0\n"})
		n, _ := newNode(t, node.Config{Upstream: up})
		if _, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, infoName)}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		peek := cache.Request{Target: mustParse(t, listName), Mode: cache.Peek}
		if body, _, err := read(t.Context(), n, peek); cache.ReasonOf(err) != cache.NotCached {
			t.Errorf("without a document: %q, %v, want NotCached", body, err)
		}
		if _, _, err := read(t.Context(), n, cache.Request{Target: peek.Target}); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			after time.Duration
			found bool
		}{{0, true}, {6 * 24 * time.Hour, true}, {2 * 24 * time.Hour, false}} {
			time.Sleep(step.after)
			if body, obj, err := read(t.Context(), n, peek); (err == nil) != step.found || (err == nil && obj.Stale != (obj.Age > 0)) {
				t.Errorf("%v later: %q, %+v, %v", step.after, body, obj, err)
			}
		}
		if got := up.count(listName); got != 1 {
			t.Errorf("%d upstream requests, want 1", got)
		}
	})
}

// A document from the future, which a clock that was set back leaves behind, does not
// stay.
func TestListFromTheFuture(t *testing.T) {
	t.Parallel()
	for _, ids := range [][]string{{"near1"}, {"self"}} {
		synctest.Test(t, func(t *testing.T) {
			peers := newPeers(t, ids...)
			peers.home = func(context.Context, string, cache.Request) (*cache.Object, error) {
				return listed("v1.1.0\n", 0, false), nil
			}
			n, mem := newNode(t, node.Config{Upstream: newScripted(map[string]string{listName: "v1.1.0\n"}), Peers: peers})
			if err := mem.PutDocument(listName, store.Document{Body: []byte("v1.0.0\n"), Fetched: time.Now().Add(time.Hour)}); err != nil {
				t.Fatal(err)
			}
			body, obj, err := read(t.Context(), n, cache.Request{Target: mustParse(t, listName)})
			if err != nil || string(body) != "v1.1.0\n" || obj.Stale {
				t.Errorf("by way of %q: %q, %+v, %v", ids, body, obj, err)
			}
		})
	}
}
