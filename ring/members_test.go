package ring_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ringmod/ringmod/ring"
)

// randomMember draws from so few values that epochs and states collide often.
func randomMember(random *rand.Rand) ring.Member {
	m := node(ring.DefaultSpec(), fmt.Sprintf("n%d", random.IntN(4)), fmt.Sprintf("z%d", random.IntN(2)), 1+random.IntN(2))
	m.Boot = fmt.Sprintf("b%d", random.IntN(2))
	m.Epoch = 1 + random.Uint64N(3)
	m.State = ring.State(1 + random.IntN(5))
	m.Role = ring.Role(1 + random.IntN(2))
	m.Region = []string{"eu", "us"}[random.IntN(2)]
	m.Addr = []string{"a:1", "b:1"}[random.IntN(2)]
	m.Spec += random.Uint32N(2)
	m.ReadOnly = random.IntN(2) == 0
	m.Features = random.Uint64N(2)
	return m
}

func randomTable(t testing.TB, random *rand.Rand) *ring.Members {
	t.Helper()
	table := new(ring.Members)
	for range random.IntN(8) {
		if _, err := table.Put(randomMember(random)); err != nil {
			t.Fatal(err)
		}
	}
	table.Observe(random.Uint64N(6))
	return table
}

func merged(tables ...*ring.Members) *ring.Members {
	sum := new(ring.Members)
	for _, t := range tables {
		sum.Merge(t)
	}
	return sum
}

func checkSameMembers(t testing.TB, law string, got, want *ring.Members) {
	t.Helper()
	if !slices.Equal(got.All(), want.All()) || got.Seq() != want.Seq() {
		t.Fatalf("not %s: got seq %d, %v\nwant seq %d, %v", law, got.Seq(), got.All(), want.Seq(), want.All())
	}
}

func TestMergeLaws(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3000) {
		random := rand.New(rand.NewPCG(seed, 0))
		a, b, c := randomTable(t, random), randomTable(t, random), randomTable(t, random)
		checkSameMembers(t, "commutative", merged(a, b), merged(b, a))
		checkSameMembers(t, "associative", merged(merged(a, b), c), merged(a, merged(b, c)))
		checkSameMembers(t, "idempotent", merged(a, a), merged(a))
		if sum := merged(a, b); sum.Merge(a) || sum.Merge(b) {
			t.Fatalf("seed %d: merging again reports a change", seed)
		}
	}
}

// TestExchange lets processes tell each other single entries in random order,
// twice over: they must end up alike, and no sequence number may ever fall.
func TestExchange(t *testing.T) {
	t.Parallel()
	for seed := range uint64(500) {
		random := rand.New(rand.NewPCG(seed, 1))
		entries := make([]ring.Member, 30)
		for i := range entries {
			entries[i] = randomMember(random)
		}
		var tables [3]ring.Members
		for i := range tables {
			for _, k := range slices.Concat(random.Perm(len(entries)), random.Perm(len(entries))) {
				before := tables[i].Seq()
				if _, err := tables[i].Put(entries[k]); err != nil {
					t.Fatal(err)
				}
				m, _ := tables[i].Get(entries[k].ID)
				if tables[i].Seq() < max(before, m.Epoch) || tables[i].NextEpoch() <= m.Epoch {
					t.Fatalf("seed %d: seq went from %d to %d", seed, before, tables[i].Seq())
				}
			}
			checkSameMembers(t, "convergent", &tables[i], &tables[0])
		}
	}
}

func TestDrop(t *testing.T) {
	t.Parallel()
	m := node(ring.DefaultSpec(), "a", "", 1)
	m.Epoch = 7
	for _, test := range []struct {
		state ring.State
		epoch uint64
		want  bool
	}{
		{ring.Joining, 7, false},
		{ring.Active, 7, false},
		{ring.Leaving, 7, false},
		{ring.Left, 6, false},
		{ring.Left, 7, true},
		{ring.Forgotten, 7, true},
	} {
		m.State = test.state
		members := table(t, m)
		if got := members.Drop("a", test.epoch); got != test.want || (members.Len() == 0) != test.want {
			t.Errorf("%s at epoch %d: got %t with %d entries left, want %t", test.state, test.epoch, got, members.Len(), test.want)
		}
		if members.Seq() != 7 || members.NextEpoch() != 8 {
			t.Errorf("%s: seq fell to %d", test.state, members.Seq())
		}
		if members.Drop("b", 7) {
			t.Errorf("dropped a member that is not there")
		}
	}
}

func TestObserve(t *testing.T) {
	t.Parallel()
	var members ring.Members
	for _, test := range []struct{ epoch, want uint64 }{
		{5, 5}, {3, 5}, {ring.MaxEpoch + 1, 5}, {1<<64 - 1, 5}, {ring.MaxEpoch, ring.MaxEpoch},
	} {
		if members.Observe(test.epoch); members.Seq() != test.want {
			t.Errorf("after %d: got seq %d, want %d", test.epoch, members.Seq(), test.want)
		}
	}
}

func TestCloneIsIndependent(t *testing.T) {
	t.Parallel()
	original := table(t, nodes(ring.DefaultSpec(), 2, 1)...)
	clone := original.Clone()
	late := node(ring.DefaultSpec(), "late", "", 1)
	late.Epoch = 9
	if _, err := clone.Put(late); err != nil {
		t.Fatal(err)
	}
	if original.Len() != 2 || original.Seq() != 1 || clone.Len() != 3 || clone.Seq() != 9 {
		t.Errorf("got %d entries, seq %d; clone has %d, seq %d", original.Len(), original.Seq(), clone.Len(), clone.Seq())
	}
	if _, err := new(ring.Members).Clone().Put(late); err != nil {
		t.Errorf("a clone of an empty table takes no entry: %v", err)
	}
}

func TestViewKeepsWhatItWasBuiltFrom(t *testing.T) {
	t.Parallel()
	spec := ring.DefaultSpec()
	spec.HomeWeights = map[string]int{"default": 2}
	members := table(t, nodes(spec, 3, 1)...)
	v, err := ring.NewView(spec, members)
	if err != nil {
		t.Fatal(err)
	}
	spec.HomeWeights["default"] = 3
	gone := node(spec, "node-000", "z0", 1)
	gone.Epoch, gone.State = 2, ring.Left
	if _, err := members.Put(gone); err != nil {
		t.Fatal(err)
	}
	if v.Spec().HomeWeights["default"] != 2 || v.Member(0).State != ring.Active || v.Seq() != 1 {
		t.Errorf("a view changed with its sources")
	}
}

func TestStateNames(t *testing.T) {
	t.Parallel()
	for s, want := range map[ring.State]string{0: "unknown", ring.Joining: "joining", ring.Forgotten: "forgotten", 6: "unknown", 255: "unknown"} {
		if got := s.String(); got != want {
			t.Errorf("%d: got %s, want %s", s, got, want)
		}
	}
	for r, want := range map[ring.Role]string{0: "unknown", ring.Node: "node", ring.Gateway: "gateway", 3: "unknown"} {
		if got := r.String(); got != want {
			t.Errorf("%d: got %s, want %s", r, got, want)
		}
	}
}
