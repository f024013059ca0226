package cluster_test

import (
	"testing"
	"testing/synctest"
	"time"
)

var sixNodes = []string{"eu/a/n1", "eu/a/n2", "eu/b/n3", "eu/b/n4", "eu/c/n5", "eu/c/n6"}

// countAsked reads name that often and returns how often each node was asked.
func countAsked(t *testing.T, f *fakeNodes, read func(), times int) map[string]int {
	t.Helper()
	f.asked()
	for range times {
		read()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	counts := map[string]int{}
	for _, a := range f.calls {
		counts[a.id]++
	}
	f.calls = nil
	return counts
}

// What a node calls hot is read from that many ranks alike for a minute, with all files
// of the version.
func TestHotVersionsAreSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, sixNodes...)
		ranks := f.ranks(zipName)
		for _, id := range ranks {
			f.nodes[id].holds[zipName], f.nodes[id].holds[modName] = pattern(100), pattern(10)
		}
		c := newCluster(t, f, nil)
		read := func(name string) func() { return func() { get(t, c, request(t, name)) } }
		spread := func(when string, counts map[string]int, want int) {
			t.Helper()
			if len(counts) != want {
				t.Errorf("%s: read from %v, want %d nodes", when, counts, want)
			}
		}
		if counts := countAsked(t, f, read(zipName), 200); counts[ranks[2]]+counts[ranks[3]]+counts[ranks[4]] > 0 {
			t.Errorf("before: read from %v, want only the replicas %q", counts, ranks[:2])
		}
		for _, id := range ranks[:2] {
			f.change(id, func(n *fakeNode) { n.fanout = 4 })
		}
		read(modName)()
		counts := countAsked(t, f, read(zipName), 400)
		spread("hot", counts, 4)
		for _, id := range ranks[:4] {
			if counts[id] < 50 {
				t.Errorf("%s was asked %d times of 400: %v", id, counts[id], counts)
			}
		}
		if got := f.spreads[ranks[2]]; got != 4 {
			t.Errorf("the spare rank was told of %d ranks, want 4", got)
		}
		if got := f.spreads[ranks[0]]; got != 0 {
			t.Errorf("a replica was told of %d ranks", got)
		}
		for _, id := range ranks[:2] {
			f.change(id, func(n *fakeNode) { n.fanout = 0 })
		}
		time.Sleep(30 * time.Second)
		spread("while it lasts", countAsked(t, f, read(zipName), 400), 4)
		time.Sleep(31 * time.Second)
		if counts := countAsked(t, f, read(zipName), 200); counts[ranks[2]]+counts[ranks[3]] > 0 {
			t.Errorf("a minute later: read from %v, want only the replicas %q", counts, ranks[:2])
		}
	})
}

// A spare rank that has nothing yet costs one more call, to a replica, and nobody fills.
func TestSpareRanksWithoutACopy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, sixNodes...)
		ranks := f.ranks(zipName)
		for _, id := range ranks[:2] {
			f.nodes[id].holds[zipName], f.nodes[id].fanout = pattern(100), 5
		}
		c := newCluster(t, f, nil)
		for range 300 {
			checkGet(t, c, request(t, zipName), pattern(100))
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		count := map[string]int{}
		for _, a := range f.calls {
			count[a.id]++
		}
		if count[ranks[1]] < 100 || count[ranks[4]] == 0 || len(f.calls) > 600 {
			t.Errorf("asked %v in %d calls, want spare ranks once a time at most, and both replicas after them", count, len(f.calls))
		}
		if f.fetched > 0 {
			t.Errorf("upstream was asked %d times", f.fetched)
		}
	})
}

// A spare rank that is dead or silent costs what a replica would.
func TestSpareRanksThatFail(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newNodes(t, sixNodes...)
		ranks := f.ranks(zipName)
		for _, id := range ranks {
			f.nodes[id].holds[zipName], f.nodes[id].fanout = pattern(100), 5
		}
		f.nodes[ranks[2]].silent = true
		f.nodes[ranks[3]].down = true
		c := newCluster(t, f, nil)
		for range 50 {
			start := time.Now()
			checkGet(t, c, request(t, zipName), pattern(100))
			if took := time.Since(start); took > 100*time.Millisecond {
				t.Fatalf("a read took %v, want it hedged", took)
			}
		}
	})
}
