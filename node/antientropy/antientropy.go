// Package antientropy compares what the nodes of a region hold, and brings this node
// what it lacks: the way for a copy to be found that no announcement has brought.
//
// # Who compares what
//
// A partition is ours where this node is one of its replicas in View.Next. Its partners
// there are the other replicas of Next, and those of Current, which hold what a node
// that joins is to get. Each 5 minutes, give or take a fifth, a second after the
// placement has changed and when Wake is called, a round goes through all partners:
// one call of Digests for all partitions that are shared with it, and for each that
// differs the Keys of the partner, merged with our own. Each side looks for what it
// lacks; a partner that hints were lost for is asked to do so soon.
//
// # What is pulled
//
// What a partner holds and this node does not, if it was used within 7 days, whatever
// the state of this node: eviction is not loss, and what nobody has wanted for a week
// need not travel. A node that joins gets the rest as it is asked for, by peeking at
// those who had it. The most recently used goes first, over all partitions, through
// Puller, whose limits are those of all background work. A copy keeps the day of its
// last use: travelling is none. Nothing is pulled
//
//   - while the disk is read-only or fuller than eviction leaves it (85 % of the
//     limit), which is how a full node always is;
//   - of what Config.Declines refuses, above all what was evicted here lately;
//   - of what has failed of late, for a time that doubles from 1 minute to 1 day.
//
// When all that a comparison has found is settled, the two sums are remembered for a
// day: a difference that is meant costs one comparison and not one each round.
//
// # What this node should not hold
//
// Where this node is no replica any more, or is Leaving, the replicas of Next are its
// heirs. What none of them holds is announced to all of them, old or not, until one
// says that it has it. A partition that has been foreign for 24 hours and that heirs
// hold whole is Orphaned: its objects are the first to be evicted.
//
// # Conflicts
//
// Where two nodes hold different bytes under one name, both stay. Each comparison
// that finds it logs an error, counts it, and tells Config.OnConflict.
//
// # What a peer can do
//
// Make this node ask in vain, for 5 minutes a round, and hold some 20 MiB. Once it fails
// to hand out what it has listed, the rest of it waits for the next round. What it says
// is believed only as to where to look: names are parsed and must lie in the partition
// and have the hash that was asked for, and bytes are verified by who stores them.
package antientropy

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// Times of rounds.
const (
	DefaultPeriod = 5 * time.Minute  // cluster.md 4.9
	settle        = time.Second      // after the placement has changed, or somebody has asked
	firstRetry    = 5 * time.Second  // after a round that has left something, doubling up to the period
	handPause     = time.Second      // between rounds of a node that is Leaving
	patience      = 15 * time.Second // after the start, for partners that are not known to be up
)

// Nodes is the way to the other nodes; *peers.Set is one.
type Nodes interface {
	Conn(id string) (grpc.ClientConnInterface, error)
	Usable(id string) bool
}

// Store is what is compared; *store.Disk is one.
type Store interface {
	Sums(ctx context.Context) ([]store.Sum, error)
	Keys(ctx context.Context, partition int, after store.Key, most int) ([]store.Key, error)
	Stat(name string) (store.Entry, error)
	Backdate(name string, used time.Time) error
	HasRoom() bool
}

// Puller gets objects from other nodes; *copies.Keeper is one.
type Puller interface {
	// Pull gets an object from a holder and stores it, unless it is or comes here
	// without us.
	Pull(ctx context.Context, t target.Target, sha256 [32]byte, holder string) (pulled bool, err error)
}

// Hints tells of members for which more was to be announced than could be kept;
// *copies.Keeper does.
type Hints interface {
	Unsynced(id string) bool
	// Synced says that the member has been told to compare.
	Synced(id string)
}

// Config says what is compared with whom.
type Config struct {
	Self, Region string                 // of this node
	View         func() *ring.View      // the placement as it is known now; may return nil
	Changed      func() <-chan struct{} // closed when View or Nodes.Usable may have changed
	Nodes        Nodes
	Store        Store // its Place must be Place
	Pulls        Puller
	Hints        Hints         // nil = none are lost
	Period       time.Duration // of rounds; 0 = DefaultPeriod
	// Declines tells of what is not to be pulled though it is missing; nil = nothing.
	Declines func(t target.Target, theirs *ringmodv1.Copy) bool
	// OnConflict is told of a copy that differs from ours; nil = nobody. It must not block.
	OnConflict func(t target.Target, peer string, theirs *ringmodv1.Copy)
	Orphans    *Orphans // learns what this node need not hold; nil = nobody asks
	// OnView is told of members that have another view than ours; Caller returns the
	// id of the member that makes a call. nil = not known.
	OnView  func(id string, digest, seq uint64)
	Caller  func(ctx context.Context) string
	Metrics prometheus.Registerer // nil = none
	Logger  *slog.Logger          // nil = silent
}

// Place tells a store where an object belongs. The answer to a lookup holds the tree
// head of its time, so that its bytes may differ.
func Place(name string) (partition int, fixed bool) {
	t, err := target.Parse(name)
	if err != nil || !t.Kind.Immutable() {
		return -1, false
	}
	return int(ring.OfTarget(t)), t.Kind != target.SumdbLookup
}

// Progress is how far this node holds what it should. Bytes are those of objects used
// within 7 days, as well as that is known: of partitions that need no comparison, all.
type Progress struct {
	Missing    int64 // bytes that another node holds and this one lacks
	Total      int64 // bytes, with what is missing
	Partitions int   // ours that lack something
}

// Comparer compares and pulls for one node. Its methods may be called concurrently.
type Comparer struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{} // of one

	mem memory // of the goroutine in Run

	mu       sync.Mutex
	digest   uint64 // of the view that the rest is about
	progress Progress
	compared bool // with all that are there
	leaving  bool // this node is
	handed   bool // left is known
	left     remains
}

// remains are what no heir holds.
type remains struct{ objects, bytes int64 }

// New returns a Comparer. It does no I/O. It panics when the metrics are registered
// already.
func New(cfg Config) *Comparer {
	if cfg.Period == 0 {
		cfg.Period = DefaultPeriod
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Declines == nil {
		cfg.Declines = func(target.Target, *ringmodv1.Copy) bool { return false }
	}
	if cfg.OnConflict == nil {
		cfg.OnConflict = func(target.Target, string, *ringmodv1.Copy) {}
	}
	if cfg.OnView == nil {
		cfg.OnView = func(string, uint64, uint64) {}
	}
	if cfg.Caller == nil {
		cfg.Caller = func(context.Context) string { return "" }
	}
	if cfg.Orphans == nil {
		cfg.Orphans = new(Orphans)
	}
	c := &Comparer{cfg: cfg, log: cfg.Logger, wake: make(chan struct{}, 1), mem: newMemory()}
	c.metrics = newMetrics(cfg.Metrics, c)
	return c
}

// Wake makes Run compare soon.
func (c *Comparer) Wake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Progress tells how far this node is. It is known once each partition that is or
// becomes ours has been compared, in the placement of now, with all its partners that
// can be reached; where there are none there is nothing to miss. In the first 15 seconds
// of Run all partners have to be reached, as nobody may have been met yet. What this node cannot
// or will not pull does not count as missing.
func (c *Comparer) Progress() (p Progress, known bool) {
	digest := c.viewDigest()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.progress, c.compared && c.digest == digest
}

// Left tells how much of what this node holds no heir has confirmed to hold. It is
// known of a node that is Leaving, once all of it has been compared in the placement of
// now. What all heirs decline that take new objects does not count.
func (c *Comparer) Left() (objects, bytes int64, known bool) {
	digest := c.viewDigest()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left.objects, c.left.bytes, c.leaving && c.handed && c.digest == digest
}

func (c *Comparer) viewDigest() uint64 {
	digest, _ := c.stamp()
	return digest
}

// stamp returns digest and sequence number of the view, zeros without one.
func (c *Comparer) stamp() (digest, seq uint64) {
	if view := c.cfg.View(); view != nil {
		return view.Digest(), view.Seq()
	}
	return 0, 0
}

// Run compares until ctx is done.
func (c *Comparer) Run(ctx context.Context) error {
	c.mem.began = time.Now()
	retry := firstRetry
	for ctx.Err() == nil {
		view := c.cfg.View()
		pause := time.Duration(float64(c.cfg.Period) * (0.8 + 0.4*rand.Float64()))
		if view != nil {
			switch settled, hands := c.round(ctx, view); {
			case hands:
				pause = handPause
			case settled:
				retry = firstRetry
			default:
				pause = min(pause, retry)
				retry = min(2*retry, c.cfg.Period)
			}
		}
		c.rest(ctx, view, pause)
	}
	return nil
}

// rest waits for the time of the next round: at most for pause, until a little after
// somebody wakes us or the placement is another one. Nobody can make rounds follow each
// other without a rest.
func (c *Comparer) rest(ctx context.Context, view *ring.View, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for soon := false; ; {
		changed, wake := c.cfg.Changed(), c.wake
		if !soon && differ(view, c.cfg.View()) {
			soon = true
			timer.Reset(settle)
		}
		if soon {
			changed, wake = nil, nil
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case <-wake:
			soon = true
			timer.Reset(settle)
		case <-changed:
		}
	}
}

func differ(a, b *ring.View) bool {
	return (a == nil) != (b == nil) || a != nil && a.Digest() != b.Digest()
}
