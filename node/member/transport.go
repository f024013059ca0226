package member

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

const listenAttempts = 10 // at a port that is free for TCP and UDP alike

// NetTransport carries gossip over UDP and TCP on one port.
type NetTransport struct {
	*memberlist.NetTransport
	addr netip.AddrPort

	mu     sync.Mutex // guards what follows
	conns  map[*dialled]struct{}
	closed bool
	cancel context.CancelFunc // of the dials under way
	dials  context.Context    //nolint:containedctx // the life of the transport
}

// Listen opens addr, host:port, for gossip. Port 0 picks one. Whoever does not hand
// the transport to a Membership that runs must call Shutdown.
func Listen(addr string, log *slog.Logger) (*NetTransport, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	at, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("gossip address %q: %w", addr, err)
	}
	ip := ""
	if at.IP != nil {
		ip = at.IP.String()
	}
	lines := slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	lines.SetOutput(newLogWriter(log))
	var inner *memberlist.NetTransport
	for range listenAttempts {
		inner, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{ip}, BindPort: at.Port, Logger: lines,
		})
		if err == nil || at.Port != 0 {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listening for gossip on %s: %w", addr, err)
	}
	bound, _ := netip.AddrFromSlice(at.IP)
	if !bound.IsValid() {
		bound = netip.IPv6Unspecified()
	}
	t := &NetTransport{
		NetTransport: inner,
		addr:         netip.AddrPortFrom(bound.Unmap(), uint16(inner.GetAutoBindPort())),
		conns:        make(map[*dialled]struct{}),
	}
	t.dials, t.cancel = context.WithCancel(context.Background())
	return t, nil
}

// Addr returns where t listens, with the port that it got.
func (t *NetTransport) Addr() netip.AddrPort { return t.addr }

// DialAddressTimeout dials, until t is shut down: memberlist alone would hold a
// process that stops for as long as a dead address takes.
func (t *NetTransport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.dials, timeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	c := &dialled{Conn: conn, t: t}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	t.conns[c] = struct{}{}
	return c, nil
}

// DialTimeout is DialAddressTimeout.
func (t *NetTransport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// Shutdown closes the port and all connections that t has dialled.
func (t *NetTransport) Shutdown() error {
	t.cancel()
	t.mu.Lock()
	t.closed = true
	for c := range t.conns {
		c.Conn.Close()
	}
	clear(t.conns)
	t.mu.Unlock()
	return t.NetTransport.Shutdown()
}

// dialled is a connection that its transport knows.
type dialled struct {
	net.Conn
	t *NetTransport
}

// Close closes the connection.
func (c *dialled) Close() error {
	c.t.mu.Lock()
	delete(c.t.conns, c)
	c.t.mu.Unlock()
	return c.Conn.Close()
}
