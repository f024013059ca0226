package wan

import (
	"context"
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// maxBacklog is how far a wire with a rate may be behind before it drops what
// comes, as the buffer of a router does.
const maxBacklog = 250 * time.Millisecond

// Cut is a set of what does not get through.
type Cut uint8

// What can be cut. A cut also takes what is on its way.
const (
	TCP        Cut = 1 << iota
	UDP            // and with it the probes of the gossip, not its streams
	Other          // what is neither, such as ICMP
	Everything = TCP | UDP | Other
)

// Path says how packets travel in one direction. The zero value lets all pass at
// once.
type Path struct {
	Delay time.Duration // from one end to the other
	Loss  float64       // share of the packets that are lost, 0 to 1
	Rate  int64         // bytes per second; 0 = no limit
	Cut   Cut           // what does not pass
}

// Stats counts what has arrived, and what was lost by chance, by a cut or for want
// of room.
type Stats struct {
	Packets, Bytes, Lost int64
	// Ports are the bytes of TCP packets by source port and by destination port:
	// those of a server's port are its traffic. Headers count.
	Ports map[uint16]int64
}

// link carries packets one way, in order.
type link struct {
	deliver func(packet []byte)
	wake    chan struct{} // of one: queue is no longer empty

	mu     sync.Mutex
	path   Path
	random *rand.Rand
	free   time.Time // when the wire will have sent all that it was given
	queue  []parcel  // by due
	stats  Stats
}

// parcel is a packet under way.
type parcel struct {
	packet []byte
	due    time.Time
}

func newLink(seed uint64, deliver func(packet []byte)) *link {
	return &link{
		deliver: deliver, wake: make(chan struct{}, 1), random: rand.New(rand.NewPCG(seed, 0)), stats: Stats{Ports: make(map[uint16]int64)},
	}
}

// set changes the path for what is sent from now on; a cut also for what is on
// its way.
func (l *link) set(p Path) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.path = p
}

// send takes a packet, which is then the link's.
func (l *link) send(packet []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	due, ok := l.schedule(packet)
	if !ok {
		l.stats.Lost++
		return
	}
	l.queue = append(l.queue, parcel{packet, due})
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// schedule returns when the packet arrives, if it does. The lock is held.
func (l *link) schedule(packet []byte) (time.Time, bool) {
	now := time.Now()
	if l.path.Cut&kindOf(packet) != 0 || l.random.Float64() < l.path.Loss {
		return now, false
	}
	sent := now
	if l.path.Rate > 0 {
		if l.free.Sub(now) > maxBacklog {
			return now, false
		}
		if l.free.After(now) {
			sent = l.free
		}
		sent = sent.Add(time.Duration(int64(len(packet)) * int64(time.Second) / l.path.Rate))
		l.free = sent
	}
	due := sent.Add(l.path.Delay)
	if n := len(l.queue); n > 0 && l.queue[n-1].due.After(due) { // the path was slower
		due = l.queue[n-1].due
	}
	return due, true
}

// run delivers until ctx is done.
func (l *link) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		arrived, next, some := l.take()
		for _, p := range arrived {
			l.deliver(p.packet)
		}
		if some {
			timer.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-l.wake:
		}
	}
}

// take removes what has arrived, and tells when the next packet does, if there
// is one.
func (l *link) take() (arrived []parcel, next time.Time, some bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, n := time.Now(), 0
	for n < len(l.queue) && !l.queue[n].due.After(now) {
		n++
	}
	for _, p := range l.queue[:n] {
		if l.path.Cut&kindOf(p.packet) != 0 {
			l.stats.Lost++
			continue
		}
		l.stats.count(p.packet)
		arrived = append(arrived, p)
	}
	l.queue = slices.Delete(l.queue, 0, n)
	if len(l.queue) > 0 {
		return arrived, l.queue[0].due, true
	}
	return arrived, time.Time{}, false
}

func (l *link) snapshot() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Ports = maps.Clone(s.Ports)
	return s
}

func (s *Stats) count(packet []byte) {
	s.Packets++
	s.Bytes += int64(len(packet))
	if from, to, ok := tcpPorts(packet); ok {
		s.Ports[from] += int64(len(packet))
		s.Ports[to] += int64(len(packet))
	}
}

// The parts of an IPv4 header that matter here.
const (
	minHeader   = 20
	protocolAt  = 9
	toAt        = 16
	protocolTCP = 6
	protocolUDP = 17
)

// destination returns where a packet wants to go; false if it is not IPv4.
func destination(packet []byte) (netip.Addr, bool) {
	if len(packet) < minHeader || packet[0]>>4 != 4 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4([4]byte(packet[toAt:])), true
}

// kindOf returns what a packet is, to be cut.
func kindOf(packet []byte) Cut {
	switch {
	case len(packet) < minHeader:
		return Other
	case packet[protocolAt] == protocolTCP:
		return TCP
	case packet[protocolAt] == protocolUDP:
		return UDP
	default:
		return Other
	}
}

func tcpPorts(packet []byte) (from, to uint16, ok bool) {
	if kindOf(packet) != TCP {
		return 0, 0, false
	}
	payload := int(packet[0]&0x0f) * 4
	if len(packet) < payload+4 {
		return 0, 0, false
	}
	return binary.BigEndian.Uint16(packet[payload:]), binary.BigEndian.Uint16(packet[payload+2:]), true
}
