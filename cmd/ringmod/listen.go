package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"

	"github.com/ringmod/ringmod/node/member"
)

// listeners are the addresses of a process, open before anything else starts so
// that an address in use costs nothing. What the process does not have is nil.
type listeners struct {
	http, grpc, admin net.Listener
	gossip            *member.NetTransport
}

func (o *options) listen(ctx context.Context, log *slog.Logger) (*listeners, error) {
	l := &listeners{}
	for _, each := range []struct {
		used       bool
		flag, addr string
		to         *net.Listener
	}{{o.parts.gateway, "http-addr", o.httpAddr, &l.http}, {o.parts.node, "grpc-addr", o.grpcAddr, &l.grpc}, {true, "admin-addr", o.adminAddr, &l.admin}} {
		if !each.used {
			continue
		}
		opened, err := listenOn(ctx, each.flag, each.addr)
		if err != nil {
			l.close()
			return nil, err
		}
		*each.to = opened
	}
	if !o.gossips() {
		return l, nil
	}
	err := l.openGossip(o.gossipAddr, log)
	if errors.Is(err, errInUse) && o.gossipAnywhere {
		log.WarnContext(ctx, "the gossip address is in use by another process, taking any port", "addr", o.gossipAddr)
		err = l.openGossip("127.0.0.1:0", log)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func listenOn(ctx context.Context, flag, addr string) (net.Listener, error) {
	if err := checkAddr(flag, addr); err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	return l, listenError(flag, addr, err)
}

func (l *listeners) openGossip(addr string, log *slog.Logger) error {
	const flag = "gossip-addr"
	if err := checkAddr(flag, addr); err != nil {
		return err
	}
	var err error
	l.gossip, err = member.Listen(addr, log)
	return listenError(flag, addr, err)
}

func checkAddr(flag, addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if _, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil {
		return usagef("--%s %q is not of the form host:port, with a port of 0 to 65535", flag, addr)
	}
	return nil
}

var errInUse = errors.New("is in use by another process")

func listenError(flag, addr string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EADDRINUSE), strings.Contains(err.Error(), syscall.EADDRINUSE.Error()): // memberlist keeps the text only
		return fmt.Errorf("--%s %s %w; stop it or choose another address (port 0: any)", flag, addr, errInUse)
	default:
		return fmt.Errorf("--%s: %w", flag, err)
	}
}

func (l *listeners) close() {
	for _, each := range []net.Listener{l.http, l.grpc, l.admin} {
		if each != nil {
			each.Close()
		}
	}
	if l.gossip != nil {
		_ = l.gossip.Shutdown()
	}
}

// ready is the line for scripts that started us: what is open, and where.
func (l *listeners) ready() string {
	var b strings.Builder
	b.WriteString("ready")
	for _, each := range []struct {
		name string
		addr func() string
		open bool
	}{
		{"http", func() string { return l.http.Addr().String() }, l.http != nil},
		{"grpc", func() string { return l.grpc.Addr().String() }, l.grpc != nil},
		{"gossip", func() string { return l.gossip.Addr().String() }, l.gossip != nil},
		{"admin", func() string { return l.admin.Addr().String() }, l.admin != nil},
	} {
		if each.open {
			fmt.Fprintf(&b, " %s=%s", each.name, each.addr())
		}
	}
	return b.String()
}

// reach returns where other members find what listens on l: at the address to
// advertise, or else at its own.
func reach(l net.Listener, advertise netip.Addr) string {
	at, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil || !advertise.IsValid() {
		return l.Addr().String()
	}
	return netip.AddrPortFrom(advertise, at.Port()).String()
}
