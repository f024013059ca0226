package storetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/node/store"
)

// Place puts names into 8 partitions, by the number behind their last slash, which
// takes its bytes as fixed unless it is 7. Other names are nowhere.
func Place(name string) (partition int, fixed bool) {
	if !strings.HasPrefix(name, "in/") {
		return -1, false
	}
	p := int(name[len(name)-1] - '0')
	return p, p != 7
}

type shared interface {
	store.Store
	Sums(ctx context.Context) ([]store.Sum, error)
	Keys(ctx context.Context, partition int, after store.Key, most int) ([]store.Key, error)
}

// testShares compares sums after random writes with those of a Mem that has come to the
// same another way.
func testShares(t *testing.T, s store.Store) {
	of, ok := s.(shared)
	if !ok {
		t.Fatalf("%T has no Sums", s)
	}
	random := rand.New(rand.NewPCG(1, 2))
	model := map[string]string{}
	name := func() string { return fmt.Sprintf("in/%d/%d", random.IntN(5), random.IntN(8)) }
	Put(t, s, "elsewhere/1", "x", "")
	for i := range 300 {
		n := name()
		if random.IntN(3) == 0 {
			delete(model, n)
			if err := s.Remove(n); err != nil {
				t.Fatal(err)
			}
		} else {
			model[n] = fmt.Sprint("data ", random.IntN(3))
			Put(t, s, n, model[n], "h1:x")
		}
		if i%20 == 0 {
			wantShares(t, of, model)
		}
	}
	wantShares(t, of, model)
}

func wantShares(t *testing.T, s shared, model map[string]string) {
	t.Helper()
	same := store.NewMem()
	same.Place = Place
	for name, data := range model {
		if _, fixed := Place(name); !fixed {
			data = "other bytes"
		}
		Put(t, same, name, data, "")
	}
	for p := range 8 {
		want, got := sumOf(t, same, p), sumOf(t, s, p)
		if got != want {
			t.Errorf("partition %d: %+v, want %+v", p, got, want)
		}
		if want.Objects > 0 && want.High == 0 {
			t.Errorf("partition %d sums up to %+v", p, want)
		}
		wantKeys, gotKeys := keysOf(t, same, p), keysOf(t, s, p)
		if !slices.EqualFunc(gotKeys, wantKeys, func(a, b store.Key) bool {
			return a.Hash == b.Hash && a.Name == b.Name && a.Digest == b.Digest && a.Size == b.Size && !a.Used.IsZero()
		}) {
			t.Errorf("partition %d: keys %+v, want %+v", p, gotKeys, wantKeys)
		}
	}
}

func sumOf(t *testing.T, s shared, p int) store.Sum {
	t.Helper()
	sums, err := s.Sums(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if p >= len(sums) {
		return store.Sum{}
	}
	return sums[p]
}

func keysOf(t *testing.T, s shared, p int) []store.Key {
	t.Helper()
	keys, err := s.Keys(t.Context(), p, store.Key{}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func testKeyPages(t *testing.T, s store.Store) {
	of, ok := s.(shared)
	if !ok {
		t.Fatalf("%T has no Keys", s)
	}
	for i := range 50 {
		Put(t, s, fmt.Sprintf("in/%d/%d", i, i%3), "x", "")
	}
	all := keysOf(t, of, 1)
	var paged []store.Key
	var after store.Key
	for {
		page, err := of.Keys(t.Context(), 1, after, 4)
		if err != nil || len(page) > 4 {
			t.Fatalf("a page of %d keys, %v", len(page), err)
		}
		if len(page) == 0 {
			break
		}
		paged = append(paged, page...)
		after = page[len(page)-1]
	}
	if len(all) != 17 || !slices.EqualFunc(all, paged, func(a, b store.Key) bool { return a.Name == b.Name }) {
		t.Errorf("%d keys by pages, %d at once, want 17", len(paged), len(all))
	}
	for i := 1; i < len(all); i++ {
		if all[i-1].Hash >= all[i].Hash {
			t.Errorf("keys out of order at %d", i)
		}
	}
	if keys := keysOf(t, of, 5); len(keys) > 0 {
		t.Errorf("an empty partition has %d keys", len(keys))
	}
}
