// Package scrub keeps what a node holds as it was stored: it reads everything from time
// to time, and gets again what has become bad.
//
// # Checking
//
// Every object is read within 30 days of its last check and compared with its entry:
// size, the CRC-32C of each chunk, SHA-256; a hash that no checksum database had confirmed
// is shown to one. What was checked longest ago comes first; each object has its own day
// between the 18th and the 24th, so that what came together need not be read
// together. After each chunk the scrubber rests, in the background four times as long as the
// chunk took, so that a disk which readers keep busy sees little of it, and never reads
// more than Config.Rate. When an object was checked is kept in the store's index.
//
// ScrubNow does the same for an operator: at once, everything that was not checked within a
// day, or everything; it rests as long as it works.
//
// # Repair
//
// A bad copy, whoever has found it, is in the store's quarantine when it is known here,
// and its entry is a store.Loss. What is lost is got again: the same bytes from a
// node of the region; where nobody has these, other bytes that another node holds, unless
// the checksum database contradicts; and where no node has any, from upstream, but
// then the store takes only the bytes that were recorded. What cannot be got is tried
// again, at growing distances, for 30 days. Clients never wait for any of it: for
// them the object is absent here and others are asked.
//
// # Two copies that disagree
//
// Where another node has other bytes under the same name (Conflict), the copy stays whose
// hash the checksum database confirms; with both or none confirmed, the older one. The
// node with the other copy takes that one over, verified, and has its own in the
// quarantine; the node whose copy stays announces it, so that the other one comes to the
// same end. As long as it cannot be told which is which, both stay. Whatever comes of it,
// there is a line in the log, at level error, and a count.
//
// It removes nothing that it has not seen to be bad or has replaced.
package scrub

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/store"
)

// Disk is what is scrubbed; *store.Disk is one.
type Disk interface {
	Checker
	Losses

	Stat(name string) (store.Entry, error)
	ReadOnly() error
	SetAside(ctx context.Context, name string, cause error) error
}

// Checker knows what was checked when.
type Checker interface {
	Unchecked(ctx context.Context, before time.Time, most int) (store.Backlog, error)
	Check(ctx context.Context, name string, pace func(n int, took time.Duration) error) error
	Checked(at time.Time, names ...string) error
}

// Losses knows what was bad and is not back yet.
type Losses interface {
	Lost(name string) (store.Loss, error)
	Losses(from string, most int) (all []store.Loss, next string, err error)
	LossNews() <-chan struct{}
	Forget(name string) error
}

// Node takes what is got again; *node.Node is one.
type Node interface {
	Taker

	Get(ctx context.Context, req cache.Request) (*cache.Object, error)
	Vet(ctx context.Context, t target.Target, h1 string) (confirmed bool, err error)
}

// Taker stores objects of other nodes. It closes them.
type Taker interface {
	Take(ctx context.Context, t target.Target, obj *cache.Object) error
	Replace(ctx context.Context, t target.Target, obj *cache.Object) error
}

// Copies finds copies of the region; *peer.Peers does.
type Copies interface {
	Peek(ctx context.Context, t target.Target) (*cache.Object, error)
	PeekSame(ctx context.Context, t target.Target, sum [32]byte) (*cache.Object, error)
}

// Nodes is the way to the other nodes; *peers.Set is one.
type Nodes interface {
	Get(ctx context.Context, id string, req cache.Request, o wire.Options) (*cache.Object, error)
}

// Config says what is scrubbed.
type Config struct {
	Disk   Disk
	Node   Node
	Copies Copies
	Nodes  Nodes
	// Announce tells a member of an object that is stored here. It must not block.
	Announce func(member, name string)
	Rate     int64                 // bytes a second; 0 = DefaultRate
	Metrics  prometheus.Registerer // nil = none
	Logger   *slog.Logger          // nil = silent
}

// DefaultRate is how much may be read per second (cluster.md 4.12).
const DefaultRate = 50 << 20

// Period is within how long everything is read.
const Period = 30 * 24 * time.Hour

// Scrubber scrubs one node. Its methods may be called concurrently.
type Scrubber struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	busy      chan struct{} // holds a value while an operator's scrub runs
	queue     chan *repair
	conflicts chan conflict
	suspects  chan string

	mu      sync.Mutex
	repairs map[string]*repair     // that wait or run
	failed  map[string]failure     // by name, of repairs
	treated map[conflict]time.Time // when a conflict was last looked at
	cleared time.Time              // of which
}

// New returns a Scrubber. It does no I/O. It panics when the metrics are registered
// already.
func New(cfg Config) *Scrubber {
	if cfg.Rate == 0 {
		cfg.Rate = DefaultRate
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Announce == nil {
		cfg.Announce = func(string, string) {}
	}
	return &Scrubber{
		cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Metrics),
		busy: make(chan struct{}, 1), queue: make(chan *repair, maxRepairs), conflicts: make(chan conflict, maxConflicts),
		suspects: make(chan string, maxSuspects),
		repairs:  map[string]*repair{}, failed: map[string]failure{}, treated: map[conflict]time.Time{},
	}
}

// Run checks and repairs until ctx is done.
func (s *Scrubber) Run(ctx context.Context) error {
	var running sync.WaitGroup
	running.Go(func() { s.trickle(ctx) })
	running.Go(func() { s.watchLosses(ctx) })
	running.Go(func() { s.settleAll(ctx) })
	running.Go(func() { s.checkSuspects(ctx) })
	for range repairers {
		running.Go(func() { s.repairAll(ctx) })
	}
	running.Wait()
	return nil
}

// sleep waits, and tells whether ctx lasts.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}
