package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/internal/cache"
)

// TestHerd sends 200 requests at once for each of the small kinds: the Cache is
// asked once, for memory or for none.
func TestHerd(t *testing.T) {
	t.Parallel()
	for _, name := range []string{modName, listName} {
		for _, memory := range []int64{0, -1} {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCache(t)
				c.on(name, func(context.Context, cache.Request) (*cache.Object, error) {
					<-time.After(time.Second)
					return whole([]byte("content"), cache.Object{Source: cache.Upstream, TTL: time.Minute}), nil
				})
				g := newGateway(t, gateway.Config{Cache: c, Memory: memory})
				var mu sync.Mutex
				seen := map[string]int{}
				var wg sync.WaitGroup
				for range 200 {
					wg.Go(func() {
						r := do(g, "GET", "/"+name)
						if got := body(t, r); r.StatusCode != http.StatusOK || got != "content" {
							t.Errorf("got %d %q", r.StatusCode, got)
						}
						mu.Lock()
						defer mu.Unlock()
						seen[r.Header.Get("Cache-Status")]++
					})
				}
				wg.Wait()
				if got := len(c.asked()); got != 1 {
					t.Errorf("%s: got %d Gets, want 1", name, got)
				}
				if seen["ringmod; fwd=miss; stored; detail=upstream"] != 1 || seen["ringmod; fwd=miss; collapsed; detail=inflight"] != 199 {
					t.Errorf("%s: got %v, want one miss and 199 collapsed", name, seen)
				}
			})
		}
	}
}

// TestWaitersLeave checks that a flight outlives its first client, and not its
// last.
func TestWaitersLeave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCache(t)
		cancelled := 0
		c.on(modName, func(ctx context.Context, _ cache.Request) (*cache.Object, error) {
			select {
			case <-time.After(10 * time.Second):
				return whole([]byte("content"), cache.Object{}), nil
			case <-ctx.Done():
				cancelled++
				return nil, ctx.Err()
			}
		})
		logger, lines := logged(-10)
		g := newGateway(t, gateway.Config{Cache: c, Logger: logger})
		var wg sync.WaitGroup
		ask := func(patience time.Duration, want string) {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				got := askUntil(ctx, g, "/"+modName)
				if got != want {
					t.Errorf("patience of %v: got %q, want %q", patience, got, want)
				}
			})
		}
		ask(time.Second, "aborted")
		synctest.Wait()
		ask(time.Minute, "200 content")
		ask(2*time.Second, "aborted")
		wg.Wait()
		if got := len(c.asked()); got != 1 || cancelled != 0 {
			t.Errorf("got %d Gets, %d cancelled, want 1 and none", got, cancelled)
		}
		if got := strings.Count(lines(), `"level":"DEBUG","msg":"request","method":"GET","path":"/`+modName+`","status":499`); got != 2 {
			t.Errorf("got %d debug lines with status 499 in %s, want 2", got, lines())
		}

		// Now all of them leave: the flight ends, and the next one is a new one.
		g = newGateway(t, gateway.Config{Cache: c})
		ask(time.Second, "aborted")
		ask(2*time.Second, "aborted")
		wg.Wait()
		synctest.Wait()
		if cancelled != 1 {
			t.Errorf("got %d flights cancelled, want 1", cancelled)
		}
		ask(time.Minute, "200 content")
		wg.Wait()
	})
}

// askUntil returns status and body of a request whose client stays until ctx ends.
func askUntil(ctx context.Context, h http.Handler, path string) (got string) {
	w := httptest.NewRecorder()
	defer func() {
		if err, _ := recover().(error); errors.Is(err, http.ErrAbortHandler) {
			got = "aborted" + w.Body.String()
		}
	}()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil).WithContext(ctx))
	return fmt.Sprint(w.Code, " ", w.Body)
}

// TestModesInFlight checks who may join whom.
func TestModesInFlight(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		first, second string
		gets          int
	}{
		{"", "true", 1},
		{"true", "", 2},
		{"true", "true", 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newFakeCache(t)
			c.on(modName, func(_ context.Context, req cache.Request) (*cache.Object, error) {
				<-time.After(time.Second)
				if req.Mode == cache.OnlyIfCached {
					return nil, &cache.Error{Reason: cache.NotCached}
				}
				return whole([]byte("content"), cache.Object{}), nil
			})
			g := newGateway(t, gateway.Config{Cache: c})
			var wg sync.WaitGroup
			statuses := make([]int, 2)
			for i, header := range []string{test.first, test.second} {
				wg.Go(func() { statuses[i] = do(g, "GET", "/"+modName, "Disable-Module-Fetch", header).StatusCode })
				synctest.Wait()
			}
			wg.Wait()
			if got := len(c.asked()); got != test.gets {
				t.Errorf("%q then %q: got %d Gets, want %d", test.first, test.second, got, test.gets)
			}
			for i, header := range []string{test.first, test.second} {
				if header == "" && statuses[i] != 200 {
					t.Errorf("%q then %q: who may fill got %d", test.first, test.second, statuses[i])
				}
			}
		})
	}
}

// TestErrorsAreNotKept checks that the next request asks again.
func TestErrorsAreNotKept(t *testing.T) {
	t.Parallel()
	c := newFakeCache(t)
	g := newGateway(t, gateway.Config{Cache: c})
	for _, test := range failures {
		c.fail(modName, test.err)
		if r := do(g, "GET", "/"+modName); r.StatusCode != test.status {
			t.Errorf("%s: got %d, want %d", test.name, r.StatusCode, test.status)
		}
	}
	c.serve(modName, []byte("content"), cache.Object{})
	if r := do(g, "GET", "/"+modName); r.StatusCode != http.StatusOK {
		t.Errorf("got %d after errors, want 200", r.StatusCode)
	}
}

// TestFreshness follows a list through time.
func TestFreshness(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCache(t)
		g := newGateway(t, gateway.Config{Cache: c})
		gets := 0
		step := func(after time.Duration, text, age, status string, wantGets int) {
			t.Helper()
			<-time.After(after)
			r := do(g, "GET", "/"+listName)
			if got := body(t, r); got != text {
				t.Errorf("got %q, want %q", got, text)
			}
			checkHeaders(t, r, "Age", age, "Cache-Status", "ringmod; "+status, "ETag", digest(text))
			gets += wantGets
			if got := len(c.asked()); got != gets {
				t.Errorf("%q: got %d Gets, want %d", text, got, gets)
			}
		}
		c.serve(listName, []byte("one"), cache.Object{Age: 20 * time.Second, TTL: 40 * time.Second})
		step(0, "one", "20", "hit; detail=disk", 1)
		step(39*time.Second, "one", "59", "hit; detail=memory", 0)
		c.serve(listName, []byte("two"), cache.Object{Age: time.Second, TTL: time.Minute})
		step(time.Second, "two", "1", "hit; detail=disk", 1)

		// A node that was away knows an older list: ours is newer.
		c.serve(listName, []byte("one"), cache.Object{Age: 5 * time.Minute, TTL: time.Hour})
		step(time.Minute, "two", "61", "fwd=stale; detail=memory", 1)
		step(999*time.Millisecond, "two", "61", "fwd=stale; detail=memory", 0)
		step(time.Millisecond, "two", "62", "fwd=stale; detail=memory", 1)

		// The same list, said to be older than we know it to be.
		c.serve(listName, []byte("two"), cache.Object{Age: 5 * time.Minute, TTL: 10 * time.Minute})
		step(time.Second, "two", "63", "hit; detail=disk", 1)

		// What a node put together without upstream has no age and is not newer.
		c.serve(listName, []byte("held"), cache.Object{Stale: true})
		step(10*time.Minute, "two", "663", "fwd=stale; detail=memory", 1)

		// A stale one is not held for long.
		<-time.After(10 * time.Minute)
		c.serve(listName, []byte("three"), cache.Object{Age: 2 * time.Minute, TTL: time.Minute, Stale: true})
		step(0, "three", "120", "fwd=stale; detail=disk", 1)
		step(900*time.Millisecond, "three", "120", "fwd=stale; detail=memory", 0)
		step(100*time.Millisecond, "three", "120", "fwd=stale; detail=disk", 1)

		// Trouble: what we know is better than an error, for a week.
		for i, reason := range []cache.Reason{cache.Busy, cache.Broken, cache.Slow, cache.NotCached} {
			c.fail(listName, &cache.Error{Reason: reason})
			step(2*time.Second, "three", fmt.Sprint(120+2*(i+1)), "fwd=stale; detail=memory", 1)
		}
		<-time.After(7 * 24 * time.Hour)
		if r := do(g, "GET", "/"+listName); r.StatusCode != http.StatusNotFound {
			t.Errorf("got %d after a week of trouble, want the error", r.StatusCode)
		}
	})
}

// TestAbsenceOutdoesMemory checks that a source's own no is passed on though an
// older yes is in memory.
func TestAbsenceOutdoesMemory(t *testing.T) {
	t.Parallel()
	c := newFakeCache(t)
	c.serve(listName, []byte("v1.0.0\n"), cache.Object{})
	g := newGateway(t, gateway.Config{Cache: c})
	do(g, "GET", "/"+listName)
	for reason, want := range map[cache.Reason]int{cache.NotFound: 404, cache.Gone: 410, cache.Denied: 403, cache.Mismatch: 502, cache.Internal: 500} {
		c.fail(listName, &cache.Error{Reason: reason})
		if r := do(g, "GET", "/"+listName); r.StatusCode != want {
			t.Errorf("%v: got %d, want %d", reason, r.StatusCode, want)
		}
	}
}

// TestImmutableIsForEver checks that what does not change is asked for once.
func TestImmutableIsForEver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCache(t)
		g := newGateway(t, gateway.Config{Cache: c, Sumdbs: []string{"sum.golang.org"}})
		names := []string{modName, infoName, zipName, "sumdb/sum.golang.org/tile/8/0/001", "sumdb/sum.golang.org/lookup/golang.org/x/mod@v0.20.0"}
		for _, name := range names {
			c.serve(name, []byte(name), cache.Object{})
			do(g, "GET", "/"+name)
		}
		<-time.After(1000 * time.Hour)
		for _, name := range names {
			checkHeaders(t, do(g, "GET", "/"+name), "Cache-Status", "ringmod; hit; detail=memory", "Age", "")
		}
		if got := len(c.asked()); got != len(names) {
			t.Errorf("got %d Gets, want %d", got, len(names))
		}
	})
}

// TestTooLargeForMemory checks that what is too large is passed on whole and
// not kept.
func TestTooLargeForMemory(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{zipName: 256<<10 + 1, modName: 3 << 20} {
		for _, known := range []bool{true, false} {
			text := strings.Repeat("x", size)
			c := newFakeCache(t)
			c.on(name, func(context.Context, cache.Request) (*cache.Object, error) {
				o := whole([]byte(text), cache.Object{ModTime: modTime})
				if !known {
					o.Size = -1
				}
				return o, nil
			})
			g := newGateway(t, gateway.Config{Cache: c})
			for range 2 {
				r := do(g, "GET", "/"+name)
				if got := body(t, r); got != text {
					t.Errorf("%s: got %d bytes, want %d", name, len(got), size)
				}
				checkHeaders(t, r, "Cache-Status", "ringmod; hit; detail=disk")
			}
		}
	}
}

// TestWrongBytesAreNotKept checks that what the Cache says of small objects is
// held against them.
func TestWrongBytesAreNotKept(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*cache.Object){
		"digest": func(o *cache.Object) { o.SHA256[0]++ },
		"short":  func(o *cache.Object) { o.Size++ },
		"long":   func(o *cache.Object) { o.Size-- },
	} {
		for _, object := range []string{modName, zipName} {
			c := newFakeCache(t)
			c.on(object, func(context.Context, cache.Request) (*cache.Object, error) {
				o := whole([]byte("content"), cache.Object{})
				spoil(o)
				return o, nil
			})
			g := newGateway(t, gateway.Config{Cache: c})
			for range 2 {
				if r := do(g, "GET", "/"+object); r.StatusCode != http.StatusInternalServerError {
					t.Errorf("%s of %s: got %d, want 500", name, object, r.StatusCode)
				}
			}
			if got := len(c.asked()); got != 2 {
				t.Errorf("%s of %s: got %d Gets, want 2", name, object, got)
			}
		}
	}
}

// Who joins a flight that ends in trouble gets a copy that came after the flight had
// looked, and the trouble where none came.
func TestJoinsTrouble(t *testing.T) {
	t.Parallel()
	for _, comes := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			c := newFakeCache(t)
			c.on(modName, func(_ context.Context, req cache.Request) (*cache.Object, error) {
				switch {
				case req.Mode == cache.AllowFill:
					<-time.After(10 * time.Second)
					return nil, &cache.Error{Reason: cache.Slow, Source: "upstream", Text: "does not answer"}
				case comes:
					return whole([]byte("content"), cache.Object{}), nil
				default:
					return nil, &cache.Error{Reason: cache.NotCached}
				}
			})
			g := newGateway(t, gateway.Config{Cache: c})
			status := map[string]int{}
			var mu sync.Mutex
			var wg sync.WaitGroup
			for _, who := range []string{"first", "joins"} {
				wg.Go(func() {
					r := do(g, "GET", "/"+modName)
					mu.Lock()
					defer mu.Unlock()
					status[who] = r.StatusCode
				})
				time.Sleep(5 * time.Second)
			}
			wg.Wait()
			want := map[string]int{"first": http.StatusGatewayTimeout, "joins": http.StatusGatewayTimeout}
			if comes {
				want["joins"] = http.StatusOK
			}
			if !maps.Equal(status, want) || len(c.asked()) != 2 {
				t.Errorf("a copy comes: %v: got %v after %d Gets, want %v after 2", comes, status, len(c.asked()), want)
			}
		})
	}
}
