package test

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
	"github.com/ringmod/ringmod/test/wan"
)

// far is how far regions lie apart in one direction.
const far = 80 * time.Millisecond

// world is a cluster of regions, each at a site of its own with two nodes, a
// gateway, and a door of its own to the one upstream.
type world struct {
	*wan.WAN

	fake     *upstreamtest.Server
	cluster  *harness.Cluster
	gateways []*harness.Process // one for each site
	ports    []uint16           // of the nodes' services
}

func regionName(site int) string { return fmt.Sprintf("r%d", site+1) }

func newWorld(t *testing.T, regions int, path wan.Path) *world {
	t.Helper()
	w := &world{WAN: wan.New(t, regions, path, 1), fake: upstreamtest.NewUnstarted(t), cluster: harness.NewCluster(t)}
	for i, site := range w.Sites {
		flags := []string{"--upstream", serveAt(t, site, w.fake)}
		for n := range 2 {
			p := w.cluster.StartNode(harness.Spec{Name: fmt.Sprintf("%s-n%d", regionName(i), n+1), Region: regionName(i), Host: site, Flags: flags})
			w.ports = append(w.ports, netip.MustParseAddrPort(p.GRPC).Port())
		}
		w.gateways = append(w.gateways, w.cluster.StartGateway(harness.Spec{Name: regionName(i) + "-g", Region: regionName(i), Host: site, Flags: flags}))
	}
	w.cluster.WaitConverged()
	return w
}

// serveAt serves h at a site and returns its URL there.
func serveAt(t *testing.T, site *wan.Site, h http.Handler) string {
	t.Helper()
	l, err := site.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server.URL
}

// crossed counts the bytes of the nodes' services that have crossed a border.
func (w *world) crossed() int64 {
	var sum int64
	for _, from := range w.Sites {
		for _, to := range w.Sites {
			if from == to {
				continue
			}
			s := w.Stats(from, to)
			for _, port := range w.ports {
				sum += s.Ports[port]
			}
		}
	}
	return sum
}

// TestRegionsFarApart reads warm, cold, during a cut and after it in a world of
// three regions.
func TestRegionsFarApart(t *testing.T) {
	t.Parallel()
	cut := 40 * time.Second // members take each other for dead after a dozen
	if testing.Short() {
		cut = 0
	}
	w := newWorld(t, 3, wan.Path{Delay: far})
	warm := place(t, w.cluster, w.fake, modules(t, w.fake, "warm", 20, 300<<10))
	w.warm(t, warm)
	w.cold(t)
	w.cut(t, warm, cut)
}

// warm reads what every region holds: nobody waits for another region.
func (w *world) warm(t *testing.T, objects library) {
	t.Helper()
	for i, gateway := range w.gateways {
		before := w.crossed()
		readAll(t, gateway, objects)
		// Pings and probes of health may pass, a zip may not.
		if got := w.crossed() - before; got > 64<<10 {
			t.Errorf("%d bytes between nodes and gateways crossed borders during warm reads in %s, want none of the objects", got, regionName(i))
		}
	}
	apart := w.measure(t, "apart", objects)
	w.SetBoth(w.Sites, w.Sites, wan.Path{})
	near := w.measure(t, "near", objects)
	w.SetBoth(w.Sites, w.Sites, wan.Path{Delay: far})
	t.Logf("median of warm reads: %v with %v to other regions, %v without", apart, far, near)
	if apart > near+far {
		t.Errorf("warm reads take %v with %v to other regions and %v without, want no difference", apart, far, near)
	}
	if got := w.fake.Requests(); len(got) > 0 {
		t.Errorf("warm reads made upstream requests: %q", got)
	}
}

// measure reads through a new gateway of the first region, which has nothing in
// memory, and returns the median of the times.
func (w *world) measure(t *testing.T, name string, objects library) time.Duration {
	t.Helper()
	gateway := w.cluster.StartGateway(harness.Spec{Name: name, Region: regionName(0), Host: w.Sites[0]})
	defer gateway.Kill()
	w.cluster.WaitConverged()
	return median(readAll(t, gateway, objects))
}

// cold reads in all regions at once what nobody holds.
func (w *world) cold(t *testing.T) {
	t.Helper()
	objects := libraryOf(w.fake, modules(t, w.fake, "cold", 10, 300<<10))
	before := w.crossed()
	var readers sync.WaitGroup
	for _, gateway := range w.gateways {
		readers.Go(func() { readTogether(t, gateway, objects) })
	}
	readers.Wait()
	w.fetchedOnce(t, "cold", objects)
	if got := w.crossed() - before; got < 10*300<<10 {
		t.Errorf("%d bytes crossed borders for cold reads; the counts of this test show nothing", got)
	}
}

func (w *world) fetchedOnce(t *testing.T, when string, objects library) {
	t.Helper()
	for name := range objects {
		if got := w.fake.Count("/" + name); got != 1 {
			t.Errorf("%s: upstream was asked %d times for %s, want once", when, got, name)
		}
	}
}

// cut takes the first region away from the others for a while, in which both
// sides serve what they have, and fetch what they have not.
func (w *world) cut(t *testing.T, warm library, lasts time.Duration) {
	t.Helper()
	here, there := libraryOf(w.fake, modules(t, w.fake, "here", 5, 300<<10)), libraryOf(w.fake, modules(t, w.fake, "there", 5, 300<<10))
	fresh := []library{here, there, there} // by gateway: what is new there
	both := maps.Clone(here)
	maps.Copy(both, there)
	w.fake.Reset()
	w.SetBoth(w.Sites[:1], w.Sites[1:], wan.Path{Cut: wan.Everything})
	start := time.Now()
	w.everywhere(t, warm, fresh)
	time.Sleep(time.Until(start.Add(lasts)))
	w.everywhere(t, warm, fresh)
	w.fetchedOnce(t, "while cut", both)
	if got := w.fake.Requests(); len(got) != len(both) {
		t.Errorf("while cut: %d upstream requests, want %d, one for each new file: %q", len(got), len(both), got)
	}

	w.SetBoth(w.Sites[:1], w.Sites[1:], wan.Path{Delay: far})
	healed := time.Now()
	w.cluster.Eventually(30*time.Second, "one view after healing", func(p *harness.Process) error { return p.Knows(6, 6) })
	w.cluster.WaitConverged()
	t.Logf("one view %v after the cut had healed", time.Since(healed))
	if lasts > 0 { // long enough for both sides to have missed each other
		fresh = []library{both, both, both}
	}
	w.everywhere(t, warm, fresh)
	w.fetchedAgain(t, both, warm, lasts)
}

// fetchedAgain checks what was fetched since a cut that has healed: after a long
// one each file once. A call that was on its way into a short one, whose connection
// lives on, reaches its coordinator when the link heals, and that one fetches, too:
// one request more for each of the two coordinators of a region that have failed
// (cluster.md 4.7).
func (w *world) fetchedAgain(t *testing.T, during, before library, lasts time.Duration) {
	t.Helper()
	most := 1
	if lasts == 0 {
		most += 2
	}
	again := 0
	for name := range during {
		got := w.fake.Count("/" + name)
		if got > 1 {
			again++
		}
		if got < 1 || got > most {
			t.Errorf("after healing: upstream was asked %d times for %s, want 1 to %d", got, name, most)
		}
	}
	t.Logf("%d of %d files were fetched again", again, len(during))
	for name := range before {
		if got := w.fake.Count("/" + name); got > 0 {
			t.Errorf("after healing: upstream was asked for %s, which all regions hold", name)
		}
	}
}

// everywhere reads in all regions what they had and what is new there.
func (w *world) everywhere(t *testing.T, warm library, fresh []library) {
	t.Helper()
	var readers sync.WaitGroup
	for i, gateway := range w.gateways {
		readers.Go(func() {
			readTogether(t, gateway, warm)
			readTogether(t, gateway, fresh[i])
		})
	}
	readers.Wait()
}
