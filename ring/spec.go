package ring

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// Limits of a Spec.
const (
	MaxReplicas     = 5
	MaxHomeWeight   = 1000
	maxRegions      = 255
	maxVirtualNodes = 1024
	maxLoadPermille = 4000
	algorithm       = 1
)

// Spec is what all members of a cluster must agree on before they can agree on
// placement. Its hash travels in every entry; a member whose hash differs is
// seen by the others but never owns anything. Start from DefaultSpec: except for
// HomeWeights, a zero is refused by Validate.
type Spec struct {
	Algorithm    int // how keys are placed; 1 is the only one there is
	Partitions   int // always Partitions with algorithm 1
	VirtualNodes int // points on the circle for each unit of weight, 1 to 1024
	LoadPermille int // most partitions a unit owns, in thousandths of the mean, 1001 to 4000
	Replicas     int // copies in each region, 1 to 5; limited to the nodes present

	// HomeWeights says how often a region is the home region of a partition,
	// relative to the others: 0 never (a region without internet access), up to
	// 1000. A region that is not in the map has 1, so nil means all are alike.
	HomeWeights map[string]int
}

// DefaultSpec returns the spec of a cluster that was configured with nothing.
// The numbers are measured: fullest owner 1.16 times the mean, a join copies 1.0
// to 1.2 times the least possible (TestFigures).
func DefaultSpec() Spec {
	return Spec{
		Algorithm:    algorithm,
		Partitions:   Partitions,
		VirtualNodes: 128,
		LoadPermille: 1150,
		Replicas:     2,
	}
}

// Validate returns the first thing that is wrong with s, in words for whoever
// wrote the configuration.
func (s Spec) Validate() error {
	if s.Algorithm != algorithm {
		return fmt.Errorf("placement algorithm %d is unknown, this program knows %d", s.Algorithm, algorithm)
	}
	if s.Partitions != Partitions {
		return fmt.Errorf("algorithm %d has %d partitions, not %d", algorithm, Partitions, s.Partitions)
	}
	for _, field := range []struct {
		name               string
		value, least, most int
	}{
		{"virtual nodes", s.VirtualNodes, 1, maxVirtualNodes},
		{"load in thousandths", s.LoadPermille, 1001, maxLoadPermille},
		{"replicas", s.Replicas, 1, MaxReplicas},
		{"number of home weights", len(s.HomeWeights), 0, maxRegions},
	} {
		if field.value < field.least || field.value > field.most {
			return fmt.Errorf("%s must be %d to %d, not %d", field.name, field.least, field.most, field.value)
		}
	}
	return s.validateHomeWeights()
}

func (s Spec) validateHomeWeights() error {
	for _, region := range slices.Sorted(maps.Keys(s.HomeWeights)) {
		if err := CheckName("region", region, 1, MaxRegionLen); err != nil {
			return fmt.Errorf("home weights: %w", err)
		}
		if w := s.HomeWeights[region]; w < 0 || w > MaxHomeWeight {
			return fmt.Errorf("home weight of region %s must be 0 to %d, not %d", region, MaxHomeWeight, w)
		}
	}
	return nil
}

// Hash returns 32 bits that two specs share exactly if they place alike (but for
// chance): the upper half xor the lower half of H of the canonical encoding. A
// home weight of 1 is the same as none.
func (s Spec) Hash() uint32 {
	h := hasher{}.Sum64(s.append(nil))
	return uint32(h>>32) ^ uint32(h)
}

// append appends the canonical encoding: 0x20, the five numbers as u32, and the
// home weights that are not 1, sorted by region, each as u32 length, name, u32.
func (s Spec) append(b []byte) []byte {
	b = append(b, domainSpec)
	for _, n := range []int{s.Algorithm, s.Partitions, s.VirtualNodes, s.LoadPermille, s.Replicas} {
		b = binary.BigEndian.AppendUint32(b, uint32(n))
	}
	for _, region := range slices.Sorted(maps.Keys(s.HomeWeights)) {
		if w := s.HomeWeights[region]; w != 1 {
			b = appendString(b, region)
			b = binary.BigEndian.AppendUint32(b, uint32(w))
		}
	}
	return b
}

func (s Spec) homeWeight(region string) int {
	if w, ok := s.HomeWeights[region]; ok {
		return w
	}
	return 1
}

// ranks is how many ranks are computed: the replicas, and spares that hold hot
// keys and stand in for replicas that are down.
func (s Spec) ranks() int { return s.Replicas + 3 }
