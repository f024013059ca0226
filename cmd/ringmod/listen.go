package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
)

// listeners are the addresses of a process, open before anything else starts so
// that an address in use costs nothing.
type listeners struct {
	http, grpc, admin net.Listener
}

func (o *options) listen(ctx context.Context) (*listeners, error) {
	l := &listeners{}
	for _, each := range []struct {
		flag, addr string
		to         *net.Listener
	}{{"http-addr", o.httpAddr, &l.http}, {"grpc-addr", o.grpcAddr, &l.grpc}, {"admin-addr", o.adminAddr, &l.admin}} {
		opened, err := listenOn(ctx, each.flag, each.addr)
		if err != nil {
			l.close()
			return nil, err
		}
		*each.to = opened
	}
	return l, nil
}

func listenOn(ctx context.Context, flag, addr string) (net.Listener, error) {
	_, port, err := net.SplitHostPort(addr)
	if _, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil {
		return nil, usagef("--%s %q is not of the form host:port, with a port of 0 to 65535", flag, addr)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("--%s %s is in use by another process; stop it or choose another address (port 0: any)", flag, addr)
	}
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	return l, nil
}

func (l *listeners) close() {
	for _, each := range []net.Listener{l.http, l.grpc, l.admin} {
		if each != nil {
			each.Close()
		}
	}
}

// ready is the line for scripts that started us: what is open, and where.
func (l *listeners) ready() string {
	var b strings.Builder
	b.WriteString("ready")
	for _, each := range []struct {
		name string
		l    net.Listener
	}{{"http", l.http}, {"grpc", l.grpc}, {"admin", l.admin}} {
		fmt.Fprintf(&b, " %s=%s", each.name, each.l.Addr())
	}
	return b.String()
}

// checkLoopback refuses to offer the node's services, which ask nobody who he
// is, beyond this machine.
func checkLoopback(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	if err != nil || host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil //nolint:nilerr // listenOn has better words for an address that is none
	}
	return usagef("--grpc-addr %s is reachable from other machines, and this build has no certificates between members; use a loopback address", addr)
}
