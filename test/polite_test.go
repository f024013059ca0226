package test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// touchy is an upstream that has had enough at some time and says for how long. From then on
// it is well, and notes who comes.
type touchy struct {
	*upstreamtest.Server

	after time.Duration // Retry-After
	once  chan struct{} // closed: one of the requests that wait is told to go away
	free  chan struct{} // closed: the others go on

	mu      sync.Mutex
	waiting int
	told    time.Time // when it had enough
	came    []time.Time
}

func (u *touchy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	enough := !u.told.IsZero()
	u.waiting++
	u.came = append(u.came, time.Now())
	u.mu.Unlock()
	if enough {
		u.Server.ServeHTTP(w, r)
		return
	}
	<-u.once
	u.mu.Lock()
	first := u.told.IsZero()
	if first {
		u.told = time.Now()
	}
	u.mu.Unlock()
	if first {
		w.Header().Set("Retry-After", strconv.Itoa(int(u.after.Seconds())))
		http.Error(w, "slow down, please", http.StatusTooManyRequests)
		return
	}
	<-u.free
	u.Server.ServeHTTP(w, r)
}

// since returns when requests came, counted from the moment it had enough.
func (u *touchy) since() []time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	var since []time.Duration
	for _, at := range u.came {
		if !at.Before(u.told) {
			since = append(since, at.Sub(u.told))
		}
	}
	slices.Sort(since)
	return since
}

// TestOnePoliteVoice queues 100 modules at five nodes. Their host tells one of them to go away
// while it works for the others; no node may come back before its time, and then not faster than
// the cluster may. Requests that were there already are finished.
func TestOnePoliteVoice(t *testing.T) {
	t.Parallel()
	const nodes, modules, rate, atOnce = 5, 100, 20, 10
	after := 30 * time.Second
	if testing.Short() {
		after = 4 * time.Second // within the budget of clients, who wait for it
	}
	host := &touchy{Server: upstreamtest.NewUnstarted(t), after: after, once: make(chan struct{}), free: make(chan struct{})}
	srv := httptest.NewServer(host)
	t.Cleanup(srv.Close)
	for i := range modules {
		host.Add(upstreamtest.Module{Path: fmt.Sprintf("example.com/m%d", i), Version: "v1.0.0"})
	}
	c := harness.NewCluster(t, "--upstream", srv.URL, "--host-rate", strconv.Itoa(rate), "--host-requests", strconv.Itoa(atOnce))
	for i := range nodes {
		c.StartNode(harness.Spec{Name: fmt.Sprintf("n%d", i)})
	}
	gateway := c.StartGateway(harness.Spec{Name: "g"})
	c.WaitConverged()

	var clients sync.WaitGroup
	refusals := make(chan answer, 10*modules)
	for i := range modules {
		clients.Go(func() {
			url := fmt.Sprintf("%s/example.com/m%d/@v/v1.0.0.mod", gateway.URL(), i)
			for {
				got, err := fetch(t, url)
				if err != nil || got.status == http.StatusOK {
					if err != nil {
						t.Errorf("%s: %v", url, err)
					}
					return
				}
				refusals <- got
				seconds, err := strconv.Atoi(got.header.Get("Retry-After"))
				if got.status != http.StatusServiceUnavailable || err != nil || seconds > int(after.Seconds()) {
					t.Errorf("%s: %d with Retry-After %q: %s", url, got.status, got.header.Get("Retry-After"), got.body)
					return
				}
				<-time.After(time.Duration(seconds) * time.Second)
			}
		})
	}
	eventually(t, "a crowd at the upstream", func() bool {
		host.mu.Lock()
		defer host.mu.Unlock()
		return host.waiting == atOnce
	})
	close(host.once)
	<-time.After(time.Second) // in which those that were there keep the places of the other nodes
	close(host.free)
	if !testing.Short() {
		<-time.After(5 * time.Second)
		c.Member("n3").Stop()
		c.Restart("n3") // what it knew is gone with it
		c.WaitConverged()
	}
	clients.Wait()
	close(refusals)

	host.check(t, rate)
	name := strings.TrimPrefix(srv.URL, "http://")
	n := 0
	for got := range refusals {
		if n++; !strings.Contains(got.body, name+" has too much to do; try again in "+got.header.Get("Retry-After")+" s") {
			t.Errorf("a client was told %q with Retry-After %q", got.body, got.header.Get("Retry-After"))
		}
	}
	if !testing.Short() && n == 0 {
		t.Error("no client was told to come later")
	}
	t.Logf("%d answers were 503", n)
}

// check looks at who came since the host had enough.
func (u *touchy) check(t *testing.T, rate int) {
	t.Helper()
	came := u.since()
	if len(came) == 0 || came[0] < u.after {
		t.Fatalf("asked to be left alone for %v, the first came after %v", u.after, came[:min(len(came), 5)])
	}
	t.Logf("%d requests, the first %v after the answer, the last %v", len(came), came[0], came[len(came)-1])
	const held = time.Second // that a busy machine may hold up some, which then come with those behind them
	for i, from := range came {
		for j, to := range came[i:] {
			// What is saved up beside that is one request at each node.
			if n, most := j+1, int(float64(rate)*(to-from+held).Seconds())+10; n > most {
				t.Fatalf("%d requests within %v, want at most %d", n, to-from, most)
			}
		}
	}
}
