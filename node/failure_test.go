package node_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// holding asks n about t and checks that it has no copy of it.
func holding(t *testing.T, n *node.Node, of target.Target) *ringmodv1.Holding {
	t.Helper()
	h, err := n.Holding(t.Context(), of)
	if err != nil || h.GetCopy() != nil {
		t.Fatalf("Holding(%s) = %v, %v, want no copy", of, h, err)
	}
	return h
}

func TestHoldingTellsWhyABuildFailed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		up := newScripted(nil)
		n, _ := newNode(t, node.Config{Upstream: up})
		info, list := fileOf(t, "example.com/m", "v1.0.0", target.Info), mustParse(t, "example.com/m/@v/list")
		if h := holding(t, n, info); h.GetNegative() != nil || h.GetLastError() != nil || h.GetLastErrorAge() != nil {
			t.Errorf("before anything was asked: got %v", h)
		}

		for _, of := range []target.Target{info, list} {
			if _, _, err := read(t.Context(), n, cache.Request{Target: of}); cache.ReasonOf(err) != cache.NotFound {
				t.Fatalf("got %v, want not found", err)
			}
			time.Sleep(20 * time.Second)
			no := holding(t, n, of).GetNegative()
			if no.GetAge().AsDuration() != 20*time.Second || no.GetTtl().AsDuration() != 40*time.Second ||
				no.GetError().GetReason() != ringmodv1.Reason_REASON_NOT_FOUND || no.GetError().GetSource() != "scripted" {
				t.Errorf("%s: got %v, want scripted's no of 20 s ago for 40 s more", of, no)
			}
			time.Sleep(40 * time.Second)
			h := holding(t, n, of)
			if h.GetNegative() != nil || h.GetLastError().GetReason() != ringmodv1.Reason_REASON_NOT_FOUND || h.GetLastErrorAge().AsDuration() != time.Minute {
				t.Errorf("%s: got %v, want the no of a minute ago, believed no more", of, h)
			}
		}

		up.set(func() {
			up.fail = &cache.Error{Reason: cache.Slow, Source: "mirror.example.com", Text: "sent nothing\nfor 30s", RetryAfter: 30 * time.Second}
		})
		if _, _, err := read(t.Context(), n, cache.Request{Target: info}); cache.ReasonOf(err) != cache.Slow {
			t.Fatalf("got %v, want slow", err)
		}
		for _, test := range []struct{ wait, age, retry time.Duration }{{20 * time.Second, 20 * time.Second, 10 * time.Second}, {time.Hour, time.Hour + 20*time.Second, 0}} {
			time.Sleep(test.wait)
			h := holding(t, n, info)
			got := h.GetLastError()
			if got.GetReason() != ringmodv1.Reason_REASON_UPSTREAM_SLOW || got.GetSource() != "mirror.example.com" || got.GetText() != "sent nothing for 30s" ||
				got.GetRetryAfter().AsDuration() != test.retry || h.GetLastErrorAge().AsDuration() != test.age {
				t.Errorf("got %v, want what mirror.example.com did %v ago, retry after %v", h, test.age, test.retry)
			}
		}
	})
}

// TestFailuresAreBounded asks for more names than are kept: trouble stays known
// while absences come and go.
func TestFailuresAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		up := newScripted(nil)
		n, _ := newNode(t, node.Config{Upstream: up})
		ask := func(name string) target.Target {
			of := fileOf(t, name, "v1.0.0", target.Mod)
			if _, _, err := read(t.Context(), n, cache.Request{Target: of}); err == nil {
				t.Fatal("got an object")
			}
			return of
		}
		up.set(func() { up.fail = &cache.Error{Reason: cache.Broken, Source: "scripted", Text: "500"} })
		broken := ask("example.com/broken")
		up.set(func() { up.fail = nil })
		first := ask("example.com/first")
		for i := range 5000 {
			ask(fmt.Sprintf("example.com/m%d", i))
		}
		last := ask("example.com/last")
		time.Sleep(time.Hour)
		for of, want := range map[target.Target]bool{broken: true, first: false, last: true} {
			if got := holding(t, n, of).GetLastError() != nil; got != want {
				t.Errorf("%s: failure known is %v, want %v", of.Describe(), got, want)
			}
		}
	})
}
