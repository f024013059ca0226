package member

import (
	"net/netip"
	"slices"
	"time"

	"github.com/ringmod/ringmod/ring"
)

// What follows reads the table.

func (t *table) clone() *ring.Members {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.members.Clone()
}

// seen returns a copy of all entries, and the ids of those that are in and down.
func (t *table) seen() (members *ring.Members, down []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.members.All() {
		if !e.State.IsTombstone() && !t.record(e.ID).up {
			down = append(down, e.ID)
		}
	}
	return t.members.Clone(), down
}

func (t *table) ownEntry() ring.Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.own
}

// ownMeta returns what travels in memberlist's metadata.
func (t *table) ownMeta() meta {
	t.mu.Lock()
	defer t.mu.Unlock()
	return meta{t.own, t.disk, t.load, t.version}
}

func (t *table) isUp(id string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.records[id]
	return ok && r.up
}

func (t *table) member(id string) (ring.Member, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.members.Get(id)
	return e, ok && !e.State.IsTombstone()
}

func (t *table) rtt(id string) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r, ok := t.records[id]; ok {
		return r.rtt
	}
	return 0
}

func (t *table) hasMet() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.met
}

func (t *table) status() []Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]Status, 0, t.members.Len())
	for _, e := range t.members.All() {
		r := t.record(e.ID)
		all = append(all, Status{
			Entry: e, Up: r.up, Since: r.since, Gossip: r.gossip,
			Disk: int(r.disk), Load: int(r.load), Version: r.version, RTT: r.rtt,
		})
	}
	return all
}

// living returns where instances that are alive gossip, but for this one.
func (t *table) living() []netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	var addrs []netip.AddrPort
	for _, in := range t.alive {
		if in.boot != t.boot || in.id != t.id {
			addrs = append(addrs, in.gossip)
		}
	}
	slices.SortFunc(addrs, netip.AddrPort.Compare)
	return addrs
}

// missing returns where members that are down gossiped last: those that are in, and
// those that were forgotten in the last day, or else two halves of a cluster that have
// forgotten each other would depend on their seeds.
func (t *table) missing() []netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	var addrs []netip.AddrPort
	for _, e := range t.members.All() {
		if r := t.record(e.ID); e.State != ring.Left && !r.up && r.gossip.IsValid() {
			addrs = append(addrs, r.gossip)
		}
	}
	return addrs
}
