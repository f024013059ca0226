package ring

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

const maxMembers = math.MaxUint16 // that an Index can count

// View is what one process knows about placement at one moment: the tables that
// follow from its member table. It never changes, so it can be published through
// an atomic pointer; its methods take no lock and do not allocate.
type View struct {
	spec    Spec
	members []Member
	current *Table
	next    *Table
	digest  uint64
	seq     uint64
}

// NewView builds the tables. It takes 2 to 60 ms of CPU for up to 48 units of
// weight in a region, more with their square: give it a clone of the member table
// and call it off the request path. It returns an error for an invalid spec and
// for members that are too many or too heavy to be placed; the caller then keeps
// the view it has.
func NewView(spec Spec, table *Members) (*View, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	spec.HomeWeights = maps.Clone(spec.HomeWeights)
	v := &View{spec: spec, seq: table.Seq(), members: placeable(spec, table)}
	v.digest = digest(spec, v.members)
	if len(v.members) > maxMembers {
		return nil, fmt.Errorf("placing %d members, at most %d are possible", len(v.members), maxMembers)
	}
	current := group(v.members, func(s State) bool { return s == Active || s == Leaving })
	next := group(v.members, func(s State) bool { return s == Active || s == Joining })
	var err error
	if v.current, err = newTable(spec, v.members, current, &Table{}); err != nil {
		return nil, err
	}
	if v.next, err = newTable(spec, v.members, next, v.current); err != nil {
		return nil, err
	}
	return v, nil
}

// placeable returns the members that own partitions now or soon, sorted by id.
func placeable(spec Spec, table *Members) []Member {
	hash := spec.Hash()
	return slices.DeleteFunc(table.All(), func(m Member) bool {
		return m.Role != Node || m.Spec != hash || m.State.IsTombstone()
	})
}

// group returns the members in the states that in accepts, by region, each in
// id order.
func group(members []Member, in func(State) bool) map[string][]Index {
	regions := make(map[string][]Index)
	for i, m := range members {
		if in(m.State) {
			regions[m.Region] = append(regions[m.Region], Index(i))
		}
	}
	return regions
}

// newTable builds the rings of all regions, but takes from base what is the same.
func newTable(spec Spec, members []Member, regions map[string][]Index, base *Table) (*Table, error) {
	if len(regions) > maxRegions {
		return nil, fmt.Errorf("placing %d regions, at most %d are possible", len(regions), maxRegions)
	}
	t := &Table{
		members: members,
		names:   slices.Sorted(maps.Keys(regions)),
		regions: make(map[string]*regionTable, len(regions)),
	}
	for _, region := range t.names {
		r := base.regions[region]
		if r == nil || !slices.Equal(r.in, regions[region]) {
			var err error
			if r, err = newRegionTable(spec, members, regions[region]); err != nil {
				return nil, fmt.Errorf("placing region %s: %w", region, err)
			}
		}
		t.regions[region] = r
	}
	t.homes = base.homes
	if !slices.Equal(t.names, base.names) {
		t.homes = newHomeTable(spec, t.names)
	}
	return t, nil
}

// digest hashes what placement depends on: 0x21, the encoding of the spec, and
// for each member id, region and zone (each a u32 length and its bytes), weight
// and state (u8 each).
func digest(spec Spec, members []Member) uint64 {
	b := spec.append([]byte{domainMembership})
	for _, m := range members {
		b = appendString(b, m.ID)
		b = appendString(b, m.Region)
		b = appendString(b, m.Zone)
		b = append(b, byte(m.Weight), byte(m.State))
	}
	return hasher{}.Sum64(b)
}

// Current returns the table of those that hold data now: Active and Leaving.
func (v *View) Current() *Table { return v.current }

// Next returns the table of those that will hold data: Active and Joining.
// Where nobody joins or leaves it places like Current.
func (v *View) Next() *Table { return v.next }

// Spec returns the spec of the view. Its map is shared.
func (v *View) Spec() Spec { return v.spec }

// Members returns the members that an Index of this view counts: nodes of the
// cluster's spec that are Joining, Active or Leaving, sorted by id. The slice is
// shared.
func (v *View) Members() []Member { return v.members }

// Member returns the member at i. It panics if i is from another view and out of
// range.
func (v *View) Member(i Index) Member { return v.members[i] }

// Find returns the index of the member with this id.
func (v *View) Find(id string) (Index, bool) {
	i, ok := slices.BinarySearchFunc(v.members, id, func(m Member, id string) int {
		return strings.Compare(m.ID, id)
	})
	return Index(i), ok
}

// Digest identifies the placement: views with equal digests have equal tables.
// It does not cover what placement does not depend on, such as addresses, which
// Seq shows to be newer.
func (v *View) Digest() uint64 { return v.digest }

// Seq is Members.Seq at the time of the build. Of two processes with different
// digests the one with the lower number fetches the table of the other; with
// equal numbers both do.
func (v *View) Seq() uint64 { return v.seq }
