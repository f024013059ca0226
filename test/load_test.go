package test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// maxFailures is how many failed requests a load describes.
const maxFailures = 10

// library is what upstream has: the digest of each object by target.
type library map[string][32]byte

// modules makes so many modules, with zips of about size bytes, that upstream has.
func modules(t *testing.T, fake *upstreamtest.Server, name string, n int, size int64) []upstreamtest.Module {
	t.Helper()
	var all []upstreamtest.Module
	for i := range n {
		all = append(all, upstreamtest.Module{Path: fmt.Sprintf("example.com/%s%d", name, i), Version: "v1.0.0", Pad: size})
	}
	fake.Add(all...)
	return all
}

// place puts modules on all their replicas.
func place(t *testing.T, c *harness.Cluster, fake *upstreamtest.Server, all []upstreamtest.Module) library {
	t.Helper()
	for _, m := range all {
		c.Place(fake, m)
	}
	return libraryOf(fake, all)
}

func libraryOf(fake *upstreamtest.Server, all []upstreamtest.Module) library {
	objects := library{}
	for _, m := range all {
		for name, data := range harness.Files(fake, m) {
			objects[name] = sha256.Sum256(data)
		}
	}
	return objects
}

// load is clients that ask gateways for objects, one after the other without a
// pause, as the go command would: what fails is not tried again.
type load struct {
	stopping atomic.Bool
	clients  sync.WaitGroup

	mu       sync.Mutex
	requests []request
	failures []string
	failed   int
}

// request is one that a load has made.
type request struct {
	name  string
	start time.Time
	took  time.Duration
}

// choice draws what a client asks for next.
type choice func(*rand.Rand) (name string, want [32]byte)

// any draws one of the objects.
func (o library) any() choice {
	names := slices.Sorted(maps.Keys(o))
	return func(random *rand.Rand) (string, [32]byte) {
		name := pick(random, names)
		return name, o[name]
	}
}

func pick[T any](random *rand.Rand, from []T) T { return from[random.IntN(len(from))] }

// startLoad lets clients ask until finish, each time another of the gateways.
func startLoad(t *testing.T, clients int, next choice, gateways ...*harness.Process) *load {
	t.Helper()
	l := &load{}
	for i := range clients {
		random := rand.New(rand.NewPCG(uint64(i), 0))
		l.clients.Go(func() {
			for !l.stopping.Load() {
				name, want := next(random)
				l.ask(pick(random, gateways), name, want)
			}
		})
	}
	t.Cleanup(func() { l.stopping.Store(true) })
	return l
}

func (l *load) ask(gateway *harness.Process, name string, want [32]byte) {
	start := time.Now()
	l.note(name, start, fetchWhole(gateway, name, want))
}

// note counts a request that has ended.
func (l *load) note(name string, start time.Time, err error) {
	took := time.Since(start)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests = append(l.requests, request{name, start, took})
	if err == nil {
		return
	}
	l.failed++
	if len(l.failures) < maxFailures {
		l.failures = append(l.failures, fmt.Sprintf("%s %s after %v: %v", start.Format("15:04:05.000"), name, took.Round(time.Millisecond), err))
	}
}

// fetchWhole reads an object whole and compares it.
func fetchWhole(gateway *harness.Process, name string, want [32]byte) error {
	resp, err := gateway.Client().Get(gateway.URL() + "/" + name)
	if err != nil {
		return fmt.Errorf("%s: %w", gateway.Name, err)
	}
	defer resp.Body.Close()
	hash := sha256.New()
	var text strings.Builder
	to := io.Writer(hash)
	if resp.StatusCode != http.StatusOK {
		to = &text
	}
	n, err := io.Copy(to, resp.Body)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %s, then after %d bytes: %w", gateway.Name, resp.Status, n, err)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %s: %s", gateway.Name, resp.Status, strings.TrimSpace(text.String()))
	case [32]byte(hash.Sum(nil)) != want:
		return fmt.Errorf("%s: wrong bytes", gateway.Name)
	}
	return nil
}

// readAll reads all objects through one gateway, one after the other, and
// returns how long each took, shortest first.
func readAll(t *testing.T, gateway *harness.Process, objects library) []time.Duration {
	t.Helper()
	var took []time.Duration
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		start := time.Now()
		if err := fetchWhole(gateway, name, objects[name]); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return took
}

// readTogether is readAll for many objects at once.
func readTogether(t *testing.T, gateway *harness.Process, objects library) {
	t.Helper()
	names := make(chan string)
	var readers sync.WaitGroup
	for range 16 {
		readers.Go(func() {
			for name := range names {
				if err := fetchWhole(gateway, name, objects[name]); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	for name := range objects {
		names <- name
	}
	close(names)
	readers.Wait()
}

// more waits until so many requests more have been answered.
func (l *load) more(t *testing.T, n int) {
	t.Helper()
	want := l.count() + n
	eventually(t, fmt.Sprintf("%d requests more", n), func() bool { return l.count() >= want })
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.requests)
}

// finish ends the load; a request that failed fails the test.
func (l *load) finish(t *testing.T) {
	t.Helper()
	l.stopping.Store(true)
	l.clients.Wait()
	if l.failed > 0 {
		t.Errorf("%d of %d requests failed:\n%s", l.failed, len(l.requests), strings.Join(l.failures, "\n"))
	}
}

// report logs how long the requests took that began between from and to; for
// objects of the kind that some names, nil for all.
func (l *load) report(t *testing.T, what string, from, to time.Time, some func(name string) bool) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var took []time.Duration
	var longest request
	for _, r := range l.requests {
		if !r.start.Before(from) && r.start.Before(to) && (some == nil || some(r.name)) {
			took = append(took, r.took)
			if r.took > longest.took {
				longest = r
			}
		}
	}
	if len(took) == 0 {
		t.Logf("%s: no requests", what)
		return
	}
	slices.Sort(took)
	t.Logf("%s: %d requests, median %v, p99 %v, longest %v (%s)", what, len(took), took[len(took)/2], took[len(took)*99/100], took[len(took)-1], longest.name)
}
