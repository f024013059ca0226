package test

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// herd is 200 clients that ask four gateways at once for a version that nobody
// has, while upstream stalls in the middle of each file.
type herd struct {
	fake     *upstreamtest.Server
	cluster  *harness.Cluster
	gateways []*harness.Process
	module   upstreamtest.Module
	names    []string // .info, .mod, .zip

	clients  sync.WaitGroup
	mu       sync.Mutex
	failures []string
}

const herdClients = 200

func startHerd(t *testing.T) *herd {
	t.Helper()
	h := &herd{fake: upstreamtest.New(t), module: upstreamtest.Module{Path: "example.com/m", Version: "v1.0.0", Pad: 4 << 20}}
	h.fake.Add(h.module)
	h.cluster, h.gateways = startCluster(t, h.fake, 3, 4)
	objects := libraryOf(h.fake, []upstreamtest.Module{h.module})
	for name := range objects {
		h.names = append(h.names, name)
	}
	slices.Sort(h.names)
	h.fake.Fault(".info", upstreamtest.Fault{StallAfter: 5})
	h.fake.Fault(".mod", upstreamtest.Fault{StallAfter: 5})
	h.fake.Fault(".zip", upstreamtest.Fault{StallAfter: 2 << 20})
	for i := range herdClients {
		gateway, name := h.gateways[i%len(h.gateways)], h.names[i%len(h.names)]
		h.clients.Go(func() {
			if err := fetchWhole(gateway, name, objects[name]); err != nil {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.failures = append(h.failures, fmt.Sprintf("%s: %v", name, err))
			}
		})
	}
	eventually(t, "all clients at the gateways and their files at upstream", func() bool {
		waiting := 0.0
		for _, g := range h.gateways {
			waiting += g.Metric("ringmod_http_requests_in_flight")
		}
		return waiting == herdClients && h.fake.Count(".info") > 0 && h.fake.Count(".mod") > 0 && h.fake.Count(".zip") > 0
	})
	return h
}

// finish lets upstream go on and checks what the clients got, and how often
// upstream was asked.
func (h *herd) finish(t *testing.T, most int) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); h.clients.Wait() }()
	eventually(t, "the end of all downloads", func() bool {
		h.fake.Heal()
		select {
		case <-done:
			return true
		default:
			return false
		}
	})
	for _, failure := range h.failures[:min(len(h.failures), maxFailures)] {
		t.Error(failure)
	}
	for _, name := range h.names {
		if got := h.fake.Count("/" + name); got < 1 || got > most {
			t.Errorf("upstream was asked %d times for %s, want at most %d", got, name, most)
		}
	}
	if got := len(h.fake.Requests()); got > most*len(h.names) {
		t.Errorf("upstream requests %q, want nothing but the files", h.fake.Requests())
	}
	for name, want := range libraryOf(h.fake, []upstreamtest.Module{h.module}) {
		for _, gateway := range h.gateways {
			if err := fetchWhole(gateway, name, want); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		}
	}
}

func TestHerdOverFourGateways(t *testing.T) {
	t.Parallel()
	startHerd(t).finish(t, 1)
}

// TestCoordinatorDiesInMidFetch kills the node that fetches for the herd.
func TestCoordinatorDiesInMidFetch(t *testing.T) {
	t.Parallel()
	h := startHerd(t)
	h.cluster.Member(h.cluster.Ranks("default", h.names[0])[0]).Kill()
	h.finish(t, 2)
}

// TestNodeJoinsInMidFetch lets a node join that may become the coordinator of
// what is being fetched.
func TestNodeJoinsInMidFetch(t *testing.T) {
	t.Parallel()
	h := startHerd(t)
	h.cluster.StartNode(harness.Spec{Name: "n4"})
	h.cluster.WaitConverged()
	h.finish(t, 2)
}
