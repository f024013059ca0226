package gateway

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/ringmod/ringmod/internal/target"
)

func testEntry(t testing.TB, i, size int) *entry {
	t.Helper()
	parsed, err := target.Parse(fmt.Sprintf("example.com/m%d/@v/v1.0.0.mod", i))
	if err != nil {
		t.Fatal(err)
	}
	return &entry{target: parsed, body: make([]byte, size)}
}

// checkMemory holds the books against what is there.
func checkMemory(t *testing.T, m *memory) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	var bytes int64
	places := 0
	for p := m.newest; p != nil; p = p.older {
		if p.older != nil && p.older.newer != p || p.older == nil && m.oldest != p {
			t.Errorf("the links of %s lead elsewhere", p.entry.target)
		}
		bytes += cost(p.entry)
		places++
		if got := m.shard(p.entry.target.String()).places[p.entry.target.String()]; got != p {
			t.Errorf("%s is queued but cannot be found", p.entry.target)
		}
	}
	found := 0
	for i := range m.shards {
		found += len(m.shards[i].places)
	}
	if bytes != m.bytes || bytes > m.limit || found != places {
		t.Errorf("got %d bytes counted, %d there, limit %d; %d places queued, %d found", m.bytes, bytes, m.limit, places, found)
	}
}

func TestMemoryBounds(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	m := newMemory(limit)
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		e := testEntry(t, rnd.IntN(500), rnd.IntN(limit/8))
		if rnd.IntN(3) > 0 {
			m.get(e.target.String())
			continue
		}
		m.put(e)
		if m.used() > limit {
			t.Fatalf("got %d bytes, want at most %d", m.used(), limit)
		}
	}
	checkMemory(t, m)
	if m.used() < limit/2 {
		t.Errorf("got %d bytes, want more of %d used", m.used(), limit)
	}
}

func TestMemoryKeepsWhatIsRead(t *testing.T) {
	t.Parallel()
	m := newMemory(64 * (1<<10 + overhead))
	hot := testEntry(t, 0, 1<<10)
	m.put(hot)
	for i := range 10_000 {
		if m.get(hot.target.String()) == nil {
			t.Fatalf("what is read all the time was pushed out by pass %d", i)
		}
		m.put(testEntry(t, i+1, 1<<10))
	}
	checkMemory(t, m)
}

func TestMemoryReplaces(t *testing.T) {
	t.Parallel()
	m := newMemory(1 << 20)
	for _, size := range []int{10, 50_000, 0} {
		e := testEntry(t, 1, size)
		m.put(e)
		if got := m.get(e.target.String()); got != e {
			t.Errorf("size %d: got the old entry", size)
		}
		checkMemory(t, m)
	}
	m.put(testEntry(t, 1, 1<<20))
	if got := m.get(testEntry(t, 1, 0).target.String()); got != nil {
		t.Error("an entry too large to be kept left the one before it in place")
	}
	checkMemory(t, m)
}

func TestMemoryOfNothing(t *testing.T) {
	t.Parallel()
	m := newMemory(-1)
	e := testEntry(t, 1, 0)
	m.put(e)
	if m.get(e.target.String()) != nil || m.used() != 0 {
		t.Error("a memory of nothing keeps something")
	}
}

func TestMemoryConcurrently(t *testing.T) {
	t.Parallel()
	m := newMemory(100 << 10)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 0))
			for range 3_000 {
				e := testEntry(t, rnd.IntN(200), rnd.IntN(2000))
				if got := m.get(e.target.String()); got != nil && got.target != e.target {
					t.Errorf("got %s for %s", got.target, e.target)
				}
				if rnd.IntN(2) == 0 {
					m.put(e)
				}
			}
		})
	}
	wg.Wait()
	checkMemory(t, m)
}

func TestMemoryDrops(t *testing.T) {
	t.Parallel()
	m := newMemory(1 << 20)
	for i := range 20 {
		m.put(testEntry(t, i, 100))
	}
	gone := map[string]bool{}
	for _, i := range []int{0, 7, 8, 19} {
		gone[testEntry(t, i, 0).target.String()] = true
	}
	m.drop(func(e *entry) bool { return gone[e.target.String()] })
	checkMemory(t, m)
	for i := range 20 {
		name := testEntry(t, i, 0).target.String()
		if kept := m.get(name) != nil; kept == gone[name] {
			t.Errorf("%s is kept: %v", name, kept)
		}
	}
}
