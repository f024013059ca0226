// Package membertest is a network in memory for many members in one process. It
// works inside testing/synctest: nothing here stays blocked once the
// transports are shut down, and time is that of package time.
//
// A packet arrives after the delay, or never: it is lost by chance, by a cut, or
// because nobody listens or the receiver's 1024 places are taken. A stream is
// reliable; when a cut meets bytes on their way, it falls silent in that direction for good,
// and who reads it waits for a deadline. A dial needs both directions. It is refused at
// once where a transport was shut down, and ends with its timeout where none ever
// was or a cut is between.
package membertest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// Kind is what a cut stops.
type Kind uint8

// The kinds.
const (
	Packets Kind = 1 << iota // what UDP is in a real network
	Streams                  // TCP
	All     = Packets | Streams
)

// Network connects transports. All methods may be called at any time.
type Network struct {
	mu         sync.Mutex // guards what follows
	rand       *rand.Rand
	transports map[netip.AddrPort]*Transport // those shut down too
	cuts       map[link]Kind
	frozen     map[netip.Addr]*ice
	loss       float64
	delay      func(from, to netip.Addr) time.Duration
	packets    uint64
}

// link is a direction. The zero address stands for all, port 0 for all of a host.
type link struct{ from, to netip.AddrPort }

// ice is what keeps a host still.
type ice struct {
	thawed  chan struct{} // closed when it ends
	packets []func()      // arrive then
}

// Host returns the address that stands for all ports of a host.
func Host(ip netip.Addr) netip.AddrPort { return netip.AddrPortFrom(ip, 0) }

// New returns a network without cuts, loss and delay. Seed decides which packets
// get lost.
func New(seed uint64) *Network {
	return &Network{
		rand:       rand.New(rand.NewPCG(seed, 0)),
		transports: make(map[netip.AddrPort]*Transport),
		cuts:       make(map[link]Kind),
		frozen:     make(map[netip.Addr]*ice),
		delay:      func(netip.Addr, netip.Addr) time.Duration { return 0 },
	}
}

// Listen opens an address, which must not be open.
func (n *Network) Listen(addr netip.AddrPort) (*Transport, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if t := n.transports[addr]; t != nil && !t.isDown() {
		return nil, fmt.Errorf("listening on %s: address already in use", addr)
	}
	t := newTransport(n, addr)
	n.transports[addr] = t
	return t, nil
}

// Cut stops what goes from one address to another, in this direction only. The
// zero address means any, port 0 any of that host.
func (n *Network) Cut(from, to netip.AddrPort, what Kind) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts[link{from, to}] |= what
}

// Isolate cuts an address off in both directions: a machine without power, or
// one that was stopped.
func (n *Network) Isolate(addr netip.AddrPort) {
	n.Cut(addr, netip.AddrPort{}, All)
	n.Cut(netip.AddrPort{}, addr, All)
}

// Split stops what goes between two groups, in both directions.
func (n *Network) Split(a, b []netip.AddrPort, what Kind) {
	for _, x := range a {
		for _, y := range b {
			n.Cut(x, y, what)
			n.Cut(y, x, what)
		}
	}
}

// Heal ends all cuts.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cuts)
}

// Join ends the cuts that Isolate made.
func (n *Network) Join(addr netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cuts, link{addr, netip.AddrPort{}})
	delete(n.cuts, link{netip.AddrPort{}, addr})
}

// Freeze stops a host until Thaw.
func (n *Network) Freeze(ip netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.frozen[ip] == nil {
		n.frozen[ip] = &ice{thawed: make(chan struct{})}
	}
}

// Thaw lets a host go on. What has arrived meanwhile is there.
func (n *Network) Thaw(ip netip.Addr) {
	n.mu.Lock()
	f := n.frozen[ip]
	delete(n.frozen, ip)
	n.mu.Unlock()
	if f == nil {
		return
	}
	close(f.thawed)
	for _, arrive := range f.packets {
		arrive()
	}
}

// Frozen returns a channel that is closed when the host thaws, nil while it is not
// frozen: for what else the host would do.
func (n *Network) Frozen(ip netip.Addr) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if f := n.frozen[ip]; f != nil {
		return f.thawed
	}
	return nil
}

// SetLoss makes packets get lost with this probability.
func (n *Network) SetLoss(p float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = p
}

// SetDelay sets the time of one way, for packets and streams alike.
func (n *Network) SetDelay(d time.Duration) {
	n.SetDelays(func(netip.Addr, netip.Addr) time.Duration { return d })
}

// SetDelays sets the time of one way between two hosts. The function must not
// call the network.
func (n *Network) SetDelays(delay func(from, to netip.Addr) time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = delay
}

// Sent returns how many packets were sent so far, those lost included.
func (n *Network) Sent() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.packets
}

// Blocked tells whether a cut stops what goes from one address to another, for
// other simulated traffic to share the fate of gossip.
func (n *Network) Blocked(from, to netip.AddrPort, what Kind) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.blocked(from, to, what)
}

func (n *Network) blocked(from, to netip.AddrPort, what Kind) bool {
	if len(n.cuts) == 0 || from == to {
		return false
	}
	var all netip.AddrPort
	var cut Kind
	for _, f := range [...]netip.AddrPort{from, Host(from.Addr()), all} {
		for _, t := range [...]netip.AddrPort{to, Host(to.Addr()), all} {
			cut |= n.cuts[link{f, t}]
		}
	}
	return cut&what != 0
}

// packet decides about one packet: its receiver, nil if it is lost, and its delay.
func (n *Network) packet(from, to netip.AddrPort) (*Transport, time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.packets++
	if n.frozen[from.Addr()] != nil || n.blocked(from, to, Packets) || n.loss > 0 && n.rand.Float64() < n.loss {
		return nil, 0
	}
	return n.transports[to], n.delay(from.Addr(), to.Addr())
}

// hold keeps a packet for a frozen host, and tells whether it is one.
func (n *Network) hold(ip netip.Addr, arrive func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	f := n.frozen[ip]
	if f != nil {
		f.packets = append(f.packets, arrive)
	}
	return f != nil
}

var errRefused = errors.New("connection refused")

// route decides about a dial: the receiver, nil if there is only silence, and the
// delay.
func (n *Network) route(from, to netip.AddrPort) (*Transport, time.Duration, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.transports[to]
	if n.blocked(from, to, Streams) || n.blocked(to, from, Streams) || t == nil {
		return nil, 0, nil
	}
	if t.isDown() {
		return nil, 0, errRefused
	}
	return t, n.delay(from.Addr(), to.Addr()), nil
}

// bytes decides about bytes of a stream.
func (n *Network) bytes(from, to netip.AddrPort) (lost bool, delay time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.blocked(from, to, Streams), n.delay(from.Addr(), to.Addr())
}
