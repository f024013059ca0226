package main

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"slices"
	"time"
)

// metric is one figure that a run yields for each side.
type metric struct {
	name string
	unit string
	// The ratio of ours to the base that counts as reached: at least atLeast,
	// at most atMost; zero means there is no such goal.
	atLeast, atMost float64
	strict          bool // every run must reach it, not the median
	// ceiling is what no run of ours may exceed, in unit, whatever the base does;
	// zero means there is none.
	ceiling float64
}

// side is one of the two that are compared.
type side struct {
	name string
	proc *process // nil when there is no server of its own to measure
	node *process // what a gateway has behind it; nil when it has nothing
}

// contest compares two sides in alternating runs.
type contest struct {
	base, ours string
	metrics    []metric
	pairs      []pair
}

// pair holds two neighbouring runs: the values of each metric, and the larger
// share of the machine that other work took in one of them, 0 to 1.
type pair struct {
	base, ours []float64
	other      float64
}

// quiet is the share of other work up to which a pair counts as undisturbed.
const quiet = 0.12

// usage is what a server took during a run; NaN where there was none.
type usage struct {
	cpu float64 // seconds, user and system
	rss float64 // peak resident memory in MB, summed over its processes
}

// rules say how often a contest is played.
type rules struct {
	runs     int       // quiet pairs wanted
	attempts int       // pairs at most; below runs it counts as runs
	until    time.Time // from then on no pair beyond runs begins
}

// budget is how long a whole benchmark may go on repeating disturbed pairs.
const budget = 4 * time.Minute

// rules returns the rules for contests of runs pairs.
func (b *bench) rules(runs int) rules {
	return rules{runs: runs, attempts: 2 * runs, until: b.start.Add(budget)}
}

// play runs once for each side in turn until there are enough quiet pairs or
// the rules forbid more, and keeps the quietest. Who begins a pair alternates,
// so that drift of the machine favours nobody.
func (c *contest) play(r rules, base, ours side, once func(s side, run int) ([]float64, error)) error {
	c.base, c.ours = base.name, ours.name
	var pairs []pair
	for i, calm := 0, 0; calm < r.runs && r.allow(i, time.Now()); i++ {
		var p pair
		turns := []func() error{
			func() (err error) { p.base, err = p.turn(base, i, once); return err },
			func() (err error) { p.ours, err = p.turn(ours, i, once); return err },
		}
		for k := range turns {
			if err := turns[(i+k)%2](); err != nil {
				return err
			}
		}
		if pairs = append(pairs, p); p.other <= quiet {
			calm++
		}
	}
	c.pairs = quietest(pairs, r.runs)
	return nil
}

// allow says whether one more pair may begin after played ones.
func (r rules) allow(played int, now time.Time) bool {
	return played < r.runs || played < r.attempts && now.Before(r.until)
}

// quietest returns the n pairs that other work disturbed least.
func quietest(pairs []pair, n int) []pair {
	slices.SortStableFunc(pairs, func(a, b pair) int { return cmp.Compare(a.other, b.other) })
	return pairs[:min(n, len(pairs))]
}

func (p *pair) turn(s side, run int, once func(side, int) ([]float64, error)) ([]float64, error) {
	watch, err := watchOthers()
	if err != nil {
		return nil, err
	}
	values, err := once(s, run)
	if err != nil {
		return nil, fmt.Errorf("measuring %s, run %d: %w", s.name, run+1, err)
	}
	share, err := watch()
	p.other = max(p.other, share)
	return values, err
}

// metered runs f and says what the server took meanwhile.
func metered(p *process, f func() error) (usage, error) {
	if p == nil {
		return usage{math.NaN(), math.NaN()}, f()
	}
	resetPeaks(p.pid())
	before, err := readTree(p.pid())
	if err != nil {
		return usage{}, err
	}
	if err := f(); err != nil {
		return usage{}, fmt.Errorf("%w\n%s", err, p.lastWords())
	}
	after, err := readTree(p.pid())
	return usage{cpu: after.cpu - before.cpu, rss: after.rss}, err
}

// watchOthers starts to look at the whole machine. The function it returns
// yields the share of the machine's CPU time that went to neither this process
// nor its descendants.
func watchOthers() (func() (float64, error), error) {
	busy, tree, err := machineAndUs()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	return func() (float64, error) {
		busy2, tree2, err := machineAndUs()
		elapsed := time.Since(start).Seconds()
		return max(0, (busy2.busy-busy.busy)-(tree2.cpu-tree.cpu)) / (elapsed * float64(busy.cpus)), err
	}, nil
}

func machineAndUs() (machine, usage, error) {
	m, err := readMachine()
	if err != nil {
		return m, usage{}, err
	}
	u, err := readTree(os.Getpid())
	return m, u, err
}
