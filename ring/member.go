package ring

import (
	"cmp"
	"fmt"
)

// Limits of an entry, so that it fits the 512 bytes of gossip metadata. Lengths
// are in bytes.
const (
	MaxIDLen     = 64
	MaxBootLen   = 32
	MaxRegionLen = 32
	MaxZoneLen   = 32
	MaxAddrLen   = 128
	MaxWeight    = 16

	// MaxEpoch keeps a damaged entry from leaving no higher epoch to anybody.
	MaxEpoch = 1<<62 - 1
)

// State is where a member is in its life: Joining, Active, Leaving, Left. The
// numbers are their precedence at equal epoch (the higher wins) and travel
// between members.
type State uint8

// The states. A member writes its own; Forgotten alone is written by others.
const (
	Joining   State = iota + 1 // pulls what it will hold; in Next only
	Active                     // holds and answers; in Current and Next
	Leaving                    // hands over what only it holds; in Current only
	Left                       // gone by its own will; a tombstone
	Forgotten                  // declared gone by others after a long absence; a tombstone
)

// String returns the lower-case name, for logs and status pages.
func (s State) String() string {
	names := [...]string{"unknown", "joining", "active", "leaving", "left", "forgotten"}
	if int(s) >= len(names) {
		s = 0
	}
	return names[s]
}

// MarshalText writes the name, so that files and logs have words.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a name.
func (s *State) UnmarshalText(text []byte) error {
	for known := Joining; known <= Forgotten; known++ {
		if known.String() == string(text) {
			*s = known
			return nil
		}
	}
	return fmt.Errorf("unknown state %q", text)
}

// IsTombstone tells whether s only says that a member is gone.
func (s State) IsTombstone() bool { return s == Left || s == Forgotten }

// Role says what a member is for. The numbers travel between members.
type Role uint8

// The roles.
const (
	Node    Role = iota + 1 // holds partitions
	Gateway                 // answers developers and owns nothing
)

// String returns the lower-case name, for logs and status pages.
func (r Role) String() string {
	switch r {
	case Node:
		return "node"
	case Gateway:
		return "gateway"
	}
	return "unknown"
}

// Member is one entry of the member table: what a member says about itself. A
// member writes only its own entry, each time with a new epoch. Others write one
// thing: a copy of the last entry they saw, at its epoch, as Forgotten.
type Member struct {
	ID       string // ring identity: letters, digits, '.', '_' and '-'
	Boot     string // drawn at each start; tells two lives of one id apart
	Epoch    uint64 // Lamport time of this entry, from Members.NextEpoch; 1 to MaxEpoch
	State    State
	Role     Role
	Region   string
	Zone     string // what fails together inside a region; may be empty
	Weight   int    // share of the region's keys relative to others, 1 to 16
	Addr     string // host:port of gRPC; only a gateway may have none
	Spec     uint32 // Spec.Hash of the placement this member uses
	ReadOnly bool   // its disk takes nothing new; no effect on placement
	Features uint64 // bits for what it can do beyond the first protocol; no effect on placement
}

// Check returns the first thing that is wrong with an entry. Members.Put refuses
// what Check refuses.
func (m Member) Check() error {
	if err := m.checkStrings(); err != nil {
		return err
	}
	switch {
	case m.Epoch < 1 || m.Epoch > MaxEpoch:
		return fmt.Errorf("member %s: epoch %d is not 1 to %d", m.ID, m.Epoch, uint64(MaxEpoch))
	case m.State < Joining || m.State > Forgotten:
		return fmt.Errorf("member %s: unknown state %d", m.ID, m.State)
	case m.Role != Node && m.Role != Gateway:
		return fmt.Errorf("member %s: unknown role %d", m.ID, m.Role)
	case m.Weight < 1 || m.Weight > MaxWeight:
		return fmt.Errorf("member %s: weight must be 1 to %d, not %d", m.ID, MaxWeight, m.Weight)
	case m.Addr == "" && m.Role == Node:
		return fmt.Errorf("member %s: a node needs an address", m.ID)
	}
	return nil
}

func (m Member) checkStrings() error {
	if err := CheckName("node id", m.ID, 1, MaxIDLen); err != nil {
		return err
	}
	for _, field := range []struct {
		name, value string
		least, most int
	}{
		{"boot id", m.Boot, 0, MaxBootLen},
		{"region", m.Region, 1, MaxRegionLen},
		{"zone", m.Zone, 0, MaxZoneLen},
	} {
		if err := CheckName(field.name, field.value, field.least, field.most); err != nil {
			return fmt.Errorf("member %s: %w", m.ID, err)
		}
	}
	if len(m.Addr) > MaxAddrLen {
		return fmt.Errorf("member %s: address of %d bytes, at most %d", m.ID, len(m.Addr), MaxAddrLen)
	}
	for i := range len(m.Addr) {
		if c := m.Addr[i]; c <= ' ' || c > '~' {
			return fmt.Errorf("member %s: address %q holds more than printable ASCII", m.ID, m.Addr)
		}
	}
	return nil
}

// CheckName returns what is wrong with a name of least to most bytes. It allows what
// host names have, and nothing that separates names where they are joined: '|' in
// pseudo-members, '~' in gossip names, '/' in certificates.
func CheckName(what, s string, least, most int) error {
	if len(s) < least || len(s) > most {
		return fmt.Errorf("%s %q has %d bytes, not %d to %d", what, s, len(s), least, most)
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == '_', c == '-':
		default:
			return fmt.Errorf("%s %q may hold letters, digits, '.', '_' and '-' only", what, s)
		}
	}
	return nil
}

// compare orders entries of one id by precedence; the higher one stays in the
// table. Epoch and state decide. The rest only makes the order total, so that
// two processes that were told different things at one epoch end up alike.
func (m Member) compare(o Member) int {
	return cmp.Or(
		cmp.Compare(m.Epoch, o.Epoch),
		cmp.Compare(m.State, o.State),
		cmp.Compare(m.Boot, o.Boot),
		cmp.Compare(m.Role, o.Role),
		cmp.Compare(m.Region, o.Region),
		cmp.Compare(m.Zone, o.Zone),
		cmp.Compare(m.Weight, o.Weight),
		cmp.Compare(m.Addr, o.Addr),
		cmp.Compare(m.Spec, o.Spec),
		cmp.Compare(flag(m.ReadOnly), flag(o.ReadOnly)),
		cmp.Compare(m.Features, o.Features),
	)
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}
