package ring

import (
	"cmp"
	"math/bits"
	"slices"
)

// contender is one name in the rendezvous order of one partition.
type contender struct {
	index  Index  // position in name order, the last tie-break
	weight uint64 // 1 or more
	hash   uint64
	cost   uint64 // of hash; 0 throughout where all weights are equal
}

// contenders prepares the rendezvous order of names with positive weights. The
// slice is reused from partition to partition.
func contenders(indexes []Index, weight func(Index) int) (cs []contender, weighted bool) {
	cs = make([]contender, len(indexes))
	for i, index := range indexes {
		cs[i] = contender{index: index, weight: uint64(weight(index))}
		weighted = weighted || cs[i].weight != cs[0].weight
	}
	return cs, weighted
}

// compare orders by cost/weight, lowest first, then by hash, highest first, then
// by index. cost is at most 64<<32 and weight at most MaxHomeWeight, so the
// products fit. As cost falls when hash rises, contenders of equal weight are in
// the order of their hashes, and their cost need not be known.
func (c contender) compare(o contender) int {
	if n := cmp.Compare(c.cost*o.weight, o.cost*c.weight); n != 0 {
		return n
	}
	if n := cmp.Compare(o.hash, c.hash); n != 0 {
		return n
	}
	return cmp.Compare(c.index, o.index)
}

// rendezvous draws a hash for each contender and sorts them. The order of those
// that stay does not depend on those that come or go, and a contender comes
// first as often as its weight says: cost is exponentially distributed, and so is
// cost/weight, at a rate that is the weight.
func rendezvous(cs []contender, weighted bool, hash func(Index) uint64) {
	for i := range cs {
		cs[i].hash = hash(cs[i].index)
		if weighted {
			cs[i].cost = cost(cs[i].hash)
		}
	}
	slices.SortFunc(cs, contender.compare)
}

// cost returns -log2(hash/2^64) with 32 binary digits after the point, by
// squaring the mantissa once for each digit. It is all integers: floating-point
// logarithms differ between CPU families.
func cost(hash uint64) uint64 {
	x := hash | 1
	zeros := bits.LeadingZeros64(x)
	mantissa := x << zeros
	log := uint64(63 - zeros)
	for range 32 {
		square, _ := bits.Mul64(mantissa, mantissa)
		bit := square >> 63
		mantissa = square << (1 - bit)
		log = log<<1 | bit
	}
	return 64<<32 - log
}
