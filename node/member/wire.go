package member

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"

	"github.com/hashicorp/memberlist"
	"google.golang.org/protobuf/proto"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

const (
	protocol     = 1       // the only version there is
	maxClass     = 8       // disk and load classes are eighths
	maxStateSize = 4 << 20 // bytes of a whole table, more than maxEntries can take
)

// bootString is how a boot id is written in names and in ring.Member.
func bootString(boot uint64) string { return fmt.Sprintf("%016x", boot) }

func bootNumber(boot string) (uint64, error) {
	n, err := strconv.ParseUint(boot, 16, 64)
	if err != nil || n == 0 || bootString(n) != boot {
		return 0, fmt.Errorf("boot id %q is not 16 hex digits", boot)
	}
	return n, nil
}

func encodeMember(m ring.Member) *ringmodv1.Member {
	boot, _ := bootNumber(m.Boot) // table entries have passed decodeMember
	weight := uint32(m.Weight)
	if m.Role == ring.Gateway {
		weight = 0
	}
	return &ringmodv1.Member{
		Id:          m.ID,
		BootId:      boot,
		Epoch:       m.Epoch,
		State:       ringmodv1.MemberState(m.State),
		Role:        ringmodv1.Role(m.Role),
		Region:      m.Region,
		Zone:        m.Zone,
		Weight:      weight,
		GrpcAddress: m.Addr,
		SpecHash:    m.Spec,
		Features:    m.Features,
		ReadOnly:    m.ReadOnly,
		ProtocolMin: protocol,
		ProtocolMax: protocol,
	}
}

// decodeMember returns an entry that has passed ring.Member.Check.
func decodeMember(p *ringmodv1.Member) (ring.Member, error) {
	var none ring.Member
	switch {
	case p == nil:
		return none, errors.New("entry is missing")
	case p.GetBootId() == 0:
		return none, fmt.Errorf("member %q has no boot id", p.GetId())
	case p.GetState() < 0 || p.GetState() > math.MaxUint8 || p.GetRole() < 0 || p.GetRole() > math.MaxUint8:
		return none, fmt.Errorf("member %q: unknown state %d or role %d", p.GetId(), p.GetState(), p.GetRole())
	}
	m := ring.Member{
		ID:       p.GetId(),
		Boot:     bootString(p.GetBootId()),
		Epoch:    p.GetEpoch(),
		State:    ring.State(p.GetState()),
		Role:     ring.Role(p.GetRole()),
		Region:   p.GetRegion(),
		Zone:     p.GetZone(),
		Weight:   int(p.GetWeight()),
		Addr:     p.GetGrpcAddress(),
		Spec:     p.GetSpecHash(),
		ReadOnly: p.GetReadOnly(),
		Features: p.GetFeatures(),
	}
	if m.Role == ring.Gateway && m.Weight == 0 {
		m.Weight = 1
	}
	return m, m.Check()
}

// meta is a decoded NodeMeta.
type meta struct {
	entry      ring.Member
	disk, load uint32
	version    string
}

func (m meta) encode() *ringmodv1.NodeMeta {
	return &ringmodv1.NodeMeta{Member: encodeMember(m.entry), DiskClass: m.disk, LoadClass: m.load, Version: m.version}
}

// decodeMeta returns what the bearer of a gossip name says about itself.
func decodeMeta(name string, b []byte) (meta, error) {
	var none meta
	if len(b) > memberlist.MetaMaxSize {
		return none, fmt.Errorf("metadata of %d bytes, at most %d", len(b), memberlist.MetaMaxSize)
	}
	var p ringmodv1.NodeMeta
	if err := proto.Unmarshal(b, &p); err != nil {
		return none, fmt.Errorf("reading metadata: %w", err)
	}
	least, most := p.GetMember().GetProtocolMin(), p.GetMember().GetProtocolMax()
	if least > protocol || most < protocol {
		return none, fmt.Errorf("it speaks protocol %d to %d, this process %d", least, most, protocol)
	}
	e, err := decodeMember(p.GetMember())
	if err != nil {
		return none, err
	}
	if gossipName(e.ID, e.Boot) != name {
		return none, fmt.Errorf("metadata belongs to %s", gossipName(e.ID, e.Boot))
	}
	return meta{e, min(p.GetDiskClass(), maxClass), min(p.GetLoadClass(), maxClass), p.GetVersion()}, nil
}

func gossipName(id, boot string) string { return id + "~" + boot }

// encodeView leaves the digest out: it takes a built view.
func encodeView(cluster string, spec ring.Spec, members *ring.Members) *ringmodv1.View {
	v := &ringmodv1.View{Cluster: cluster, Spec: encodeSpec(spec), ViewSeq: members.Seq()}
	for _, m := range members.All() {
		v.Members = append(v.Members, encodeMember(m))
	}
	return v
}

func encodeSpec(s ring.Spec) *ringmodv1.RingSpec {
	p := &ringmodv1.RingSpec{
		Algorithm:    uint32(s.Algorithm),
		Partitions:   uint32(s.Partitions),
		VirtualNodes: uint32(s.VirtualNodes),
		LoadPerMille: uint32(s.LoadPermille),
		Replicas:     uint32(s.Replicas),
	}
	for _, region := range slices.Sorted(maps.Keys(s.HomeWeights)) {
		p.HomeWeights = append(p.HomeWeights, &ringmodv1.HomeWeight{Region: region, Weight: uint32(s.HomeWeights[region])})
	}
	return p
}

// decodeSpec returns a spec that has passed ring.Spec.Validate.
func decodeSpec(p *ringmodv1.RingSpec) (ring.Spec, error) {
	if p == nil {
		return ring.Spec{}, errors.New("placement settings are missing")
	}
	s := ring.Spec{
		Algorithm:    int(p.GetAlgorithm()),
		Partitions:   int(p.GetPartitions()),
		VirtualNodes: int(p.GetVirtualNodes()),
		LoadPermille: int(p.GetLoadPerMille()),
		Replicas:     int(p.GetReplicas()),
	}
	for _, w := range p.GetHomeWeights() {
		if s.HomeWeights == nil {
			s.HomeWeights = make(map[string]int)
		}
		s.HomeWeights[w.GetRegion()] = int(w.GetWeight())
	}
	return s, s.Validate()
}

func decodeView(b []byte) (*ringmodv1.View, error) {
	if len(b) > maxStateSize {
		return nil, fmt.Errorf("table of %d bytes, at most %d", len(b), maxStateSize)
	}
	var v ringmodv1.View
	if err := proto.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("reading a table: %w", err)
	}
	return &v, nil
}
