package test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// asker asks one of many gateways for an object and compares it.
type asker func(random *rand.Rand, name string, want [32]byte) error

// TestHotModule has a module that is a fifth of all requests. Gateways with memory and
// spools would hide it from the nodes, so there are neither: first as many gateways as
// CI machines have that start one each, which ask for small files; then gateways
// without a folder for spools, which ask for zips. In both no node does more than twice
// the mean. The hot zip is six times as large as the others, so that two replicas
// alone would send 2.2 times the mean.
func TestHotModule(t *testing.T) { //nolint:paralleltest // wants a share of the machine for itself
	lasts := 10 * time.Second
	if testing.Short() {
		lasts = 4 * time.Second
	}
	fake := upstreamtest.New(t)
	c, gateways := startCluster(t, fake, 6, 0)
	for _, name := range []string{"g1", "g2", "g3"} {
		gateways = append(gateways, c.StartGateway(harness.Spec{Name: name, Env: noSpool}))
	}
	c.WaitConverged()
	cold := place(t, c, fake, modules(t, fake, "cold", 60, 512<<10))
	hot := place(t, c, fake, modules(t, fake, "hot", 1, 3<<20))
	fake.Reset()

	fronts := c.Fronts(20)
	spread := func(suffix string, clients int, ask asker) {
		t.Helper()
		of := func(o library) library {
			some := library{}
			for name, sum := range o {
				if strings.HasSuffix(name, suffix) {
					some[name] = sum
				}
			}
			return some
		}
		load := startHotLoad(t, clients, of(hot).any(), of(cold).any(), ask)
		defer load.finish(t)
		time.Sleep(10 * time.Second)
		before := served(c)
		time.Sleep(lasts)
		checkSpread(t, suffix, before, served(c))
	}
	spread(".mod", 16, func(random *rand.Rand, name string, want [32]byte) error {
		return askFront(t.Context(), pick(random, fronts), name, want)
	})
	spread(".zip", 12, func(random *rand.Rand, name string, want [32]byte) error {
		return fetchWhole(pick(random, gateways), name, want)
	})
	if got := fake.Requests(); len(got) > 0 {
		t.Errorf("upstream was asked: %q", got)
	}
	helped := 0.
	for _, p := range gateways {
		helped += p.Metric(`ringmod_cluster_spread_total{result="ok"}`)
	}
	if helped == 0 {
		t.Error("no spare rank has answered a gateway")
	}
	status, text, _ := harness.Run(t, nil, "status", "--addr", c.Member("n1").GRPC)
	t.Logf("status %d:\n%s", status, text)
}

// startHotLoad lets clients ask until finish, every fifth time for what is hot.
func startHotLoad(t *testing.T, clients int, hot, cold choice, ask asker) *load {
	t.Helper()
	l := &load{}
	for i := range clients {
		random := rand.New(rand.NewPCG(uint64(i), 8))
		l.clients.Go(func() {
			for !l.stopping.Load() {
				next := cold
				if random.IntN(5) == 0 {
					next = hot
				}
				name, want := next(random)
				start := time.Now()
				l.note(name, start, ask(random, name, want))
			}
		})
	}
	t.Cleanup(func() { l.stopping.Store(true) })
	return l
}

func askFront(ctx context.Context, front *cluster.Cluster, name string, want [32]byte) error {
	parsed, err := target.Parse(name)
	if err != nil {
		return err
	}
	obj, err := front.Get(ctx, cache.Request{Target: parsed})
	if err != nil {
		return err
	}
	defer obj.Body.Close()
	data, err := io.ReadAll(obj.Body)
	if err == nil && sha256.Sum256(data) != want {
		err = errors.New("wrong bytes")
	}
	return err
}

// service is what a node has done so far.
type service struct{ requests, bytes float64 }

func served(c *harness.Cluster) map[string]service {
	all := map[string]service{}
	for _, p := range c.Running() {
		if p.GRPC != "" {
			all[p.Name] = service{p.Metric("ringmod_node_answers_total"), p.Metric("ringmod_node_sent_bytes_total")}
		}
	}
	return all
}

// checkSpread wants no node to have done more than twice the mean.
func checkSpread(t *testing.T, what string, before, after map[string]service) {
	t.Helper()
	var sum, most service
	for name := range after {
		requests, bytes := after[name].requests-before[name].requests, after[name].bytes-before[name].bytes
		t.Logf("%s: %s answered %.0f requests with %.1f MiB", what, name, requests, bytes/(1<<20))
		sum, most = service{sum.requests + requests, sum.bytes + bytes}, service{max(most.requests, requests), max(most.bytes, bytes)}
	}
	nodes := float64(len(after))
	requests, bytes := most.requests/sum.requests*nodes, most.bytes/sum.bytes*nodes
	t.Logf("%s: %.0f requests, the busiest node did %.2f times the mean, and sent %.2f times the mean of bytes", what, sum.requests, requests, bytes)
	if requests > 2 || bytes > 2 {
		t.Errorf("%s: the busiest node did %.2f times the mean, and sent %.2f times the mean of bytes; want 2 at most", what, requests, bytes)
	}
}
