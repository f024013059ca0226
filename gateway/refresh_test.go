package gateway_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/refresh"
)

// An order has memory asked for anew, once, and who is asked hears of it. An older answer
// than the one in memory is not taken for all that.
func TestOrderToRefresh(t *testing.T) {
	t.Parallel()
	f, orders := newFakeCache(t), refresh.New()
	g := newGateway(t, gateway.Config{Cache: f, Refreshes: orders})
	give := func() uint64 {
		given, err := orders.Give(refresh.Subject{Path: "example.com", Below: true})
		if err != nil {
			t.Fatal(err)
		}
		return given[0].Number
	}
	check := func(what, want string, asked int, order uint64) {
		t.Helper()
		got := body(t, do(g, http.MethodGet, "/"+listPath))
		calls := f.asked()
		if got != want || len(calls) != asked || calls[asked-1].Refresh != order {
			t.Errorf("%s: %q, asked %+v, want %q, %d times, order %d", what, got, calls, want, asked, order)
		}
	}
	f.serve(listPath, []byte("v1.0.0\n"), cache.Object{TTL: time.Hour, Age: time.Second})
	check("before", "v1.0.0\n", 1, 0)
	f.serve(listPath, []byte("v1.0.0\nv1.1.0\n"), cache.Object{TTL: time.Hour})
	check("without an order", "v1.0.0\n", 1, 0)
	first := give()
	check("under an order", "v1.0.0\nv1.1.0\n", 2, first)
	check("again", "v1.0.0\nv1.1.0\n", 2, first)
	f.serve(listPath, []byte("v1.0.0\n"), cache.Object{TTL: time.Hour, Age: time.Minute})
	second := give()
	check("by a node that has not heard of it", "v1.0.0\nv1.1.0\n", 3, second)
	f.fail(listPath, &cache.Error{Reason: cache.Broken, Text: "refused"})
	third := give()
	check("while upstream fails", "v1.0.0\nv1.1.0\n", 4, third)
	check("again while it fails", "v1.0.0\nv1.1.0\n", 4, third)
}

func TestNoHooks(t *testing.T) {
	t.Parallel()
	g := newGateway(t, gateway.Config{Cache: newFakeCache(t)})
	got := do(g, http.MethodPost, "/-/hooks/push")
	if text := body(t, got); got.StatusCode != http.StatusNotFound || text == "" {
		t.Errorf("got %d, %q", got.StatusCode, text)
	}
}
