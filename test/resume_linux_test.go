package test

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
	"github.com/ringmod/ringmod/test/wan"
)

// relay is a gateway and two nodes that hold the same large zip, each at a site of
// its own, so that what each node sends is known to the byte.
type relay struct {
	*wan.WAN

	cluster *harness.Cluster
	door    *wan.Site // of the gateway
	nodes   map[string]*wan.Site
	zip     string
	size    int64
	sum     [32]byte
}

func newRelay(t *testing.T, size int64, seed uint64) *relay {
	t.Helper()
	w := wan.New(t, 3, wan.Path{Rate: 100 << 20}, seed)
	r := &relay{WAN: w, cluster: harness.NewCluster(t, "--offline"), door: w.Sites[2], nodes: make(map[string]*wan.Site)}
	for i, site := range w.Sites[:2] {
		name := fmt.Sprintf("n%d", i+1)
		r.cluster.StartNode(harness.Spec{Name: name, Host: site})
		r.nodes[name] = site
	}
	m := upstreamtest.Module{Path: "example.com/big", Version: "v1.0.0", Pad: size}
	fake := upstreamtest.NewUnstarted(t, m)
	data := fake.Zip(m.Path, m.Version)
	r.zip, r.size, r.sum = r.cluster.Place(fake, m)[2], int64(len(data)), sha256.Sum256(data)
	return r
}

// sent returns how many bytes a node has sent towards the gateway.
func (r *relay) sent(name string) int64 { return r.Stats(r.nodes[name], r.door).Bytes }

// killAt kills the node that has sent at bytes more than it had.
func (r *relay) killAt(at int64, stop <-chan struct{}) (victim string) {
	limits := make(map[string]int64)
	for name := range r.nodes {
		limits[name] = r.sent(name) + at
	}
	for {
		for name := range r.nodes {
			if r.sent(name) > limits[name] {
				r.cluster.Member(name).Kill()
				return name
			}
		}
		select {
		case <-stop:
			return ""
		case <-time.After(100 * time.Microsecond):
		}
	}
}

// round downloads the zip and kills the node that sends it after at bytes.
func (r *relay) round(t *testing.T, at int64, env []string) {
	t.Helper()
	gateway := r.cluster.StartGateway(harness.Spec{Name: "g1", Host: r.door, Env: env}) // a new one knows of no failures
	defer gateway.Kill()
	r.cluster.WaitConverged()
	before := r.sent("n1") + r.sent("n2")
	victim, stop := make(chan string, 1), make(chan struct{})
	go func() { victim <- r.killAt(at, stop) }()
	if err := fetchWhole(gateway, r.zip, r.sum); err != nil {
		t.Errorf("killed after %d bytes: %v", at, err)
	}
	close(stop)
	// Headers, gossip and what was in the buffers come on top.
	const slack = 8 << 20
	if all := r.sent("n1") + r.sent("n2") - before; all > r.size+r.size/20+slack {
		t.Errorf("killed after %d bytes: the nodes sent %d bytes of a zip of %d, want no byte twice", at, all, r.size)
	}
	if resumed := gateway.Metric(`ringmod_cluster_resumes_total{result="ok"}`); resumed == 0 && at < r.size-slack {
		t.Errorf("killed after %d bytes of %d: the gateway did not go on with the other node", at, r.size)
	}
	if name := <-victim; name != "" {
		r.cluster.Restart(name)
	}
}

// TestNodeDiesWhileItSends kills the node that sends a large zip, at a random
// point: the client gets the file whole, and of the other rank the gateway asks
// what is missing and no more.
func TestNodeDiesWhileItSends(t *testing.T) { //nolint:paralleltest // moves a lot of bytes
	rounds, size := 200, int64(50<<20)
	if testing.Short() {
		rounds, size = 6, 24<<20
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d rounds", seed, rounds)
	random := rand.New(rand.NewPCG(seed, 0))
	r := newRelay(t, size, seed)
	for i := range rounds {
		r.round(t, random.Int64N(r.size), [][]string{nil, noSpool}[i%2])
	}
}
