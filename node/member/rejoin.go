package member

import (
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

const (
	rejoinEvery  = 15 * time.Second // give or take half
	rejoinFirst  = time.Second      // after the first attempt, while nobody was met
	backoffMax   = 2 * time.Minute
	seedPatience = 3 // failures in a row before a word about a seed
)

// rejoiner joins what should be there and is not.
type rejoiner struct {
	log      *slog.Logger
	table    *table
	seeds    *seeds
	own      []netip.AddrPort
	joins    atomic.Uint64
	failures atomic.Uint64

	// Of run alone.
	named    []netip.AddrPort // what the seeds were resolved to last
	known    []netip.AddrPort // from the last life, until somebody is met
	attempts map[netip.AddrPort]*attempt
}

type attempt struct {
	last     time.Time
	failures int
}

// due tells whether the back-off of an address is over.
func (a *attempt) due(first time.Duration) bool {
	if a.failures == 0 {
		return true
	}
	pause := first << min(a.failures-1, 10)
	return time.Since(a.last) >= min(pause, backoffMax)
}

func newRejoiner(m *Membership) (*rejoiner, error) {
	seeds, err := newSeeds(m.cfg.Seeds, m.cfg.Resolver, m.log)
	return &rejoiner{
		log: m.log, table: m.table, seeds: seeds,
		own:      []netip.AddrPort{m.advertise, m.cfg.Transport.Addr()},
		attempts: make(map[netip.AddrPort]*attempt),
	}, err
}

// run joins by join, which takes one ip:port, until ctx is done.
func (r *rejoiner) run(ctx context.Context, join func(addr string) error) {
	for rounds := 0; ctx.Err() == nil; rounds++ {
		r.round(ctx, join)
		pause := rejoinEvery
		if !r.table.hasMet() {
			pause = min(pause, rejoinFirst<<min(rounds, 10))
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}

// round tries each address that is due, and one at least: a cut that has lasted for
// long must not need another two minutes to heal.
func (r *rejoiner) round(ctx context.Context, join func(addr string) error) {
	wanted := r.wanted(ctx)
	maps.DeleteFunc(r.attempts, func(a netip.AddrPort, _ *attempt) bool { return !slices.Contains(wanted, a) })
	first := rejoinEvery
	if !r.table.hasMet() {
		first = rejoinFirst
	}
	slices.SortStableFunc(wanted, func(a, b netip.AddrPort) int {
		return r.attempt(a).last.Compare(r.attempt(b).last)
	})
	for i, addr := range wanted {
		a := r.attempt(addr)
		if ctx.Err() != nil || i > 0 && !a.due(first) || slices.Contains(r.table.living(), addr) {
			continue
		}
		a.last = time.Now()
		r.joins.Add(1)
		err := join(addr.String())
		if ctx.Err() != nil {
			return
		}
		r.count(ctx, addr, a, err)
	}
}

// count notes how an attempt went. Members that are down were spoken of; what is wrong
// with a seed is said once.
func (r *rejoiner) count(ctx context.Context, addr netip.AddrPort, a *attempt, err error) {
	if err == nil {
		a.failures = 0
		return
	}
	a.failures++
	r.failures.Add(1)
	level := slog.LevelDebug
	if a.failures == seedPatience && slices.Contains(r.named, addr) {
		level = slog.LevelWarn
	}
	r.log.Log(ctx, level, "cannot join, trying on", "gossip", addr.String(), "err", joinText(err, addr.String()))
}

func (r *rejoiner) attempt(addr netip.AddrPort) *attempt {
	a, ok := r.attempts[addr]
	if !ok {
		a = &attempt{}
		r.attempts[addr] = a
	}
	return a
}

// wanted returns the addresses that should be alive and are not, each once.
func (r *rejoiner) wanted(ctx context.Context) []netip.AddrPort {
	r.named = r.seeds.resolve(ctx)
	all := slices.Concat(r.named, r.table.missing())
	if r.table.hasMet() {
		r.known = nil
	}
	all = append(all, r.known...)
	living := r.table.living()
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.DeleteFunc(slices.Compact(all), func(a netip.AddrPort) bool {
		return slices.Contains(r.own, a) || slices.Contains(living, a)
	})
}

// remember sets the addresses of the last life.
func (r *rejoiner) remember(saved []string) {
	for _, s := range saved {
		if a, err := netip.ParseAddrPort(s); err == nil {
			r.known = append(r.known, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
		}
	}
	r.known = r.known[:min(len(r.known), maxSaved)]
}
