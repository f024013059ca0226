package upstream_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

func TestRetryAfterIsRemembered(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	s.Fault(mod, upstreamtest.Fault{Status: 503, Body: "maintenance", Header: http.Header{"Retry-After": {"30"}}, Times: 1})
	other := upstreamtest.New(t, mods...)
	c := client(t, upstream.Config{List: s.URL + "|" + other.URL})
	alone := client(t, upstream.Config{List: s.URL})
	_, err := read(t, alone, mod)
	if e := checkError(t, err, cache.Busy, "503 Service Unavailable: maintenance"); e.RetryAfter != 30*time.Second {
		t.Errorf("RetryAfter %v, want 30s", e.RetryAfter)
	}
	_, err = read(t, alone, zip)
	if e := checkError(t, err, cache.Busy, "maintenance"); e.RetryAfter <= 25*time.Second || e.RetryAfter > 30*time.Second {
		t.Errorf("remembered RetryAfter %v, want a little under 30s", e.RetryAfter)
	}
	if got := len(s.Requests()); got != 1 {
		t.Errorf("%d requests, want 1", got)
	}
	if _, err := read(t, c, mod); err != nil {
		t.Errorf("another client, behind |: %v", err)
	}
}

func TestRetryAfterThatFitsIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	s.Fault(mod, upstreamtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"1"}}, Times: 1})
	c := client(t, upstream.Config{List: s.URL, Timeouts: upstream.Timeouts{Retry: 5 * time.Second}})
	start := time.Now()
	if _, err := read(t, c, mod); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 900*time.Millisecond {
		t.Errorf("asked again after %v, want 1s", d)
	}
}

func TestTroubleThatPassesIsNotSeen(t *testing.T) {
	t.Parallel()
	for _, fault := range []upstreamtest.Fault{{Drop: true}, {Status: 502}, {Status: 503}, {Status: 504}} {
		s := upstreamtest.New(t, mods...)
		fault.Times = 2
		s.Fault("", fault)
		if _, err := read(t, client(t, upstream.Config{List: s.URL}), mod); err != nil {
			t.Errorf("%+v: %v", fault, err)
		}
		if got := len(s.Requests()); got != 3 {
			t.Errorf("%+v: %d requests, want 3", fault, got)
		}
	}
}

// TestHostThatIsAwayIsLeftAlone waits for the host once; who comes next is told at once, and one
// request now and then finds out when it is back.
func TestHostThatIsAwayIsLeftAlone(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	s.Fault("", upstreamtest.Fault{Drop: true, Times: 5})
	c := client(t, upstream.Config{List: s.URL})
	for range 10 {
		_, err := read(t, c, mod)
		checkError(t, err, cache.Broken, "connection reset")
		if got := len(s.Requests()); got != 4 {
			t.Errorf("%d requests, want 4", got)
		}
	}
	waitFor(t, "the host's return", func() bool {
		_, err := read(t, c, mod)
		return err == nil
	})
	if got := len(s.Requests()); got != 6 {
		t.Errorf("%d requests, want the 4 of the first, one that tried, and one that worked", got)
	}
	s.Fault("", upstreamtest.Fault{Drop: true, Times: 1})
	if _, err := read(t, c, mod); err != nil {
		t.Errorf("patience did not come back: %v", err)
	}
}

// waitFor polls until ok or fails after a while.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestRequestsPerHostAreLimited(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	var now, most atomic.Int32
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		s.ServeHTTP(w, r)
	})
	block := make(chan struct{})
	s.Fault(zip, upstreamtest.Fault{Block: block})
	c := client(t, upstream.Config{List: base, PerHost: 4, Timeouts: upstream.Timeouts{Header: time.Minute}})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := read(t, c, zip); err != nil {
				t.Error(err)
			}
		})
	}
	waitFor(t, "three zips", func() bool { return now.Load() == 3 })
	if _, err := read(t, c, mod); err != nil { // zips leave room for it
		t.Error(err)
	}
	if got := most.Load(); got != 4 {
		t.Errorf("%d requests at once, want 3 zips and the mod", got)
	}
	close(block)
	wg.Wait()
	if got := most.Load(); got > 4 {
		t.Errorf("%d requests at once, want at most 4", got)
	}
}

func TestWaitingForASlotEndsWithTheContext(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	s.Fault(zip, upstreamtest.Fault{StallAfter: 1})
	c := client(t, upstream.Config{List: s.URL, PerHost: 1, Timeouts: upstream.Timeouts{Stall: time.Minute}})
	holder, err := c.Fetch(t.Context(), parse(t, zip), upstream.Validators{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{mod, zip} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err = readCtx(ctx, t, c, name)
		cancel()
		checkError(t, err, cache.Slow, "no answer in the time")
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v does not match context.DeadlineExceeded", err)
		}
	}
	holder.Body.Close()
	s.Heal()
	for _, name := range []string{zip, mod, zip} {
		if _, err := read(t, c, name); err != nil {
			t.Errorf("a slot was lost: %v", err)
		}
	}
}

func TestContextEndsARequest(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]upstreamtest.Fault{
		"header": {DelayHeader: time.Hour}, "backoff": {Status: 503}, "body": {StallAfter: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := upstreamtest.New(t, mods...)
			s.Fault("", fault)
			c := client(t, upstream.Config{List: s.URL + "|" + s.URL, Timeouts: upstream.Timeouts{Retry: time.Hour}})
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, err := readCtx(ctx, t, c, zip)
			checkError(t, err, cache.Slow, "no answer in the time that the request had")
			if got := len(s.Requests()); got != 1 {
				t.Errorf("%d requests, want 1", got)
			}
		})
	}
}

func TestSlowConnect(t *testing.T) {
	t.Parallel()
	hang := func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	c := client(t, upstream.Config{List: "https://a.test", Dial: hang, Timeouts: upstream.Timeouts{Connect: 50 * time.Millisecond, Retry: 300 * time.Millisecond}})
	_, err := read(t, c, mod)
	checkError(t, err, cache.Slow, "no connection within 50ms")
}

func TestSlowHandshake(t *testing.T) {
	t.Parallel()
	block := make(chan struct{})
	t.Cleanup(func() { close(block) })
	addr := listenAndHold(t, block)
	c := client(t, upstream.Config{List: "https://" + addr, Timeouts: upstream.Timeouts{TLS: 50 * time.Millisecond, Retry: 300 * time.Millisecond}})
	_, err := read(t, c, mod)
	checkError(t, err, cache.Slow, "TLS handshake timeout")
}

func TestObserverSeesEachAttempt(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	s.Fault("", upstreamtest.Fault{Drop: true, Times: 1})
	s.Fault("", upstreamtest.Fault{Status: 502, Times: 1})
	var mu sync.Mutex
	var got []int
	c := client(t, upstream.Config{List: s.URL, Observer: func(_ string, status int, d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		if d > 0 {
			got = append(got, status)
		}
	}})
	if _, err := read(t, c, mod); err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[0] != 0 || got[1] != 502 || got[2] != 200 {
		t.Errorf("observed %v, want [0 502 200]", got)
	}
}
