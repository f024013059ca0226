package test

import (
	"fmt"
	"maps"
	"math/rand/v2"
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

	t        *testing.T
	random   *rand.Rand
	cluster  *harness.Cluster
	fake     *upstreamtest.Server
	doors    []string // URL of the upstream at each site
	gateways []*harness.Process
	begun    int               // nodes
	nodes    []string          // that are to stay
	berths   map[string]*berth // by node
	deck     []misfortune      // still to come
	decks    int               // that were begun
	broken   map[string]trouble
	cut      int // links that are not well

	stock     stock
	held      library
	takedowns *takedowns
}

// usual is the path between sites that are well.
var usual = wan.Path{Delay: time.Millisecond} //nolint:gochecknoglobals // a constant in all but name

const (
	maxNodes   = 8
	maxFetches = 6 // of one object: coordinators may fail in a row
	// whole is how long the copies may take to be where they belong when everything is
	// well: nodes compare every 5 min what a pull that has failed did not bring.
	whole       = 12 * time.Minute
	clockLayout = "15:04:05.000"
)

// TestChaos lets random faults happen to real processes for CHAOSTIME, drawn
// from CHAOSSEED, and checks all that the clients get. Each kind of fault happens
// once at least, however long that takes.
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
		cluster: harness.NewCluster(t), fake: upstreamtest.NewUnstarted(t), berths: make(map[string]*berth), broken: make(map[string]trouble),
	}
	for _, site := range c.Sites {
		c.doors = append(c.doors, serveAt(t, site, slow(c.fake)))
	}
	// Sites take turns, the third is a region of its own.
	for i, kind := range []diskKind{failing, plain, failing, plain, tiny, plain} {
		c.begin(i%len(c.Sites), kind)
	}
	for i := range c.Sites {
		s := c.spec(fmt.Sprintf("g%d", i+1), i)
		if i == 0 {
			s.Env = noSpool
		}
		c.gateways = append(c.gateways, c.cluster.StartGateway(s))
	}
	c.cluster.WaitConverged()
	c.held = libraryOf(c.fake, modules(t, c.fake, "held", 40, 300<<10))
	c.stock = stock{fake: c.fake, held: c.held.any(), fresh: library{}}
	c.takedowns = newTakedowns(t, c.fake, 40)
	for _, gateway := range c.gateways {
		readTogether(t, gateway, c.held)
		readTogether(t, gateway, c.takedowns.sums)
	}
	c.copied()
	c.fake.Reset()
	return c
}

// spec places a member.
func (c *chaos) spec(name string, site int) harness.Spec {
	return harness.Spec{Name: name, Region: regionName(site / 2), Host: c.Sites[site], Flags: []string{"--upstream", c.doors[site]}}
}

func (c *chaos) run(length time.Duration) {
	t := c.t
	l := startLoad(t, 12, c.stock.next, c.gateways...)
	lists := &history{fake: c.fake}
	lists.publish()
	stop := make(chan struct{})
	var watching sync.WaitGroup
	for i := range 4 {
		watching.Go(func() { lists.watch(stop, rand.New(rand.NewPCG(uint64(i), 1)), c.gateways) })
		watching.Go(func() { c.takedowns.watch(stop, rand.New(rand.NewPCG(uint64(i), 2)), c.gateways) })
	}
	start := time.Now()
	for time.Since(start) < length || c.decks < 2 && len(c.deck) > 0 || c.decks == 0 {
		c.step()
		if c.random.IntN(4) == 0 {
			lists.publish()
		}
		// What lasts is noticed; the first deck shows that there is everything.
		time.Sleep(time.Duration(c.random.Int64N(int64(min(2*c.decks, 5)) * int64(time.Second))))
	}
	c.settle()
	c.cluster.WaitConverged()
	l.more(t, 500)
	gone := c.takedowns.settle(t, c.gateways)
	asked := len(c.fake.Requests())
	l.finish(t)
	close(stop)
	watching.Wait()
	l.report(t, "chaos", start, time.Now(), nil)
	c.judge(lists)
	c.away(gone, asked)
}

// judge looks at what clients were told, and at what the nodes hold in the end.
func (c *chaos) judge(lists *history) {
	t := c.t
	for _, bad := range slices.Concat(lists.judge(), c.takedowns.judge()) {
		t.Error(bad)
	}
	t.Logf("%d answers about %d versions of %s, %d about %d that were purged", len(lists.told), len(lists.published), growing, len(c.takedowns.told), len(c.takedowns.orders))
	for _, gateway := range c.gateways {
		readTogether(t, gateway, c.held)
		readTogether(t, gateway, c.stock.fresh)
	}
	for _, p := range c.cluster.Running() {
		if strings.Contains(p.Log(), "panic") {
			t.Errorf("%s has panicked", p.Name)
		}
	}
	c.count(c.held)
	c.count(c.stock.fresh)
	c.copied()
	c.compare()
}

// count holds the number of upstream requests for each object against what
// failing coordinators explain.
func (c *chaos) count(objects library) {
	c.t.Helper()
	all := map[string]int{}
	for _, request := range c.fake.Requests() {
		all[strings.TrimPrefix(request, "GET /")]++
	}
	times := map[int]int{}
	for name := range objects {
		n := all[name]
		if times[n]++; n > maxFetches {
			c.t.Errorf("upstream was asked %d times for %s", n, name)
		}
	}
	c.t.Logf("objects by number of upstream requests: %v", times)
}

// step breaks something, or heals something that is broken.
func (c *chaos) step() {
	if n := len(c.broken); n > 0 && c.random.IntN(6) < n {
		c.heal(pick(c.random, slices.Sorted(maps.Keys(c.broken))))
		return
	}
	if len(c.deck) == 0 {
		c.deck = c.misfortunes()
		c.random.Shuffle(len(c.deck), func(i, j int) { c.deck[i], c.deck[j] = c.deck[j], c.deck[i] })
		c.decks++
	}
	next := c.deck[0]
	c.deck = c.deck[1:]
	next.strike()
}

// trouble is something that is broken.
type trouble struct {
	heal func()
	// lasting is what others need not wait for, as it takes no copy away.
	lasting bool
}

func (c *chaos) heal(what string) {
	c.logf("heal %s", what)
	heal := c.broken[what].heal
	delete(c.broken, what)
	heal()
}

// calm heals all that could keep somebody from his work.
func (c *chaos) calm() {
	for _, what := range slices.Sorted(maps.Keys(c.broken)) {
		if t, still := c.broken[what]; still && !t.lasting {
			c.heal(what)
		}
	}
}

// settle heals everything and waits until all is well and every copy is where it belongs: then
// one may be lost.
func (c *chaos) settle() {
	c.t.Helper()
	c.calm()
	start := time.Now()
	for _, name := range c.nodes {
		c.cluster.Member(name).WaitReady(whole)
	}
	within(c.t, whole, "all to be well", func() error {
		status, text := c.cluster.Member(c.nodes[0]).Command(c.t.Context(), "status")
		for _, trouble := range []string{"LACKS", "joining", "leaving", "read-only"} {
			if strings.Contains(text, trouble) {
				status = 1
			}
		}
		if status != 0 || !strings.Contains(text, "All is well") {
			time.Sleep(300 * time.Millisecond)
			return fmt.Errorf("ringmod status says:\n%s", text)
		}
		return nil
	})
	c.logf("all is well after %v", time.Since(start).Round(time.Millisecond))
}

func (c *chaos) logf(format string, args ...any) {
	c.t.Helper()
	c.t.Logf("%s %s", time.Now().Format(clockLayout), fmt.Sprintf(format, args...))
}
