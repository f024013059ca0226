package ring_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/ringmod/ringmod/ring"
)

// The functions below are a second implementation of the package comment, slow
// and plain, without the library. TestReference proves that the comment says
// enough.

func refHash(parts ...string) uint64 {
	d := xxhash.NewWithSeed(0x72696e676d6f6401)
	_, _ = d.WriteString(strings.Join(parts, ""))
	return d.Sum64()
}

func u16(p int) string { return string([]byte{byte(p >> 8), byte(p)}) }

func refCost(hash uint64) *big.Int {
	x := new(big.Int).SetUint64(hash | 1)
	l := int64(x.BitLen() - 1)
	m := x.Lsh(x, uint(64-x.BitLen()))
	for range 32 {
		q := new(big.Int).Mul(m, m)
		q.Rsh(q, 64)
		b := q.Bit(63)
		m = q.Lsh(q, 1-b)
		l = 2*l + int64(b)
	}
	return big.NewInt(64<<32 - l)
}

type refName struct {
	name   string
	weight int64
}

func refOrder(domain string, p int, names []refName) []string {
	names = slices.Clone(names)
	slices.SortFunc(names, func(a, b refName) int {
		ha, hb := refHash(domain, u16(p), a.name), refHash(domain, u16(p), b.name)
		ca := new(big.Int).Mul(refCost(ha), big.NewInt(b.weight))
		cb := new(big.Int).Mul(refCost(hb), big.NewInt(a.weight))
		switch {
		case ca.Cmp(cb) != 0:
			return ca.Cmp(cb)
		case ha != hb:
			return map[bool]int{true: -1, false: 1}[ha > hb]
		}
		return strings.Compare(a.name, b.name)
	})
	var order []string
	for _, n := range names {
		order = append(order, n.name)
	}
	return order
}

type refPoint struct {
	at   uint64
	unit int
}

// refOwners returns the owner of each partition; members are in id order.
func refOwners(spec ring.Spec, members []ring.Member) []string {
	var unitOf []string
	var points []refPoint
	for _, m := range members {
		for w := range m.Weight {
			for i := range spec.VirtualNodes {
				at := refHash(fmt.Sprintf("%d:%s|%d", i, m.ID, w))
				points = append(points, refPoint{at, len(unitOf)})
			}
			unitOf = append(unitOf, m.ID)
		}
	}
	slices.SortFunc(points, func(a, b refPoint) int { return map[bool]int{true: -1, false: 1}[a.at < b.at] })
	most := int(math.Ceil(ring.Partitions / float64(len(unitOf)) * float64(spec.LoadPermille) / 1000))
	load := make([]int, len(unitOf))
	var owners []string
	for p := range ring.Partitions {
		key := refHash(string(binary.LittleEndian.AppendUint64(nil, uint64(p))))
		i := slices.IndexFunc(points, func(pt refPoint) bool { return pt.at >= key })
		for i = max(i, 0); load[points[i].unit] >= most; i = (i + 1) % len(points) {
		}
		load[points[i].unit]++
		owners = append(owners, unitOf[points[i].unit])
	}
	return owners
}

// refRanks returns the ranks of p.
func refRanks(spec ring.Spec, members []ring.Member, p int, owner string) []string {
	zones := make(map[string]string)
	var names []refName
	for _, m := range members {
		zones[m.ID] = m.Zone
		names = append(names, refName{m.ID, int64(m.Weight)})
	}
	ranks := []string{owner}
	used := map[string]bool{zones[owner]: true}
	order := refOrder("\x10", p, names)
	for _, id := range order {
		if !used[zones[id]] {
			ranks, used[zones[id]] = append(ranks, id), true
		}
	}
	for _, id := range order {
		if !slices.Contains(ranks, id) {
			ranks = append(ranks, id)
		}
	}
	return ranks[:min(len(ranks), spec.Replicas+3)]
}

func TestReference(t *testing.T) {
	t.Parallel()
	spec := ring.DefaultSpec()
	spec.HomeWeights = map[string]int{"ap": 0, "us": 5}
	var members []ring.Member
	for i, m := range nodes(spec, 14, 3) {
		m.Region = []string{"ap", "eu", "us"}[min(i/3, 2)]
		m.Weight = 1 + (i*i)%5
		members = append(members, m)
	}
	table := view(t, spec, members...).Current()
	for _, region := range table.Regions() {
		in := slices.DeleteFunc(slices.Clone(members), func(m ring.Member) bool { return m.Region != region })
		for p, owner := range refOwners(spec, in) {
			var got []string
			for _, i := range table.Ranks(region, ring.Partition(p)) {
				got = append(got, table.Member(i).ID)
			}
			want := []string{owner}
			if p%8 == 0 { // slow
				want = refRanks(spec, in, p, owner)
			}
			if !slices.Equal(got[:len(want)], want) {
				t.Fatalf("region %s, partition %d: got %v, want %v", region, p, got, want)
			}
		}
	}
	for p := 0; p < ring.Partitions; p += 8 {
		got := table.RegionOrder(ring.Partition(p))
		want := append(refOrder("\x11", p, []refName{{"eu", 1}, {"us", 5}}), "ap")
		if !slices.Equal(got, want) || table.Home(ring.Partition(p)) != want[0] {
			t.Fatalf("partition %d: got regions %v, want %v", p, got, want)
		}
	}
}

func TestPartitionKeys(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		got  ring.Partition
		key  string
	}{
		{"version", ring.OfVersion("golang.org/x/mod", "v0.42.0"), "\x01golang.org/x/mod@v0.42.0"},
		{"module", ring.OfModule("golang.org/x/mod"), "\x02golang.org/x/mod"},
		{"sumdb", ring.OfSumdb("sum.golang.org", "tile/8/0/000"), "\x03sum.golang.orgtile/8/0/000"},
	} {
		if want := ring.Partition(refHash(test.key) % 4093); test.got != want {
			t.Errorf("%s: got %d, want %d", test.name, test.got, want)
		}
	}
}
