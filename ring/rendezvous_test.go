package ring

import (
	"go/parser"
	"go/token"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCostIsALogarithm(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 1))
	for range 100_000 {
		hash := random.Uint64() >> random.UintN(64)
		got := float64(cost(hash)) / (1 << 32)
		if want := 64 - math.Log2(float64(hash|1)); math.Abs(got-want) > 1e-8 {
			t.Fatalf("%x: got %.10f, want %.10f", hash, got, want)
		}
	}
	for _, test := range []struct{ hash, want uint64 }{
		{0, 64 << 32}, {1, 64 << 32}, {1 << 63, 1 << 32}, {1<<64 - 1, 1}, {3 << 62, 0x6a3fe5c7},
	} {
		if got := cost(test.hash); got != test.want {
			t.Errorf("%x: got %x, want %x", test.hash, got, test.want)
		}
	}
}

// TestCostFalls checks what makes the order total and the short cut for equal
// weights right: a higher hash never costs more.
func TestCostFalls(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(2, 2))
	for range 100_000 {
		hash := random.Uint64() >> random.UintN(64)
		step := random.Uint64() >> random.UintN(64)
		if step > math.MaxUint64-hash {
			continue
		}
		if low, high := cost(hash), cost(hash+step); high > low {
			t.Fatalf("%x costs %x, %x costs %x", hash, low, hash+step, high)
		}
	}
}

func TestEqualWeightsNeedNoCost(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 3))
	indexes := []Index{0, 1, 2, 3, 4, 5, 6, 7}
	for range 2000 {
		hashes := make([]uint64, len(indexes))
		for i := range hashes {
			hashes[i] = random.Uint64N(12) << (random.UintN(2) * 60) // many ties
		}
		hash := func(i Index) uint64 { return hashes[i] }
		got, _ := contenders(indexes, func(Index) int { return 3 })
		want := slices.Clone(got)
		rendezvous(got, false, hash)
		rendezvous(want, true, hash)
		for k := range got {
			if got[k].index != want[k].index {
				t.Fatalf("hashes %x, rank %d: got %d, want %d", hashes, k, got[k].index, want[k].index)
			}
		}
	}
}

func TestRendezvousFollowsWeights(t *testing.T) {
	t.Parallel()
	weights := []int{1, 2, 5, 16}
	random := rand.New(rand.NewPCG(4, 4))
	first := make([]int, len(weights))
	const draws = 50_000
	cs, weighted := contenders([]Index{0, 1, 2, 3}, func(i Index) int { return weights[i] })
	for range draws {
		rendezvous(cs, weighted, func(Index) uint64 { return random.Uint64() })
		first[cs[0].index]++
	}
	for i, w := range weights {
		got, want := float64(first[i])/draws, float64(w)/24
		if math.Abs(got-want) > 0.008 { // four standard deviations
			t.Errorf("weight %d: first in %.4f of the draws, want %.4f", w, got, want)
		}
	}
}

func TestOwnersReturnsPanicsAsErrors(t *testing.T) {
	t.Parallel()
	spec := DefaultSpec()
	spec.LoadPermille = 500 // Validate refuses it: half of the partitions have no room
	members := []Member{{ID: "a", Weight: 1}, {ID: "b", Weight: 1}}
	if owners, err := owners(spec, members, []Index{0, 1}); err == nil || owners != nil {
		t.Errorf("got %d owners, %v, want an error", len(owners), err)
	}
}

// TestImports holds the package to what it says of itself.
func TestImports(t *testing.T) {
	t.Parallel()
	allowed := []string{
		"cmp", "encoding/binary", "fmt", "maps", "math", "math/bits", "slices", "strconv", "strings",
		"github.com/buraksezer/consistent", "github.com/cespare/xxhash/v2",
		"github.com/ringmod/ringmod/internal/target", // the names of what is placed
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range parsed.Imports {
			if path := strings.Trim(spec.Path.Value, `"`); !slices.Contains(allowed, path) {
				t.Errorf("%s imports %s", file, path)
			}
		}
	}
}
