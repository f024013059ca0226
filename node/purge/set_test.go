package purge_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"
	"google.golang.org/protobuf/proto"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node/purge"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

const dir = "example.com/m/@v/"

// draw returns a tombstone of a small world, so that many are of one name.
func draw(r *rand.Rand, made time.Time) purge.Tombstone {
	names := []purge.Name{
		{Name: dir + "v1.0.0.zip"},
		{Name: dir + "v1.0.0.info"},
		{Name: dir + "v1.0.0", Prefix: true},
		{Name: dir, Prefix: true},
		{Name: "example.com/m/@latest"},
		{Name: "example.com/", Prefix: true},
	}
	return purge.Tombstone{
		Name: names[r.IntN(len(names))], Epoch: 1 + r.Uint64N(4), Lifted: r.IntN(2) == 0, Text: []string{"", "a", "b"}[r.IntN(3)], Made: made,
	}
}

// Merging is commutative, associative and idempotent: whatever the order and however often
// and in whatever groups tombstones are learnt, all end with the same.
func TestMergeIsAJoin(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		now := time.Now()
		all := make([]purge.Tombstone, r.IntN(20))
		for i := range all {
			all[i] = draw(r, now)
		}
		sets := make([]*purge.Set, 4)
		for i := range sets {
			sets[i] = purge.NewSet()
			mine := slices.Clone(all)
			r.Shuffle(len(mine), func(a, b int) { mine[a], mine[b] = mine[b], mine[a] })
			if i > 1 { // by way of another set, and twice
				other := purge.NewSet()
				k := r.IntN(len(mine) + 1)
				merge(t, other, mine[k:]...)
				merge(t, other, mine[:k]...)
				learnt, _ := other.Since(0)
				merge(t, sets[i], mine[:k]...)
				merge(t, sets[i], learnt...)
				mine = learnt
			}
			merge(t, sets[i], mine...)
		}
		want, _ := sets[0].Since(0)
		for i, s := range sets {
			if got, _ := s.Since(0); !reflect.DeepEqual(got, want) || s.Digest() != sets[0].Digest() {
				t.Fatalf("seed %d, set %d:\ngot  %v\nwant %v", seed, i, got, want)
			}
		}
	}
}

func merge(t *testing.T, s *purge.Set, all ...purge.Tombstone) []purge.Tombstone {
	t.Helper()
	news, err := s.Merge(all...)
	if err != nil {
		t.Fatal(err)
	}
	return news
}

// What is looked up is what a look at each tombstone says.
func TestLookup(t *testing.T) {
	t.Parallel()
	alphabet := []string{"a", "b", "/", "/@v/", ".x"}
	word := func(r *rand.Rand) string {
		w := "a.b/"
		for range r.IntN(6) {
			w += alphabet[r.IntN(len(alphabet))]
		}
		return w
	}
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 2))
		s := purge.NewSet()
		var all []purge.Tombstone
		for range r.IntN(12) {
			all = append(all, purge.Tombstone{
				Name: purge.Name{Name: word(r), Prefix: r.IntN(2) == 0}, Epoch: 1 + r.Uint64N(3), Lifted: r.IntN(3) == 0, Made: time.Now(),
			})
		}
		merge(t, s, all...)
		live, _ := s.Since(0)
		for range 50 {
			name := word(r)
			want := slices.ContainsFunc(live, func(x purge.Tombstone) bool {
				return !x.Lifted && (x.Name.Name == name || x.Prefix && strings.HasPrefix(name, x.Name.Name))
			})
			if got := s.Purged(name); got != want {
				t.Fatalf("seed %d: Purged(%q) = %v, want %v; %v", seed, name, got, want, live)
			}
			if err := s.Check(name); (cache.ReasonOf(err) == cache.Purged) != want {
				t.Fatalf("seed %d: Check(%q) = %v", seed, name, err)
			}
		}
	}
}

func names(t *testing.T, path, version string) []purge.Name {
	t.Helper()
	all, err := purge.Names(module.Version{Path: path, Version: version})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func write(t *testing.T, s *purge.Set, path, version string, lifted bool) {
	t.Helper()
	if _, err := s.Write(names(t, path, version), lifted, "because"); err != nil {
		t.Fatal(err)
	}
}

func TestVersionLeavesTheList(t *testing.T) {
	t.Parallel()
	s := purge.NewSet()
	list := "v1.0.0-rc\nv1.0.0-rc.1\nv1.0.0\nv1.1.0\n"
	check := func(want string) {
		t.Helper()
		if got := string(s.List("example.com/M", []byte(list))); got != want {
			t.Errorf("list is %q, want %q", got, want)
		}
	}
	check(list)
	write(t, s, "example.com/M", "v1.0.0-rc", false)
	check("v1.0.0-rc.1\nv1.0.0\nv1.1.0\n") // and not what begins with the same letters
	for version, want := range map[string]bool{"v1.0.0-rc": true, "v1.0.0-rc.1": false, "master": false, "": false} {
		if got := s.CheckVersion(module.Version{Path: "example.com/M", Version: version}); (got != nil) != want {
			t.Errorf("CheckVersion(%s) = %v", version, got)
		}
	}
	if _, err := s.Write([]purge.Name{{Name: "example.com/!m/@v/v1.1.0.zip"}}, false, ""); err != nil {
		t.Fatal(err)
	}
	check("v1.0.0-rc.1\nv1.0.0\n") // what has no zip is no version
	write(t, s, "example.com/M", "v1.0.0-rc", true)
	check("v1.0.0-rc\nv1.0.0-rc.1\nv1.0.0\n")
	write(t, s, "example.com/M", "", false)
	check("")
	for _, name := range []string{"example.com/!m/@latest", "example.com/!m/@v/list", "example.com/!m/@v/master.info"} {
		if err := s.Check(name); cache.ReasonOf(err) != cache.Purged || !strings.Contains(err.Error(), "because") {
			t.Errorf("Check(%s) = %v", name, err)
		}
	}
	for _, name := range []string{"example.com/!m/v2/@v/list", "example.com/!m2/@latest", "example.com/!m/x/@latest"} {
		if err := s.Check(name); err != nil {
			t.Errorf("Check(%s) = %v, want nothing: it is another module", name, err)
		}
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	s := purge.NewSet()
	var all []purge.Tombstone
	for i := range purge.MaxTombstones {
		all = append(all, purge.Tombstone{Name: purge.Name{Name: fmt.Sprintf("a.b/m%d/@latest", i)}, Epoch: 1, Made: time.Now()})
	}
	merge(t, s, all...)
	more := purge.Tombstone{Name: purge.Name{Name: "a.b/more/@latest"}, Epoch: 1, Made: time.Now()}
	if _, err := s.Merge(more); !errors.Is(err, purge.ErrFull) {
		t.Errorf("one too many: %v, want ErrFull", err)
	}
	if _, err := s.Write([]purge.Name{more.Name}, false, ""); !errors.Is(err, purge.ErrFull) {
		t.Errorf("writing one too many: %v, want ErrFull", err)
	}
	if _, err := s.Write([]purge.Name{all[0].Name}, true, ""); err != nil {
		t.Errorf("lifting one of them: %v", err)
	}
}

func TestAgesOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := purge.NewSet()
		write(t, s, "example.com/m", "v1.0.0", false)
		time.Sleep(29 * 24 * time.Hour)
		told, _ := s.News(0)
		write(t, s, "example.com/m", "v1.0.0", true)
		if s.Purged(dir + "v1.0.0.zip") {
			t.Error("it is purged though it was lifted")
		}
		time.Sleep(2 * 24 * time.Hour)
		if news := merge(t, s, decode(t, told...)...); len(news) != 0 {
			t.Errorf("a purge that was lifted comes back: %v", news)
		}
		fresh := purge.NewSet()
		if news := merge(t, fresh, decode(t, told...)...); len(news) != 3 || !fresh.Purged(dir+"v1.0.0.zip") {
			t.Errorf("%d of 3 tombstones that are 29 days old are learnt", len(news))
		}
		old := told[0]
		old.Age.Seconds = 30 * 24 * 3600
		if news := merge(t, purge.NewSet(), decode(t, old)...); len(news) != 0 {
			t.Error("one that is 30 days old is learnt")
		}
	})
}

func decode(t *testing.T, told ...*ringmodv1.Tombstone) []purge.Tombstone {
	t.Helper()
	var all []purge.Tombstone
	for _, p := range told {
		one, err := purge.Decode(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
	}
	return all
}

func TestBadNames(t *testing.T) {
	t.Parallel()
	for _, m := range []module.Version{
		{Path: ""},
		{Path: "nodot/x"},
		{Path: "example.com/m", Version: "master"},
		{Path: "example.com/m", Version: "v1"},
		{Path: "example.com/m", Version: "v2.0.0"},
		{Path: "example.com/m", Version: "latest"},
		{Path: "example.com/../m", Version: "v1.0.0"},
	} {
		if all, err := purge.Names(m); err == nil {
			t.Errorf("Names(%v) = %v, want an error", m, all)
		}
	}
	for _, n := range []purge.Name{
		{},
		{Prefix: true},
		{Name: "a", Prefix: true},
		{Name: "/a", Prefix: true},
		{Name: "a//b", Prefix: true},
		{Name: "a/../b", Prefix: true},
		{Name: "a/\x00", Prefix: true},
		{Name: `a/\`, Prefix: true},
		{Name: "sumdb/", Prefix: true},
		{Name: "sumdb/sum.golang.org/latest"},
		{Name: "a.b/" + strings.Repeat("c", 3000), Prefix: true},
		{Name: "a.b/c"},
	} {
		if n.Check() == nil {
			t.Errorf("Check() of %.40q passes", n.Name)
		}
	}
	for _, n := range []purge.Name{{Name: "a.b/", Prefix: true}, {Name: "a.b/c/@v/v1", Prefix: true}, {Name: "a.b/c/@v/list"}} {
		if err := n.Check(); err != nil {
			t.Errorf("Check() of %q: %v", n.Name, err)
		}
	}
}

// FuzzDecode reads what another member may send: nothing of it may panic, and what is taken
// is within bounds and comes back as it was.
func FuzzDecode(f *testing.F) {
	s := purge.NewSet()
	if _, err := s.Write([]purge.Name{{Name: "a.b/c/@v/", Prefix: true}, {Name: "a.b/c/@latest"}}, false, "words"); err != nil {
		f.Fatal(err)
	}
	all, _ := s.News(0)
	for _, p := range all {
		b, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p ringmodv1.Tombstone
		if proto.Unmarshal(b, &p) != nil {
			return
		}
		got, err := purge.Decode(&p)
		if err != nil {
			return
		}
		if len(got.Text) > purge.MaxText || got.Name.Check() != nil || got.Made.After(time.Now()) {
			t.Errorf("out of bounds: %+v", got)
		}
		again, err := purge.Decode(purge.Encode(got))
		again.Made = got.Made
		if err != nil || again != got {
			t.Errorf("got %+v, %v, want %+v", again, err, got)
		}
		if _, err := purge.NewSet().Merge(got); err != nil {
			t.Error(err)
		}
	})
}
