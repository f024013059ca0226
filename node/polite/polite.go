// Package polite is how a cluster treats the hosts that it fetches from: as one visitor
// who asks at a measured rate, goes away when told to, and does not knock on a door
// behind which nobody is.
//
// What it promises:
//
//   - A host that answers 429, or 503 with Retry-After, is *held*: no node of the cluster
//     sends it a request before the time that it named is over. A 429 without a time holds
//     it for 10 s, doubled each time that happens again, up to 10 min.
//     Requests that were under way when the answer came, and those that other nodes send
//     before they have heard of it, which takes as long as one message, are the only exception.
//   - A host that cannot be reached, or answers 503 without a time through all attempts, is
//     *down*: the first client has waited for that, those who come next get the same error
//     at once, without a request. After 1 s, doubled with each failure up to 30 s, one request tries it;
//     the others do not wait for that one. An answer to anybody ends it, and one that came after the failing
//     request had begun does not let it begin: one slow file is not a host that is down.
//   - Rate and requests at once are those of the whole cluster: each node takes the part
//     of them that is its part of the fills (Config.Share), by who is in and not by who is up, so that
//     the sum is right when the cluster is cut in two. At least one request at once and some
//     rate are left to each, however many nodes there are.
//   - What nobody waits for (WithBackground) is done where the host's robots.txt allows it to "ringmod", and as
//     seldom as its Crawl-delay says. What somebody asks for explicitly is no visit of a robot (RFC 9309, 1) and goes by
//     the rate alone.
//   - After a hold nothing has been saved up: requests come back at the rate.
//
// Holds are told to all nodes of the cluster, downs to those of the region, as another
// region may have a way that works (Keeper). What a neighbour calls down is believed for 5 s at most,
// and not at all by a node that has had an answer within 10 s: a node without a network
// must not silence the others. There is nobody whose failure would matter to
// the rest: a node that hears of nothing keeps to its own share and to what it is told itself.
//
// It never sends a request, knows nothing of modules, and keeps at most 4096 hosts of repositories, as their
// names come from who asks: those that are in order and were unused longest go first.
package polite

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
)

// What a host gets from the whole cluster, unless Config says something else.
const (
	// DefaultRate is how many requests a second a module proxy gets. Public ones bear
	// that without a word; 'go mod download' of 100 modules is 500 requests.
	DefaultRate = 500
	// DefaultAtOnce is how many requests, bodies included, a module proxy gets at once. The
	// go command has no limit; public mirrors bear some dozens without a word.
	DefaultAtOnce = 48

	// A host of repositories works harder: each request is a go command with all that git asks.
	repositoryRate   = 20
	repositoryAtOnce = 16
)

const (
	firstDown  = time.Second
	longDown   = 30 * time.Second
	firstHold  = 10 * time.Second // for who says "too many" and not how long
	longHold   = 10 * time.Minute
	longest    = time.Hour // of a hold, whatever a host says
	hearsay    = 5 * time.Second
	recent     = 10 * time.Second // in which an answer of our own outweighs what a neighbour says
	maxHosts   = 4096
	rateWindow = 10 * time.Second // that a Report's rate is of
)

// Kind is what a host is asked for.
type Kind uint8

// The kinds.
const (
	Proxy      Kind = iota // files, by HTTP: a module proxy, a checksum database
	Repository             // version control, by commands
)

// Config says how polite to be.
type Config struct {
	Rate   float64 // requests a second to one module proxy, of the whole cluster; 0 = DefaultRate
	AtOnce int     // requests at once to one module proxy, of the whole cluster; 0 = DefaultAtOnce
	// Share returns which part of that is this process's, above 0 and at most 1. nil = all.
	Share  func() float64
	Logger *slog.Logger // nil = silent
}

// Hosts are the hosts that one process fetches from. Its methods may be called concurrently.
type Hosts struct {
	cfg    Config
	log    *slog.Logger
	wake   chan struct{} // of one: there is news
	robots GetRobots
	shut   chan struct{} // closed when hosts may be asked; nil: at any time

	labels atomic.Int32 // how many Hosts of repositories wanted one

	mu    sync.Mutex // taken before the lock of a Host
	hosts map[string]*Host

	telling sync.Mutex      // taken after all others
	news    map[string]bool // hosts whose state others are to be told
}

// New returns Hosts that know of none.
func New(cfg Config) *Hosts {
	if cfg.Rate <= 0 {
		cfg.Rate = DefaultRate
	}
	if cfg.AtOnce <= 0 {
		cfg.AtOnce = DefaultAtOnce
	}
	if cfg.Share == nil {
		cfg.Share = func() float64 { return 1 }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Hosts{cfg: cfg, log: cfg.Logger, wake: make(chan struct{}, 1), hosts: make(map[string]*Host), news: make(map[string]bool)}
}

// Host returns the host of that name, with its port where it has one. Who was ever a
// Proxy stays one.
func (s *Hosts) Host(name string, kind Kind) *Host {
	name = strings.ToLower(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.hosts[name]
	if h == nil {
		s.makeRoom()
		h = &Host{set: s, name: name, kind: kind, crawl: crawl{turn: make(chan struct{}, 1)}}
		s.hosts[name] = h
	}
	if kind == Proxy {
		h.mu.Lock()
		h.kind = Proxy
		h.mu.Unlock()
	}
	h.used = time.Now()
	return h
}

// rate is how many requests a second a host gets from the whole cluster.
func (s *Hosts) rate(kind Kind) float64 {
	if kind == Repository {
		return min(s.cfg.Rate, repositoryRate)
	}
	return s.cfg.Rate
}

// atOnce is how many requests at once a host gets from the whole cluster.
func (s *Hosts) atOnce(kind Kind) int {
	if kind == Repository {
		return min(s.cfg.AtOnce, repositoryAtOnce)
	}
	return s.cfg.AtOnce
}

// makeRoom forgets a quarter of the hosts, unused for the longest time, where there are too many.
// The lock is held.
func (s *Hosts) makeRoom() {
	if len(s.hosts) < maxHosts {
		return
	}
	idle := slices.Collect(maps.Values(s.hosts))
	idle = slices.DeleteFunc(idle, func(h *Host) bool { return !h.isIdle() })
	slices.SortFunc(idle, func(a, b *Host) int { return a.used.Compare(b.used) })
	for _, h := range idle[:min(len(idle), maxHosts/4)] {
		delete(s.hosts, h.name)
	}
}

// all returns the hosts, in no order.
func (s *Hosts) all() []*Host {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Host, 0, len(s.hosts))
	for _, h := range s.hosts {
		all = append(all, h)
	}
	return all
}

// await waits until it is known what the others know.
func (s *Hosts) await(ctx context.Context) error {
	if s.shut == nil {
		return nil
	}
	select {
	case <-s.shut:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tell notes that the others should hear of a host.
func (s *Hosts) tell(name string) {
	s.telling.Lock()
	s.news[name] = true
	s.telling.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// takeNews returns what others should hear, once.
func (s *Hosts) takeNews() []Hold {
	s.telling.Lock()
	names := slices.Sorted(maps.Keys(s.news))
	clear(s.news)
	s.telling.Unlock()
	var holds []Hold
	for _, h := range s.all() {
		if _, found := slices.BinarySearch(names, h.name); found {
			holds = append(holds, h.current())
		}
	}
	return holds
}

// Holds returns the hosts that are held or down, in no order.
func (s *Hosts) Holds() []Hold {
	var holds []Hold
	for _, h := range s.all() {
		if hold := h.current(); hold.State != OK {
			holds = append(holds, hold)
		}
	}
	return holds
}

// Learn takes over what another process knew at that time.
func (s *Hosts) Learn(at time.Time, holds []Hold) {
	for _, hold := range holds {
		s.Host(hold.Host, Repository).learn(at, hold)
	}
}

// Heed takes over what a node has said of a host that this process may ask itself: a gateway
// is told of nothing by other ways.
func (s *Hosts) Heed(e *cache.Error) {
	if e.Reason != cache.Busy || e.RetryAfter <= 0 {
		return
	}
	s.mu.Lock()
	h := s.hosts[strings.ToLower(e.Source)]
	s.mu.Unlock()
	if h != nil {
		h.learn(time.Now(), Hold{State: Held, Left: e.RetryAfter, Error: e})
	}
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
