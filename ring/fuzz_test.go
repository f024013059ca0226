package ring_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/ring"
)

func FuzzPartition(f *testing.F) {
	f.Add("golang.org/x/mod", "v0.42.0")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, a, b string) {
		for class, test := range map[string]struct {
			got ring.Partition
			key string
		}{
			"version": {ring.OfVersion(a, b), "\x01" + a + "@" + b},
			"module":  {ring.OfModule(a), "\x02" + a},
			"sumdb":   {ring.OfSumdb(a, b), "\x03" + a + b},
		} {
			if want := ring.Partition(refHash(test.key) % ring.Partitions); test.got != want {
				t.Errorf("%s: got %d, want %d", class, test.got, want)
			}
		}
	})
}

// drawMembers reads entries from bytes, eleven to an entry. Many are invalid.
func drawMembers(data []byte) []ring.Member {
	var members []ring.Member
	spec := ring.DefaultSpec().Hash()
	for c := range slices.Chunk(data[:min(len(data), 30*11)], 11) {
		if len(c) < 11 {
			break
		}
		members = append(members, ring.Member{
			ID:       strings.Trim(string(c[0:2]), "\x00"),
			Boot:     string(c[2] & 'c'),
			Epoch:    uint64(c[3]) << (c[4] % 64),
			State:    ring.State(c[5] % 8),
			Role:     ring.Role(c[6] % 4),
			Region:   string('a' + c[7]%3),
			Zone:     strings.Repeat("z", int(c[8]%40)),
			Weight:   int(int8(c[9])) % 20,
			Addr:     "a:1",
			Spec:     spec + uint32(c[10]&1),
			ReadOnly: c[10]&2 != 0,
			Features: uint64(c[10] >> 2),
		})
	}
	return members
}

func FuzzMerge(f *testing.F) {
	f.Add([]byte("aab\x01\x00\x02\x01ab\x01\x00aab\x01\x00\x03\x01ab\x01\x00"), uint8(1))
	f.Add([]byte("aab\x05\x00\x02\x01ab\x01\x00bbb\x01\x00\x03\x01ab\x01\x00"), uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, cut uint8) {
		var a, b, all ring.Members
		for i, m := range drawMembers(data) {
			part := &a
			if i > int(cut) {
				part = &b
			}
			before := part.Clone()
			changed, err := part.Put(m)
			if (err != nil) != (m.Check() != nil) {
				t.Fatalf("put %v: %v, check: %v", m, err, m.Check())
			}
			if same := slices.Equal(before.All(), part.All()); same == changed {
				t.Fatalf("put %v: says changed %t, table the same %t", m, changed, same)
			}
			if err != nil && part.Seq() != before.Seq() {
				t.Fatalf("put %v: refused, but seq is %d", m, part.Seq())
			}
			_, _ = all.Put(m)
		}
		checkSameMembers(t, "commutative", merged(&a, &b), merged(&b, &a))
		checkSameMembers(t, "associative", merged(&a, &b), &all)
		checkSameMembers(t, "idempotent", merged(&a, &b, &a), &all)
	})
}

// FuzzNewView builds tables from whatever the member table let in.
func FuzzNewView(f *testing.F) {
	f.Add([]byte("aab\x01\x00\x02\x01ab\x01\x00bbb\x01\x00\x03\x01ab\x01\x00"), uint8(2), uint8(128), uint8(150), uint8(1))
	f.Add([]byte("aab\x01\x00\x02\x01ab\x10\x00bbb\x01\x00\x01\x01ab\x0f\x00"), uint8(5), uint8(1), uint8(1), uint8(0))
	f.Add([]byte(nil), uint8(0), uint8(0), uint8(0), uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, replicas, virtual, load, home uint8) {
		spec := ring.DefaultSpec()
		spec.Replicas, spec.VirtualNodes, spec.LoadPermille = int(replicas%7), int(virtual%64), 1000+int(load)
		spec.HomeWeights = map[string]int{"a": int(home), "b": 2}
		hash := spec.Hash()
		var members ring.Members
		for _, m := range drawMembers(data) {
			m.Spec += hash - ring.DefaultSpec().Hash()
			_, _ = members.Put(m)
		}
		v, err := ring.NewView(spec, &members)
		if err != nil {
			if spec.Validate() == nil && len(members.All())*ring.MaxWeight < ring.Partitions/16 {
				t.Fatalf("%d members: %v", members.Len(), err)
			}
			return
		}
		for _, table := range []*ring.Table{v.Current(), v.Next()} {
			for _, region := range table.Regions() {
				checkRanks(t, table, region, spec)
			}
		}
		ring.Plan(v.Current(), v.Next())
	})
}
