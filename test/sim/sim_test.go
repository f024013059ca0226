package sim

import (
	"flag"
	"fmt"
	"runtime/debug"
	"testing"
	"testing/synctest"
)

var (
	seeds = flag.Int("seeds", 0, "how many seeds TestSeeds plays; 0 = 50, or 2000 without -short, or 5 with -short under the race detector")
	first = flag.Uint64("first", 1, "the first of them")
	logs  = flag.Bool("logs", false, "print what the members of a seed that fails have logged")
)

// A world is garbage soon: to collect it less often saves a fifth of the time.
func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	m.Run()
}

// regressions are seeds that have failed, and what was found. They mean this as long
// as draw draws alike: what is new has to be drawn behind what there is.
var regressions = []struct {
	seed  uint64
	found string
}{
	{4, "a write to a broken stream failed while its end was on the way, and grpc-go spun (node/member/membertest)"},
	{44, "the NotCached of a node that was only to look became the answer when all coordinators were gone (gateway/cluster)"},
	{135, "upstream broke off in mid-fill, and nobody looked for copies in other regions (gateway/cluster)"},
	{185, "upstream sent something shorter, likewise (gateway/cluster)"},
	{18, "a coordinator that was back looked up at the database what a node of its region had (node/peer)"},
	{27, "likewise (node/peer)"},
	{2077, "a lookup was asked of the coordinator of another region before the own one (node/peer)"},
	{3067, "what a gateway without nodes got from a broken upstream stayed in its memory (gateway)"},
	{1036, "a purge let a gateway forget what it had said of other modules, and say something older (gateway)"},
	{1078, "likewise (gateway)"},
	{1487, "the age of a list was counted from the end of a slow body (node)"},
	{1769, "two nodes that had lost the same copies fetched them from upstream, each for itself (node/scrub)"},
	{1936, "a node that was killed and moved in its first minute knew nobody but its seeds, which were gone (node/member)"},
	{1970, "a node fetched again what it had lost, and another region had it (node/scrub)"},
	{2537, "who joined a fill that ended in trouble was not given the copy that had come before he asked (gateway/cluster)"},
	{2712, "most nodes of a region were lost, which only an operator may forget: the simulated one did not (test/sim)"},
	{2327, "a zip was cut off as upstream had sent something else, after too much of it to be mended from a copy (test/sim)"},
	{3396, "the disk of a node failed under a fill of what upstream sent wrong, and nobody looked for a copy (gateway/cluster)"},
	{850, "a zip was evicted as soon as it was stored, again and again, before who waited for it could open it (node)"},
	{4599, "a cut towards upstream stalled a fill, which was waited for as when upstream stalls by itself (test/sim)"},
	{4259, "a node that had moved to an empty machine was given nobody to begin with but who had left for good (test/sim)"},
	{987, "a coordinator that had just become one asked upstream, which was called needless until all had seen the change (test/sim)"},
}

func TestRegressions(t *testing.T) {
	t.Parallel()
	if testing.Short() && raced {
		t.Skip("they are played without the race detector (make test), which would take minutes")
	}
	for _, r := range regressions {
		t.Run(fmt.Sprint(r.seed), func(t *testing.T) {
			t.Parallel()
			playSeed(t, r.seed)
			if t.Failed() {
				t.Logf("this seed has once found that %s", r.found)
			}
		})
	}
}

func TestSeeds(t *testing.T) {
	t.Parallel()
	n := *seeds
	switch {
	case n != 0:
	case testing.Short() && raced:
		n = 5
	case testing.Short():
		n = 50
	default:
		n = 2000
	}
	for i := range n {
		seed := *first + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			playSeed(t, seed)
		})
	}
}

// playSeed plays what a seed draws, and prints it when it fails.
func playSeed(t *testing.T, seed uint64) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := draw(seed)
		w, bad := play(t, p)
		if len(bad) == 0 {
			return
		}
		t.Errorf("%s", p)
		for _, each := range bad[:min(len(bad), 20)] {
			t.Errorf("  %s", each)
		}
		if more := len(bad) - 20; more > 0 {
			t.Errorf("  and %d more", more)
		}
		for _, id := range w.order {
			if *logs {
				t.Logf("log of %s:\n%s", id, w.machines[id].logs)
			}
		}
	})
}
