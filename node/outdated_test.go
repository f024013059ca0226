package node_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/refresh"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node"
)

// ordered is a node with the orders that it knows.
type ordered struct {
	t      *testing.T
	node   *node.Node
	script *scriptedUpstream
	orders *refresh.Orders
}

func newOrdered(t *testing.T) *ordered {
	t.Helper()
	o := &ordered{t: t, script: newScripted(map[string]string{listName: "v1.0.0\n"}), orders: refresh.New()}
	o.node, _ = newNode(t, node.Config{Upstream: o.script, Refreshes: o.orders})
	return o
}

func (o *ordered) grow() {
	o.script.set(func() { o.script.bodies[listName] = []byte("v1.0.0\nv1.1.0\n") })
}

func (o *ordered) give() uint64 {
	o.t.Helper()
	given, err := o.orders.Give(refresh.Subject{Path: "example.com/m"})
	if err != nil {
		o.t.Fatal(err)
	}
	return given[0].Number
}

// check reads the list, and counts how often upstream was asked for it in all.
func (o *ordered) check(what string, req cache.Request, want string, fetched int) {
	o.t.Helper()
	req.Target = mustParse(o.t, listName)
	body, obj, err := read(o.t.Context(), o.node, req)
	synctest.Wait()
	if got := o.script.count(listName); err != nil || string(body) != want || obj.Stale || got != fetched {
		o.t.Errorf("%s: %q, %v, asked %d times, want %q and %d", what, body, err, got, want, fetched)
	}
}

const grown = "v1.0.0\nv1.1.0\n"

func TestOrderOutdatesAList(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOrdered(t)
		o.check("before", cache.Request{}, "v1.0.0\n", 1)
		o.grow()
		o.check("without an order", cache.Request{}, "v1.0.0\n", 1)
		o.give()
		o.check("under an order", cache.Request{}, grown, 2)
		o.check("once more", cache.Request{}, grown, 2)
		o.check("once more for a node", cache.Request{Mode: cache.Coordinate}, grown, 2)
		time.Sleep(time.Second)
		o.give()
		o.check("under the next order", cache.Request{}, grown, 3)
	})
}

// Who asks tells of the order that he knows.
func TestOrderComesWithARequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o, elsewhere := newOrdered(t), newOrdered(t)
		o.check("before", cache.Request{}, "v1.0.0\n", 1)
		o.grow()
		number := elsewhere.give()
		o.check("by who knows of an order", cache.Request{Mode: cache.Coordinate, Refresh: number}, grown, 2)
		o.check("by who does so, too", cache.Request{Mode: cache.Coordinate, Refresh: number}, grown, 2)
		o.check("by who does not", cache.Request{}, grown, 2)
		o.check("by who makes numbers up", cache.Request{Refresh: 1<<64 - 1}, grown, 2)
	})
}

// What was asked for before an order does not count as an answer to it, though it comes
// later.
func TestOrderWhileUpstreamIsAsked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOrdered(t)
		o.script.delay = 2 * time.Second
		go func() { _, _, _ = read(t.Context(), o.node, cache.Request{Target: mustParse(t, listName)}) }()
		time.Sleep(time.Second)
		o.give()
		time.Sleep(500 * time.Millisecond)
		o.check("while the other one is on its way", cache.Request{}, "v1.0.0\n", 2)
		o.check("then", cache.Request{}, "v1.0.0\n", 2)
	})
}

func TestOrderOutdatesAbsence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOrdered(t)
		info := fileOf(t, "example.com/m", "v1.1.0", target.Info)
		for range 2 {
			if _, _, err := read(t.Context(), o.node, cache.Request{Target: info}); cache.ReasonOf(err) != cache.NotFound {
				t.Fatalf("got %v", err)
			}
		}
		o.script.set(func() { o.script.bodies[info.String()] = []byte(`{"Version":"v1.1.0"}`) })
		time.Sleep(time.Second)
		number := newOrdered(t).give()
		if _, _, err := read(t.Context(), o.node, cache.Request{Target: info, Refresh: number}); err != nil {
			t.Error(err)
		}
		if got := o.script.count(info.String()); got != 2 {
			t.Errorf("upstream was asked %d times, want 2", got)
		}
	})
}

// Orders do not wear out an upstream that is in trouble.
func TestOrderWhileUpstreamFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOrdered(t)
		o.check("before", cache.Request{}, "v1.0.0\n", 1)
		o.script.set(func() { o.script.fail = &cache.Error{Reason: cache.Broken, Text: "refused"} })
		o.give()
		for range 40 {
			body, obj, err := read(t.Context(), o.node, cache.Request{Target: mustParse(t, listName)})
			if err != nil || string(body) != "v1.0.0\n" || !obj.Stale {
				t.Fatalf("got %q, %v", body, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if got := o.script.count(listName); got != 2 {
			t.Errorf("upstream was asked %d times, want 2", got)
		}
	})
}

func TestRenew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOrdered(t)
		list, latest := mustParse(t, listName), mustParse(t, "example.com/m/@latest")
		for i, want := range []struct {
			changed bool
			body    string
		}{{true, "v1.0.0\n"}, {false, "v1.0.0\n"}, {true, grown}} {
			if i == 2 {
				o.grow()
			}
			time.Sleep(time.Second)
			body, changed, err := o.node.Renew(t.Context(), list, o.give())
			if err != nil || string(body) != want.body || changed != want.changed {
				t.Errorf("%d: %q, new: %v, %v, want %+v", i, body, changed, err, want)
			}
		}
		if body, changed, err := o.node.Renew(t.Context(), latest, o.give()); body != nil || changed || err != nil || o.script.count(latest.String()) != 0 {
			t.Errorf("what nobody has asked for: %q, %v, %v", body, changed, err)
		}
		o.script.set(func() { o.script.fail = &cache.Error{Reason: cache.Broken, Text: "refused"} })
		time.Sleep(time.Second)
		if _, _, err := o.node.Renew(t.Context(), list, o.give()); cache.ReasonOf(err) != cache.Broken {
			t.Errorf("without upstream: %v", err)
		}
	})
}
