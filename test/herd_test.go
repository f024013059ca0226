package test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// patience bounds what must happen by itself; it is not a measurement.
const patience = 30 * time.Second

// eventually polls until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// inFlight waits until the process is answering so many requests.
func inFlight(t *testing.T, p *harness.Process, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d requests in flight", want), func() bool {
		return p.Metric("ringmod_http_requests_in_flight") == float64(want)
	})
}

// quiet starts ringmod in front of fake without a checksum database.
func quiet(t *testing.T, fake *upstreamtest.Server) *harness.Process {
	t.Helper()
	return harness.Serve(t, "--data-dir", t.TempDir(), "--upstream", fake.URL, "--sumdb", "off", "--log-level", "error")
}

// TestHerdForOneZip has 200 clients ask at once for a zip that is not here.
func TestHerdForOneZip(t *testing.T) {
	t.Parallel()
	const clients = 200
	m := upstreamtest.Module{Path: "example.com/m", Version: "v1.0.0", Pad: 1 << 20}
	fake := upstreamtest.New(t, m)
	fake.Fault(".zip", upstreamtest.Fault{Block: make(chan struct{})})
	p := quiet(t, fake)
	want := sha256.Sum256(fake.Zip(m.Path, m.Version))
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			if got, err := get(t.Context(), p.URL()+"/example.com/m/@v/v1.0.0.zip"); err != nil || got != want {
				t.Errorf("a client of the herd got other bytes than upstream has, or an error: %v", err)
			}
		})
	}
	inFlight(t, p, clients)
	fake.Heal()
	group.Wait()
	if got := fake.Requests(); len(got) != 1 {
		t.Errorf("upstream requests %q, want one", got)
	}
}

// TestHerdForGoMods has 300 clients ask for the go.mod of 10 modules: that
// fetches each of them once, and neither a zip nor anything else.
func TestHerdForGoMods(t *testing.T) {
	t.Parallel()
	const modules, clients = 10, 300
	fake := upstreamtest.New(t)
	for i := range modules {
		fake.Add(upstreamtest.Module{Path: fmt.Sprintf("example.com/m%d", i), Version: "v1.0.0"})
	}
	fake.Fault(".mod", upstreamtest.Fault{Block: make(chan struct{})})
	p := quiet(t, fake)
	var group sync.WaitGroup
	for i := range clients {
		group.Go(func() {
			path := fmt.Sprintf("example.com/m%d", i%modules)
			got, err := fetch(t, p.URL()+"/"+path+"/@v/v1.0.0.mod")
			if err != nil || got.status != http.StatusOK || got.body != string(fake.Mod(path, "v1.0.0")) {
				t.Errorf("%s: got %d %q, %v", path, got.status, got.body, err)
			}
		})
	}
	inFlight(t, p, clients)
	fake.Heal()
	group.Wait()
	if got := fake.Count(".mod"); got != modules || len(fake.Requests()) != modules {
		t.Errorf("upstream requests %q, want one for each of %d go.mod files", fake.Requests(), modules)
	}
}

// TestFirstOfHerdLeaves takes away the client that started a fill while half of
// the zip is still to come.
func TestFirstOfHerdLeaves(t *testing.T) {
	t.Parallel()
	const clients = 20
	m := upstreamtest.Module{Path: "example.com/m", Version: "v1.0.0", Pad: 4 << 20}
	fake := upstreamtest.New(t, m)
	fake.Fault(".zip", upstreamtest.Fault{StallAfter: 2 << 20})
	p := quiet(t, fake)
	url := p.URL() + "/example.com/m/@v/v1.0.0.zip"
	want := sha256.Sum256(fake.Zip(m.Path, m.Version))

	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	first, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(first)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil {
		t.Fatalf("the first client got nothing while the zip was coming: %v", err)
	}
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			if got, err := get(t.Context(), url); err != nil || got != want {
				t.Errorf("a client that stayed got other bytes than upstream has, or an error: %v", err)
			}
		})
	}
	inFlight(t, p, 1+clients)
	leave()
	inFlight(t, p, clients)
	fake.Release()
	group.Wait()
	if got := fake.Count(".zip"); got != 1 {
		t.Errorf("upstream requests for the zip: %d, want 1", got)
	}
}

// TestHitsWhileFetchesHang asks for what is held, from memory and from disk,
// while 200 fetches wait for an upstream that does not answer.
func TestHitsWhileFetchesHang(t *testing.T) { //nolint:paralleltest // measures latencies
	const limit = 2.0
	attempts, rounds := 3, 9
	if testing.Short() {
		attempts, rounds = 1, 3
	}
	m := upstreamtest.Module{Path: "example.com/m", Version: "v1.0.0", Pad: 512 << 10}
	fake := upstreamtest.New(t, m)
	fake.Fault("example.com/hanging", upstreamtest.Fault{Block: make(chan struct{})})
	p := quiet(t, fake)
	var ratio float64
	for attempt := range attempts {
		var idle, hanging []time.Duration
		for round := range rounds {
			measureHits(t, p) // the first after a change pays for what the last one left behind
			idle = append(idle, measureHits(t, p))
			hanging = append(hanging, whileHanging(t, p, fake, fmt.Sprintf("r%d-%d", attempt, round)))
		}
		ratio = float64(median(hanging)) / float64(median(idle))
		t.Logf("p99 of 1,000 hits: idle %v, while 200 fetches hang %v, ratio %.2f", median(idle), median(hanging), ratio)
		if ratio <= limit {
			return
		}
	}
	if !testing.Short() {
		t.Errorf("p99 while fetches hang is %.2f times that of idle, want at most %v", ratio, limit)
	}
}

// whileHanging measures while 200 requests for modules that are not here hang,
// and lets them go.
func whileHanging(t *testing.T, p *harness.Process, fake *upstreamtest.Server, name string) time.Duration {
	t.Helper()
	const clients = 200
	var group sync.WaitGroup
	for i := range clients {
		group.Go(func() {
			url := fmt.Sprintf("%s/example.com/hanging/%s/m%d/@v/v1.0.0.zip", p.URL(), name, i)
			if got, err := fetch(t, url); err != nil || got.status != http.StatusNotFound {
				t.Errorf("when let go: %d %q, %v, want upstream's 404", got.status, got.body, err)
			}
		})
	}
	inFlight(t, p, clients)
	measureHits(t, p)
	took := measureHits(t, p)
	inFlight(t, p, clients) // they hang still
	released := make(chan struct{})
	go func() { // more come to the upstream as others leave it
		defer close(released)
		group.Wait()
	}()
	eventually(t, "the end of the fetches that hung", func() bool {
		fake.Release()
		select {
		case <-released:
			return true
		default:
			return false
		}
	})
	return took
}

// measureHits makes 1,000 requests, one after the other, and returns the 99th
// percentile of their times.
func measureHits(t *testing.T, p *harness.Process) time.Duration {
	t.Helper()
	const hits = 1000
	client := http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	times := make([]time.Duration, hits)
	for i := range hits {
		url := p.URL() + "/example.com/m/@v/v1.0.0" + []string{".mod", ".info", ".zip"}[i%3]
		start := time.Now()
		resp, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		times[i] = time.Since(start)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("hit %d: %s, %v", i, resp.Status, err)
		}
	}
	slices.Sort(times)
	return times[hits*99/100]
}

func median(times []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(times))[len(times)/2]
}
