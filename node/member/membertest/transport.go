package membertest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Transport is one address of a Network.
type Transport struct {
	network *Network
	addr    netip.AddrPort
	packets chan *memberlist.Packet
	streams chan net.Conn
	down    chan struct{} // closed by Shutdown

	mu    sync.Mutex // guards conns
	conns map[*conn]struct{}
}

func newTransport(n *Network, addr netip.AddrPort) *Transport {
	return &Transport{
		network: n,
		addr:    addr,
		packets: make(chan *memberlist.Packet, 1024),
		streams: make(chan net.Conn, 128),
		down:    make(chan struct{}),
		conns:   make(map[*conn]struct{}),
	}
}

// Addr returns the address.
func (t *Transport) Addr() netip.AddrPort { return t.addr }

// FinalAdvertiseAddr returns the address.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return net.IP(t.addr.Addr().AsSlice()), int(t.addr.Port()), nil
}

// WriteTo sends a packet, see WriteToAddress.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress sends a packet. As with UDP, what becomes of it is not told.
func (t *Transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	now := time.Now()
	to, err := netip.ParseAddrPort(a.Addr)
	if err != nil {
		return now, err
	}
	if t.isDown() {
		return now, net.ErrClosed
	}
	peer, delay := t.network.packet(t.addr, to)
	if peer == nil {
		return now, nil
	}
	b = append([]byte(nil), b...)
	if delay == 0 {
		peer.receive(b, t.addr)
	} else {
		time.AfterFunc(delay, func() { peer.receive(b, t.addr) })
	}
	return now, nil
}

func (t *Transport) receive(b []byte, from netip.AddrPort) {
	if t.isDown() || t.network.hold(t.addr.Addr(), func() { t.receive(b, from) }) {
		return
	}
	p := &memberlist.Packet{Buf: b, From: net.UDPAddrFromAddrPort(from), Timestamp: time.Now()}
	select {
	case t.packets <- p:
	default:
	}
}

// PacketCh returns what arrives.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh returns who dials.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout dials, see DialAddressTimeout.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout dials.
func (t *Transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return t.Dial(ctx, a.Addr)
}

// Dial dials until ctx is done.
func (t *Transport) Dial(ctx context.Context, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	if err := t.thaw(ctx); err != nil {
		return nil, fmt.Errorf("dial %s: %w", to, err)
	}
	peer, delay, err := t.network.route(t.addr, to)
	if err == nil {
		err = t.handshake(ctx, peer, delay)
	}
	if err == nil {
		var c net.Conn
		if c, err = t.connect(peer); err == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("dial %s: %w", to, err)
}

// thaw waits while this host is frozen.
func (t *Transport) thaw(ctx context.Context) error {
	for {
		thawed := t.network.Frozen(t.addr.Addr())
		if thawed == nil {
			return nil
		}
		select {
		case <-thawed:
		case <-t.down:
			return net.ErrClosed
		case <-ctx.Done():
			return os.ErrDeadlineExceeded
		}
	}
}

// handshake takes one round trip, or for ever if there is nobody.
func (t *Transport) handshake(ctx context.Context, peer *Transport, delay time.Duration) error {
	var done <-chan time.Time
	if peer != nil {
		done = time.After(2 * delay)
	}
	select {
	case <-done:
		return nil
	case <-t.down:
		return net.ErrClosed
	case <-ctx.Done():
		return os.ErrDeadlineExceeded
	}
}

func (t *Transport) connect(peer *Transport) (net.Conn, error) {
	there, back := newHalf(), newHalf()
	near := newConn(t, peer.addr, back, there)
	far := newConn(peer, t.addr, there, back)
	if !peer.keep(far) {
		return nil, errRefused
	}
	if !t.keep(near) {
		far.close()
		return nil, net.ErrClosed
	}
	select {
	case peer.streams <- far:
		return near, nil
	default:
		far.close()
		near.close()
		return nil, errRefused
	}
}

// Listener returns the streams as a net.Listener, in place of StreamCh. To close it
// is to shut the transport down.
func (t *Transport) Listener() net.Listener { return listener{t} }

type listener struct{ t *Transport }

func (l listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.t.streams:
		return c, nil
	case <-l.t.down:
		return nil, net.ErrClosed
	}
}

func (l listener) Close() error   { return l.t.Shutdown() }
func (l listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.t.addr) }

// keep notes a connection for Shutdown, unless that was before.
func (t *Transport) keep(c *conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isDown() {
		return false
	}
	t.conns[c] = struct{}{}
	return true
}

func (t *Transport) isDown() bool {
	select {
	case <-t.down:
		return true
	default:
		return false
	}
}

// Shutdown closes the address and all its connections.
func (t *Transport) Shutdown() error {
	t.mu.Lock()
	if t.isDown() {
		t.mu.Unlock()
		return nil
	}
	close(t.down)
	conns := t.conns
	t.conns = make(map[*conn]struct{})
	t.mu.Unlock()
	for c := range conns {
		c.close()
	}
	return nil
}
