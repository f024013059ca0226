package member

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
	"google.golang.org/protobuf/proto"
)

const refusedTable = "table of a member was refused"

// delegate is called by memberlist, mostly with its lock held: nothing here calls
// memberlist or keeps what it was given.
type delegate struct{ m *Membership }

var (
	_ memberlist.Delegate      = delegate{}
	_ memberlist.EventDelegate = delegate{}
	_ memberlist.AliveDelegate = delegate{}
	_ memberlist.PingDelegate  = delegate{}
)

// NodeMeta returns the own entry. New has checked that it fits the limit.
func (d delegate) NodeMeta(int) []byte {
	b, err := proto.Marshal(d.m.table.ownMeta().encode())
	if err != nil {
		d.m.log.Error("cannot encode the own entry", "err", err)
	}
	return b
}

// NotifyAlive refuses who does not say properly who it is.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	if _, err := decodeMeta(n.Name, n.Meta); err != nil {
		d.m.table.refused.Add(1)
		return err
	}
	if _, err := gossipAddr(n); err != nil {
		d.m.table.refused.Add(1)
		return err
	}
	return nil
}

// NotifyJoin takes in a member.
func (d delegate) NotifyJoin(n *memberlist.Node) { d.take(n) }

// NotifyUpdate takes in what a member says anew.
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.take(n) }

func (d delegate) take(n *memberlist.Node) {
	md, err := decodeMeta(n.Name, n.Meta)
	if err != nil {
		return // NotifyAlive has counted it
	}
	addr, err := gossipAddr(n)
	if err != nil {
		return
	}
	if err := d.m.table.join(n.Name, addr, md); err != nil {
		d.m.table.refused.Add(1)
		d.m.table.complain("entry of a member was refused", err)
	}
}

// NotifyLeave notes who is down.
func (d delegate) NotifyLeave(n *memberlist.Node) { d.m.table.leave(n.Name) }

// NotifyMsg takes claims to the own node id.
func (d delegate) NotifyMsg(b []byte) {
	c, ok := decodeClaim(b)
	if !ok {
		d.m.table.refused.Add(1)
		return
	}
	if err := d.m.table.judge(c, time.Since(d.m.started)); err != nil {
		select {
		case d.m.fatal <- err:
		default:
		}
	}
}

// GetBroadcasts has nothing to add to memberlist's own.
func (d delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState returns the whole table.
func (d delegate) LocalState(bool) []byte {
	b, err := proto.Marshal(d.m.Snapshot())
	if err != nil {
		d.m.log.Error("cannot encode the table", "err", err)
	}
	return b
}

// MergeRemoteState takes in the table of another member.
func (d delegate) MergeRemoteState(b []byte, _ bool) {
	v, err := decodeView(b)
	if err != nil {
		d.m.table.refused.Add(1)
		d.m.table.complain(refusedTable, err)
		return
	}
	if err := d.m.Merge(v); err != nil {
		d.m.table.complain(refusedTable, err)
	}
}

// AckPayload adds nothing.
func (d delegate) AckPayload() []byte { return nil }

// NotifyPingComplete notes how far a member is.
func (d delegate) NotifyPingComplete(n *memberlist.Node, rtt time.Duration, _ []byte) {
	d.m.table.setRTT(n.Name, rtt)
}

func gossipAddr(n *memberlist.Node) (netip.AddrPort, error) {
	ip, ok := netip.AddrFromSlice(n.Addr)
	ip = ip.Unmap()
	if !ok || n.Port == 0 || ip.IsUnspecified() || ip.IsMulticast() {
		return netip.AddrPort{}, fmt.Errorf("%s port %d is no address", n.Addr, n.Port)
	}
	return netip.AddrPortFrom(ip, n.Port), nil
}

func cutName(name string) (id, boot string, err error) {
	id, boot, ok := strings.Cut(name, "~")
	if !ok {
		return "", "", errors.New("gossip name has no boot id")
	}
	return id, boot, nil
}
