package member

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/hashicorp/memberlist"
	"google.golang.org/protobuf/proto"

	"github.com/ringmod/ringmod/ring"
)

// complete checks the configuration, fills in the entry, and returns the address
// to advertise.
func (c *Config) complete() (netip.AddrPort, error) {
	var none netip.AddrPort
	if n := len(c.Cluster); n < 1 || n > memberlist.LabelMaxSize {
		return none, fmt.Errorf("cluster name %q has %d bytes, not 1 to %d", c.Cluster, n, memberlist.LabelMaxSize)
	}
	if c.Transport == nil {
		return none, errors.New("membership needs a transport")
	}
	if err := c.Spec.Validate(); err != nil {
		return none, err
	}
	c.Entry.Boot = bootString(newBoot())
	c.Entry.Epoch = 1
	c.Entry.Spec = c.Spec.Hash()
	c.Entry.Weight = cmp.Or(c.Entry.Weight, 1)
	if err := c.Entry.Check(); err != nil {
		return none, err
	}
	if c.Entry.State.IsTombstone() {
		return none, fmt.Errorf("member %s: nobody starts as %s", c.Entry.ID, c.Entry.State)
	}
	c.Version = c.Version[:min(len(c.Version), maxVersion)]
	if err := checkMetaSize(c.Entry, c.Version); err != nil {
		return none, err
	}
	return c.advertise()
}

func (c *Config) advertise() (netip.AddrPort, error) {
	listen := c.Transport.Addr()
	addr := listen.Addr()
	if c.Advertise.IsValid() {
		addr = c.Advertise
	}
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() {
		return netip.AddrPort{}, fmt.Errorf(
			"gossip listens on %s and %s is no address that others can reach: set the advertise address to one IP of this machine",
			listen, addr)
	}
	return netip.AddrPortFrom(addr, listen.Port()), nil
}

// maxVersion bounds the version in gossip, in bytes (NodeMeta).
const maxVersion = 48

// checkMetaSize refuses an entry that could outgrow memberlist's metadata:
// memberlist would panic.
func checkMetaSize(e ring.Member, version string) error {
	e.Epoch, e.ReadOnly, e.State = ring.MaxEpoch, true, ring.Forgotten
	b, err := proto.Marshal(meta{e, maxClass, maxClass, version}.encode())
	if err != nil {
		return fmt.Errorf("encoding the own entry: %w", err)
	}
	if len(b) > memberlist.MetaMaxSize {
		return fmt.Errorf("member %s: gossip metadata takes %d bytes, at most %d: shorten id, region, zone or address",
			e.ID, len(b), memberlist.MetaMaxSize)
	}
	return nil
}

// newBoot draws a boot id. It is never 0.
func newBoot() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	return max(binary.BigEndian.Uint64(b[:]), 1)
}
