// Package hot keeps a module version that many ask for from wearing out the nodes that
// own it: others of the region help.
//
// # What is hot
//
// A version (its .info, .mod and .zip together) is hot at a node that sends it more
// than 50 times per second, or that spends more than a fifth of what it sends on it,
// if that is 8 MiB/s and two times per second at least. Counts are of the last 2 s.
//
// Answers then say over how many ranks callers may spread the version for a minute:
// as many as bring each of them below those limits, and no more than there are, the
// replicas and three spare ranks. The number grows while that is too few, and is
// forgotten when all of it would be half the replicas' limit.
//
// Nothing else is shared: each node says what it sees, each caller remembers what it
// was told, and ranks are the same for all.
//
// # Who helps
//
// A spare rank that is asked and has not got the object says so, and gets a copy from
// a replica's disk meanwhile, never by way of a fill: each object once at a time, two
// at a time, a failure not again for 5 s. The copy goes to the hot area (see
// store.HotArea), which belongs to nobody: it is not announced, not compared and
// the first to go.
//
// # What it costs
//
// Counting takes no lock and tells versions apart by three of 4096 places each; two
// that share all of these count as one. That is 288 KiB, whatever is asked for.
package hot

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/ring"
)

// When a version is hot (cluster.md 4.13).
const (
	maxRate  = 50.0    // requests per second
	maxShare = 0.20    // of the bytes that the node sends,
	minBytes = 8 << 20 // if these are at least so many per second
	minRate  = 2.0     // in so many requests

	coolBelow = 0.5 // of what makes it hot
	maxHot    = 256 // versions at a time

	// settled is how long it takes to see what spreading over more ranks has brought.
	settled = 2 * period
	// forgotten is how long nobody may ask for a version that is still hot: callers
	// remember it for a minute.
	forgotten = 2 * time.Minute
)

// Nodes is the way to the other nodes; *peers.Set is one.
type Nodes interface {
	Get(ctx context.Context, id string, req cache.Request, o wire.Options) (*cache.Object, error)
	Usable(id string) bool
}

// Node is the node that is asked; *node.Node is one.
type Node interface {
	// TakeHot verifies an object of another node, keeps it in the hot area, and
	// closes it.
	TakeHot(ctx context.Context, t target.Target, obj *cache.Object) error
}

// Config says whose keys are watched.
type Config struct {
	Self, Region string            // of this node
	View         func() *ring.View // the placement as it is known now; may return nil
	Nodes        Nodes
	Metrics      prometheus.Registerer // nil = none
	Logger       *slog.Logger          // nil = silent
}

// Keys watches what one node is asked for. Its methods may be called concurrently.
type Keys struct {
	cfg     Config
	log     *slog.Logger
	node    Node
	metrics *metrics
	sketch  *sketch
	pulls   pulls

	mu    sync.Mutex // guards changes of hot
	swept time.Time
	hot   atomic.Pointer[map[module.Version]*spread]
}

// spread is a hot version.
type spread struct {
	ranks int          // callers may spread it over
	since time.Time    // when that was decided
	last  atomic.Int64 // when it was asked for, in nanoseconds since 1970
}

// New returns Keys that have seen nothing. It panics when the metrics are registered
// already.
func New(cfg Config) *Keys {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	k := &Keys{cfg: cfg, log: cfg.Logger, sketch: newSketch(time.Now()), pulls: newPulls()}
	k.hot.Store(&map[module.Version]*spread{})
	k.metrics = newMetrics(cfg.Metrics, k)
	return k
}

// Use says which node these keys are of. It must be called before Run.
func (k *Keys) Use(n Node) { k.node = n }

// Spreads tells whether objects of that kind may be hot.
func Spreads(kind target.Kind) bool {
	return kind == target.Info || kind == target.Mod || kind == target.Zip
}

// Sent notes that size bytes of t go to somebody. It returns over how many ranks
// callers may spread t; 0: over its replicas.
func (k *Keys) Sent(t target.Target, size int64) int {
	if !Spreads(t.Kind) {
		return 0
	}
	key, now := t.Module(), time.Now()
	load := k.sketch.add(key, size, now).load()
	was := (*k.hot.Load())[key]
	switch {
	case was == nil && load <= 1:
		return 0
	case was != nil:
		was.last.Store(now.UnixNano())
	}
	return k.judge(t, was, load, now)
}

// judge decides about a version that is hot or is to be.
func (k *Keys) judge(t target.Target, was *spread, load float64, now time.Time) int {
	replicas, most := k.ranks(t)
	if most <= replicas {
		return 0
	}
	if was == nil {
		ranks := min(int(math.Ceil(load*float64(replicas))), most)
		return k.set(t.Module(), max(ranks, replicas+1), now)
	}
	all := load * float64(was.ranks) // what one node would have to do
	switch wanted := min(int(math.Ceil(all)), most); {
	case all < coolBelow*float64(replicas):
		return k.set(t.Module(), 0, now)
	case wanted > was.ranks && now.Sub(was.since) >= settled:
		return k.set(t.Module(), wanted, now)
	default:
		return min(was.ranks, most)
	}
}

// ranks returns how many replicas of t there are, and how many ranks.
func (k *Keys) ranks(t target.Target) (replicas, most int) {
	view := k.cfg.View()
	if view == nil {
		return 0, 0
	}
	return view.Next().ReplicaCount(k.cfg.Region), len(view.Next().Ranks(k.cfg.Region, ring.OfTarget(t)))
}

// set says over how many ranks a version is to be spread, 0 for no longer hot.
func (k *Keys) set(key module.Version, ranks int, now time.Time) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	old := *k.hot.Load()
	if len(old) >= maxHot && old[key] == nil && now.Sub(k.swept) < period {
		return 0
	}
	k.swept = now
	hot := make(map[module.Version]*spread, len(old)+1)
	for other, each := range old {
		if other != key && now.UnixNano()-each.last.Load() < int64(forgotten) {
			hot[other] = each
		}
	}
	if len(hot) >= maxHot {
		ranks = 0
	}
	if ranks > 0 {
		hot[key] = &spread{ranks: ranks, since: now}
		hot[key].last.Store(now.UnixNano())
	}
	k.hot.Store(&hot)
	k.log.Debug("hot version", "module", key.Path, "version", key.Version, "ranks", ranks)
	return ranks
}

// count returns how many versions are hot.
func (k *Keys) count() int {
	n := 0
	for _, each := range *k.hot.Load() {
		if time.Now().UnixNano()-each.last.Load() < int64(forgotten) {
			n++
		}
	}
	return n
}
