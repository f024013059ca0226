package test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
	"github.com/ringmod/ringmod/test/wan"
)

// chaos is a cluster at three sites, of which two are one region, that
// misfortunes befall one after the other while clients read.
type chaos struct {
	*wan.WAN

	t       *testing.T
	random  *rand.Rand
	cluster *harness.Cluster
	fake    *upstreamtest.Server
	doors   []string // URL of the upstream at each site
	nodes   []string
	broken  map[string]func() // what heals each node or link that is not well
	stock   stock
}

// usual is the path between sites that are well.
var usual = wan.Path{Delay: time.Millisecond} //nolint:gochecknoglobals // a constant in all but name

// stock is what clients of a chaos ask for: what is held from the start, and now
// and then a version that has just been published.
type stock struct {
	fake *upstreamtest.Server
	held choice

	mu     sync.Mutex
	fresh  library
	recent []string // of fresh
}

const (
	freshSize  = 1 << 20
	maxRecent  = 12
	perFresh   = 100 // requests for each new version
	perRecent  = 5   // requests for each that is for a recent one
	slowStep   = 64 << 10
	slowPause  = 10 * time.Millisecond // for each slowStep of upstream's bodies
	maxFetches = 6                     // of one object: coordinators may fail in a row
)

// next is a choice.
func (s *stock) next(random *rand.Rand) (string, [32]byte) {
	switch {
	case random.IntN(perFresh) == 0:
		s.publish()
	case random.IntN(perRecent) != 0:
		return s.held(random)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.recent) == 0 {
		return s.held(random)
	}
	name := pick(random, s.recent)
	return name, s.fresh[name]
}

func (s *stock) publish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := upstreamtest.Module{Path: fmt.Sprintf("example.com/new%d", len(s.fresh)/3), Version: "v1.0.0", Pad: freshSize}
	s.fake.Add(m)
	for name, sum := range libraryOf(s.fake, []upstreamtest.Module{m}) {
		s.fresh[name] = sum
		s.recent = append(s.recent, name)
	}
	s.recent = s.recent[max(0, len(s.recent)-maxRecent):]
}

// slow is an upstream that takes its time over what is large, so that fills are
// under way when their node dies.
func slow(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(slowWriter{w}, r) })
}

type slowWriter struct{ http.ResponseWriter }

// Write implements io.Writer.
func (w slowWriter) Write(b []byte) (n int, err error) {
	for part := range slices.Chunk(b, slowStep) {
		written, err := w.ResponseWriter.Write(part)
		n += written
		if err != nil {
			return n, err
		}
		if len(b) > slowStep {
			time.Sleep(slowPause)
		}
	}
	return n, nil
}

// TestChaos lets random faults happen to real processes for CHAOSTIME, drawn
// from CHAOSSEED, and checks all that the clients get.
func TestChaos(t *testing.T) { //nolint:paralleltest // takes the whole machine
	if testing.Short() {
		t.Skip("see make chaos")
	}
	length, seed := 30*time.Second, uint64(time.Now().UnixNano())
	if text := os.Getenv("CHAOSTIME"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("CHAOSTIME: %v", err)
		}
	}
	if text := os.Getenv("CHAOSSEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("CHAOSSEED: %v", err)
		}
	}
	t.Logf("CHAOSSEED=%d CHAOSTIME=%v", seed, length)
	c := newChaos(t, seed)
	c.run(length)
}

func newChaos(t *testing.T, seed uint64) *chaos {
	t.Helper()
	c := &chaos{
		WAN: wan.New(t, 3, usual, seed), t: t, random: rand.New(rand.NewPCG(seed, 0)),
		cluster: harness.NewCluster(t), fake: upstreamtest.NewUnstarted(t), broken: make(map[string]func()),
	}
	for _, site := range c.Sites {
		c.doors = append(c.doors, serveAt(t, site, slow(c.fake)))
	}
	for range 6 {
		c.join()
	}
	return c
}

// spec places the i-th member: sites take turns, the third is a region of its own.
func (c *chaos) spec(name string, i int) harness.Spec {
	site := i % len(c.Sites)
	return harness.Spec{Name: name, Region: regionName(site / 2), Host: c.Sites[site], Flags: []string{"--upstream", c.doors[site]}}
}

func (c *chaos) join() {
	name := fmt.Sprintf("n%d", len(c.nodes)+1)
	c.cluster.StartNode(c.spec(name, len(c.nodes)))
	c.nodes = append(c.nodes, name)
}

func (c *chaos) run(length time.Duration) {
	t := c.t
	var gateways []*harness.Process
	for i := range c.Sites {
		s := c.spec(fmt.Sprintf("g%d", i+1), i)
		if i == 0 {
			s.Env = noSpool
		}
		gateways = append(gateways, c.cluster.StartGateway(s))
	}
	c.cluster.WaitConverged()
	held := place(t, c.cluster, c.fake, modules(t, c.fake, "held", 40, 300<<10))
	c.stock = stock{fake: c.fake, held: held.any(), fresh: library{}}
	l := startLoad(t, 12, c.stock.next, gateways...)
	lists := &history{fake: c.fake}
	lists.publish()
	stop := make(chan struct{})
	var watching sync.WaitGroup
	for i := range 4 {
		watching.Go(func() { lists.watch(stop, rand.New(rand.NewPCG(uint64(i), 1)), gateways) })
	}
	start := time.Now()
	for end := time.Now().Add(length); time.Now().Before(end); {
		c.misfortune()
		if c.random.IntN(10) == 0 {
			lists.publish()
		}
		time.Sleep(time.Duration(c.random.Int64N(int64(3 * time.Second))))
	}
	for _, what := range slices.Sorted(maps.Keys(c.broken)) {
		c.heal(what)
	}
	c.cluster.WaitConverged()
	l.more(t, 500)
	l.finish(t)
	close(stop)
	watching.Wait()
	l.report(t, "chaos", start, time.Now(), nil)
	for _, bad := range lists.judge() {
		t.Error(bad)
	}
	t.Logf("%d answers about %d versions of %s", len(lists.told), len(lists.published), growing)
	for _, gateway := range gateways {
		readTogether(t, gateway, held)
		readTogether(t, gateway, c.stock.fresh)
	}
	for _, p := range c.cluster.Running() {
		if strings.Contains(p.Log(), "panic") {
			t.Errorf("%s has panicked", p.Name)
		}
	}
	c.count(held)
	c.count(c.stock.fresh)
}

// count holds the number of upstream requests for each object against what
// failing coordinators explain.
func (c *chaos) count(objects library) {
	c.t.Helper()
	times := map[int]int{}
	for name := range objects {
		n := c.fake.Count("/" + name)
		if times[n]++; n > maxFetches {
			c.t.Errorf("upstream was asked %d times for %s", n, name)
		}
	}
	c.t.Logf("objects by number of upstream requests: %v", times)
}

// misfortune breaks something, or heals something that is broken.
func (c *chaos) misfortune() {
	if n := len(c.broken); n > 0 && c.random.IntN(3) < n {
		c.heal(pick(c.random, slices.Sorted(maps.Keys(c.broken))))
		return
	}
	switch c.random.IntN(5) {
	case 0:
		c.hit("kill", func(p *harness.Process) func() {
			p.Kill()
			return func() { c.cluster.Restart(p.Name) }
		})
	case 1:
		c.hit("freeze", func(p *harness.Process) func() {
			p.Freeze()
			return p.Thaw
		})
	case 2:
		c.hit("restart", func(p *harness.Process) func() {
			p.Stop()
			c.cluster.Restart(p.Name)
			return nil
		})
	case 3:
		c.spoil()
	case 4:
		if len(c.nodes) < 12 {
			c.join()
			c.t.Logf("%s join %s", clock(), c.nodes[len(c.nodes)-1])
		}
	}
}

// hit does harm to a node that is well.
func (c *chaos) hit(what string, harm func(*harness.Process) (heal func())) {
	well := slices.DeleteFunc(slices.Clone(c.nodes), func(name string) bool { return c.broken[name] != nil })
	name := pick(c.random, well)
	c.t.Logf("%s %s %s", clock(), what, name)
	if heal := harm(c.cluster.Member(name)); heal != nil {
		c.broken[name] = heal
	}
}

// spoil cuts a site off, wholly, in one direction or for one protocol, or makes its
// links bad.
func (c *chaos) spoil() {
	i := c.random.IntN(len(c.Sites))
	what := fmt.Sprintf("links of site %d", i+1)
	if c.broken[what] != nil {
		return
	}
	site, others := c.Sites[i], slices.Delete(slices.Clone(c.Sites), i, i+1)
	trouble := pick(c.random, []struct {
		name      string
		out, back wan.Path
	}{
		{"cut", wan.Path{Cut: wan.Everything}, wan.Path{Cut: wan.Everything}},
		{"cut outwards", wan.Path{Cut: wan.Everything}, usual},
		{"cut inwards", usual, wan.Path{Cut: wan.Everything}},
		{"cut for TCP", wan.Path{Cut: wan.TCP}, wan.Path{Cut: wan.TCP}},
		{"cut for UDP", wan.Path{Cut: wan.UDP}, wan.Path{Cut: wan.UDP}},
		{"lossy and far", wan.Path{Loss: 0.05, Delay: 100 * time.Millisecond}, wan.Path{Loss: 0.05, Delay: 100 * time.Millisecond}},
		{"thin", wan.Path{Rate: 1 << 20}, wan.Path{Rate: 1 << 20}},
	})
	c.t.Logf("%s %s: %s", clock(), what, trouble.name)
	set := func(out, back wan.Path) {
		for _, other := range others {
			c.Set(site, other, out)
			c.Set(other, site, back)
		}
	}
	set(trouble.out, trouble.back)
	c.broken[what] = func() { set(usual, usual) }
}

func (c *chaos) heal(what string) {
	c.t.Logf("%s heal %s", clock(), what)
	c.broken[what]()
	delete(c.broken, what)
}

func clock() string { return time.Now().Format("15:04:05.000") }
