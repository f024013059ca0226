package member

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"time"
)

const resolveTimeout = 5 * time.Second

// Resolver is what net.Resolver does.
type Resolver interface {
	// LookupNetIP returns the addresses of host; network is "ip".
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// seeds are addresses by name, looked up each time. They belong to one goroutine.
type seeds struct {
	log      *slog.Logger
	resolver Resolver
	all      []seed
}

type seed struct {
	host string
	port uint16
	err  string // of the last look-up, logged when it changes
}

// newSeeds takes host:port each. A nil resolver means net.DefaultResolver.
func newSeeds(names []string, resolver Resolver, log *slog.Logger) (*seeds, error) {
	s := &seeds{log: log, resolver: resolver}
	if resolver == nil {
		s.resolver = net.DefaultResolver
	}
	for _, name := range names {
		host, port, err := net.SplitHostPort(name)
		n, portErr := strconv.ParseUint(port, 10, 16)
		if err != nil || portErr != nil || host == "" || n == 0 {
			return nil, fmt.Errorf("seed %q is not host:port", name)
		}
		s.all = append(s.all, seed{host: host, port: uint16(n)})
	}
	return s, nil
}

// resolve returns the addresses of all seeds.
func (s *seeds) resolve(ctx context.Context) []netip.AddrPort {
	var all []netip.AddrPort
	for i := range s.all {
		all = append(all, s.one(ctx, &s.all[i])...)
	}
	return all
}

// one looks a seed up. What there is to say about troubles is said once.
func (s *seeds) one(ctx context.Context, each *seed) []netip.AddrPort {
	addrs, err := s.lookup(ctx, each.host)
	if ctx.Err() != nil {
		return nil
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != each.err {
		if err != nil {
			s.log.WarnContext(ctx, "seed cannot be resolved, trying on", "seed", each.host, "err", err)
		} else {
			s.log.InfoContext(ctx, "seed can be resolved again", "seed", each.host)
		}
		each.err = text
	}
	all := make([]netip.AddrPort, 0, len(addrs))
	for _, a := range addrs {
		all = append(all, netip.AddrPortFrom(a.Unmap(), each.port))
	}
	return all
}

func (s *seeds) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	addrs, err := s.resolver.LookupNetIP(ctx, "ip", host)
	if err == nil && len(addrs) == 0 {
		err = fmt.Errorf("%s has no address", host)
	}
	return addrs, err
}
