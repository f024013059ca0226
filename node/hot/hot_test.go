package hot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/hot"
	"github.com/ringmod/ringmod/ring"
)

func mustParse(t testing.TB, name string) target.Target {
	t.Helper()
	parsed, err := target.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// viewOf makes a view of n nodes of region eu with 2 replicas.
func viewOf(t testing.TB, n int) *ring.View {
	t.Helper()
	spec := ring.DefaultSpec()
	var table ring.Members
	for i := range n {
		_, err := table.Put(ring.Member{
			ID: "n" + strconv.Itoa(i), Region: "eu", State: ring.Active, Role: ring.Node, Weight: 1, Addr: "x:1",
			Spec: spec.Hash(), Epoch: table.NextEpoch(),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	v, err := ring.NewView(spec, &table)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func newKeys(v *ring.View) *hot.Keys {
	return hot.New(hot.Config{Self: "n0", Region: "eu", View: func() *ring.View { return v }})
}

// send asks for name at that rate per second, for a while, less what callers spread
// to others, and returns what was said last.
func send(k *hot.Keys, name target.Target, rate float64, size int64, lasts time.Duration) (fanout int) {
	for end := time.Now().Add(lasts); time.Now().Before(end); {
		now := rate * 2 / float64(max(2, fanout))
		time.Sleep(time.Duration(float64(time.Second) / now))
		fanout = k.Sent(name, size)
	}
	return fanout
}

func TestFanoutFollowsTheRate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		nodes  int
		rate   float64
		size   int64
		beside float64 // requests for another object, of 1 MiB
		want   int
	}{
		{"seldom", 6, 40, 1000, 0, 0},
		{"often", 6, 60, 1000, 0, 3},
		{"more often", 6, 95, 1000, 0, 4},
		{"very often", 6, 5000, 1000, 0, 5},
		{"no spare rank", 2, 5000, 1000, 0, 0},
		{"one spare rank", 3, 5000, 1000, 0, 3},
		{"large, and all that is sent", 6, 10, 4 << 20, 0, 5},
		{"large, but seldom", 6, 1, 400 << 20, 0, 0},
		{"a fifth of little", 6, 10, 100 << 10, 0, 0},
		{"a small share", 6, 10, 1 << 20, 45, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				k := newKeys(viewOf(t, test.nodes))
				stop := make(chan struct{})
				if test.beside > 0 {
					go func() {
						for {
							select {
							case <-stop:
								return
							case <-time.After(time.Duration(float64(time.Second) / test.beside)):
								k.Sent(mustParse(t, "example.com/other/@v/v1.0.0.zip"), 1<<20)
							}
						}
					}()
				}
				got := send(k, mustParse(t, "example.com/m/@v/v1.0.0.zip"), test.rate, test.size, 16*time.Second)
				close(stop)
				if got != test.want {
					t.Errorf("spread over %d ranks, want %d", got, test.want)
				}
			})
		})
	}
}

// When others help there is less to do here, which must not end the help; when fewer
// ask, it ends.
func TestFanoutLastsWhileItHelps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k, name := newKeys(viewOf(t, 6)), mustParse(t, "example.com/m/@v/v1.0.0.info")
		for range 60 {
			if got := send(k, name, 120, 1000, 5*time.Second); got != 5 {
				t.Fatalf("120/s: spread over %d ranks, want 5", got)
			}
		}
		if got := send(k, name, 5, 1000, 5*time.Second); got != 0 {
			t.Errorf("when few ask: spread over %d ranks, want only the replicas", got)
		}
	})
}

// The files of a version are spread together, those of another one are not.
func TestVersionsAreCountedApart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKeys(viewOf(t, 6))
		for i := range 1000 {
			time.Sleep(time.Millisecond)
			k.Sent(mustParse(t, "example.com/m/@v/v1.0.0.info"), 100)
			if got := k.Sent(mustParse(t, fmt.Sprintf("example.com/m/@v/v1.%d.0.info", i+1)), 100); got != 0 {
				t.Fatalf("v1.%d.0, asked for once, is spread over %d ranks", i+1, got)
			}
		}
		if got := k.Sent(mustParse(t, "example.com/m/@v/v1.0.0.zip"), 100); got != 3 {
			t.Errorf("the zip of a hot version: %d ranks, want 3 to begin with", got)
		}
		if got := send(k, mustParse(t, "example.com/m/@v/list"), 5000, 100, time.Second); got != 0 {
			t.Errorf("a list is spread over %d ranks", got)
		}
	})
}

// fakeNodes hold what holds says, and are asked by TakeHot's owner.
type fakeNodes struct {
	t     *testing.T
	holds []string // ids
	gate  chan struct{}

	mu    sync.Mutex
	asked []string
	took  map[string]int
	panic bool
}

func (f *fakeNodes) Usable(string) bool { return true }

func (f *fakeNodes) Get(_ context.Context, id string, req cache.Request, _ wire.Options) (*cache.Object, error) {
	if req.Mode != cache.Peek {
		f.t.Errorf("%s is asked with mode %d, want Peek: nothing else is sure to fetch nothing", id, req.Mode)
	}
	f.mu.Lock()
	f.asked = append(f.asked, id)
	panics := f.panic
	f.mu.Unlock()
	<-f.gate
	if panics {
		panic("a bad answer")
	}
	if !slices.Contains(f.holds, id) {
		return nil, &cache.Error{Reason: cache.NotCached}
	}
	return &cache.Object{Body: io.NopCloser(bytes.NewReader(nil))}, nil
}

func (f *fakeNodes) TakeHot(_ context.Context, t target.Target, obj *cache.Object) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.took[t.String()]++
	return errors.Join(obj.Body.Close())
}

func TestSpareRanksGetCopies(t *testing.T) {
	t.Parallel()
	v := viewOf(t, 6)
	name := mustParse(t, "example.com/m/@v/v1.0.0.zip")
	var ranks []string
	for _, i := range v.Next().Ranks("eu", ring.OfTarget(name)) {
		ranks = append(ranks, v.Member(i).ID)
	}
	for _, test := range []struct {
		name  string
		self  string
		ranks int
		holds []string
		took  int
	}{
		{"a spare rank", ranks[2], 3, ranks[:2], 1},
		{"the last one", ranks[4], 5, ranks[:2], 1},
		{"one replica has it", ranks[4], 5, ranks[1:2], 1},
		{"no replica has it", ranks[4], 5, ranks[2:4], 0},
		{"beyond the spread", ranks[4], 4, ranks[:2], 0},
		{"a replica", ranks[1], 5, ranks[:1], 0},
		{"nobody spreads", ranks[2], 0, ranks[:2], 0},
		{"more than there are", ranks[2], 1 << 30, ranks[:2], 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := &fakeNodes{t: t, holds: test.holds, gate: make(chan struct{}), took: map[string]int{}}
				k := hot.New(hot.Config{Self: test.self, Region: "eu", View: func() *ring.View { return v }, Nodes: f})
				k.Use(f)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- k.Run(ctx) }()
				for range 100 { // one flight
					k.Lacks(name, test.ranks)
				}
				synctest.Wait()
				close(f.gate)
				synctest.Wait()
				if got := f.took[name.String()]; got != test.took {
					t.Errorf("%d copies taken, want %d (asked %q)", got, test.took, f.asked)
				}
				for _, id := range f.asked {
					if !slices.Contains(ranks[:2], id) {
						t.Errorf("%s was asked, which is no replica", id)
					}
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// What a node sends ends no more than the copy, which is not tried again at once.
func TestBadAnswersEndOnlyThePull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v, name := viewOf(t, 6), mustParse(t, "example.com/m/@v/v1.0.0.zip")
		spare := v.Member(v.Next().Ranks("eu", ring.OfTarget(name))[2]).ID
		f := &fakeNodes{t: t, gate: make(chan struct{}), took: map[string]int{}, panic: true}
		close(f.gate)
		k := hot.New(hot.Config{Self: spare, Region: "eu", View: func() *ring.View { return v }, Nodes: f})
		k.Use(f)
		go func() { _ = k.Run(t.Context()) }()
		ask := func() int {
			k.Lacks(name, 5)
			synctest.Wait()
			return len(f.asked)
		}
		if got := ask(); got != 2 {
			t.Errorf("%d replicas were asked, want both", got)
		}
		if got := ask(); got != 2 {
			t.Errorf("replicas were asked %d times, want a pause first", got)
		}
		time.Sleep(6 * time.Second)
		if got := ask(); got != 4 {
			t.Errorf("replicas were asked %d times, want once more each", got)
		}
	})
}

func BenchmarkSent(b *testing.B) {
	var names []target.Target
	for i := range 1000 {
		names = append(names, mustParse(b, fmt.Sprintf("github.com/someone/something/v2/part%d/@v/v1.2.3.info", i)))
	}
	some := func() target.Target { return names[rand.IntN(len(names))] }
	for _, bench := range []struct {
		name string
		view *ring.View // nil: nothing is hot
		pick func() target.Target
	}{
		{"many", nil, some},
		{"one", nil, func() target.Target { return names[0] }},
		{"many hot", viewOf(b, 6), some},
		{"one hot", viewOf(b, 6), func() target.Target { return names[0] }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			k := newKeys(bench.view)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					k.Sent(bench.pick(), 1000)
				}
			})
		})
	}
}
