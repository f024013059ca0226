// Package copies brings what one node of a region has fetched to the other replicas
// of its partition, so that it survives the loss of a node.
//
// # Announcing
//
// Whoever stores an object tells the replicas of the object's partition in its own
// region (Announce), as the table that is coming has them: at once, but for 100 ms
// in which what comes together is gathered, and at most 1024 objects in one call. It
// tells again, at growing distances, until they say that they hold it, durably. A
// replica that is down or does not answer is told when it is up again: until then
// what it should hold is a hint, in a file per member that outlives this process.
//
// At most 100,000 objects or 64 MiB of names wait for one member. More are dropped,
// with a mark in that file: the two then have to compare what they hold (Unsynced).
//
// Lists and other mutable answers are announced once and never waited for.
//
// # Pulling
//
// Who is told of an object that it should hold and does not pulls it from the holder,
// with cache.Peek, in the order of the announcements: 4 at a time, 50 MiB/s in all,
// and later while many fills run. A failed pull is not tried again before the next
// announcement. What was pulled is not announced. Pulls that others ask for (Pull) share
// these limits and come after all that was announced. What a holder waits for (Secure) is
// pulled at once, beside and before all this.
//
// # What it never does
//
// It never replaces a copy by another one. Where two differ, both stay where they
// are, and the log says so. It never asks an upstream for an object, removes
// nothing, and trusts an announcement with nothing but where to look.
package copies

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// Nodes is the way to the other nodes; *peers.Set is one.
type Nodes interface {
	Get(ctx context.Context, id string, req cache.Request, o wire.Options) (*cache.Object, error)
	Conn(id string) (grpc.ClientConnInterface, error)
	Usable(id string) bool
	// Answers tells whether a node says at once that it is well.
	Answers(ctx context.Context, id string) bool
}

// Node is the node whose copies these are; *node.Node is one.
type Node interface {
	// Holding tells what is here or on its way, without reading it.
	Holding(ctx context.Context, t target.Target) (*ringmodv1.Holding, error)
	// Take verifies and stores an object of another node, and closes it.
	Take(ctx context.Context, t target.Target, obj *cache.Object) error
	// Fills returns how many fills run.
	Fills() int
}

// Config says whose copies are kept, and how.
type Config struct {
	Self, Region string            // of this node
	View         func() *ring.View // the placement as it is known now; may return nil
	Nodes        Nodes
	Store        store.Store
	Documents    store.Documents
	Dir          string // for hints, made when missing; "" = they end with the process
	Rate         int64  // of pulls, in bytes per second; 0 = DefaultRate
	// Declines tells of an announced object that is missing and not to be pulled; nil =
	// none. OnConflict is told of one of which other bytes are here; nil = nobody. Neither
	// may block.
	Declines   func(t target.Target, theirs *ringmodv1.Copy) bool
	OnConflict func(t target.Target, holder string, theirs *ringmodv1.Copy)
	// OnView is told of members that have another view than ours; Caller returns the
	// id of the member that makes a call. See node.ServiceConfig; nil = not known.
	OnView  func(id string, digest, seq uint64)
	Caller  func(ctx context.Context) string
	Metrics prometheus.Registerer // nil = none
	Logger  *slog.Logger          // nil = silent
}

// DefaultRate is how much is pulled per second (cluster.md 4.12).
const DefaultRate = 50 << 20

// Keeper announces and pulls for one node. Its methods may be called concurrently.
type Keeper struct {
	cfg     Config
	log     *slog.Logger
	node    Node
	metrics *metrics
	pulls   *pulls
	mute    mute

	mu       sync.Mutex
	backlogs map[string]*backlog // by member
	life     context.Context     //nolint:containedctx // of Run; nil before it
	running  sync.WaitGroup      // those who deliver backlogs; grows under mu, while life lasts
}

// New returns a Keeper. It does no I/O. It panics when the metrics are registered
// already.
func New(cfg Config) *Keeper {
	if cfg.Rate == 0 {
		cfg.Rate = DefaultRate
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
	k := &Keeper{cfg: cfg, log: cfg.Logger, backlogs: map[string]*backlog{}, pulls: newPulls(cfg.Rate)}
	k.metrics = newMetrics(cfg.Metrics, k)
	return k
}

// Use says which node's copies these are, which is made with Store and Documents.
// It must be called before Run and Announce.
func (k *Keeper) Use(n Node) { k.node = n }

// Run announces and pulls until ctx is done, and keeps what is not delivered by then
// as hints.
func (k *Keeper) Run(ctx context.Context) error {
	k.recall(ctx)
	k.mu.Lock()
	k.life = ctx
	for _, b := range k.backlogs {
		k.deliver(ctx, b)
	}
	k.mu.Unlock()
	var pulling sync.WaitGroup
	for range pullers {
		pulling.Go(func() { k.pullAll(ctx) })
	}
	for range hurriers {
		pulling.Go(func() { k.pullSoon(ctx) })
	}
	<-ctx.Done()
	pulling.Wait()
	k.mu.Lock() // from here on nobody delivers
	defer k.mu.Unlock()
	k.running.Wait()
	for _, b := range k.backlogs {
		b.persist()
	}
	return nil
}

// survive, deferred, turns a panic over what another member sends into an error and a
// line in the log.
func (k *Keeper) survive(ctx context.Context, id string, err *error) {
	if p := recover(); p != nil {
		k.log.ErrorContext(ctx, "panic while copying", "peer", id, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = fmt.Errorf("panic: %v", p)
	}
}

// stored announces what was stored under that name to the replicas that should have
// it, too.
func (k *Keeper) stored(name string) {
	t, err := target.Parse(name)
	if err != nil || !travels(t.Kind) || k.pulls.takes(name) {
		return
	}
	for _, id := range k.replicas(t) {
		if id != k.cfg.Self {
			k.tell(id, name, !t.Kind.Immutable())
		}
	}
}

// travels tells whether objects of that kind are copied to other nodes.
func travels(k target.Kind) bool {
	return k.Immutable() || k == target.List || k == target.Latest || k == target.Query
}

// replicas returns who should hold t in this region from now on.
func (k *Keeper) replicas(t target.Target) []string {
	view := k.cfg.View()
	if view == nil {
		return nil
	}
	var ids []string
	for _, i := range view.Next().Replicas(k.cfg.Region, ring.OfTarget(t)) {
		ids = append(ids, view.Member(i).ID)
	}
	return ids
}

// Tell announces an object that is stored here to one member. It does not block.
func (k *Keeper) Tell(member, name string) { k.tell(member, name, false) }

// tell queues an announcement to a member.
func (k *Keeper) tell(id, name string, light bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	b := k.backlogs[id]
	if b == nil {
		b = k.newBacklog(id)
		k.backlogs[id] = b
	}
	b.add(name, light)
	if k.life != nil {
		k.deliver(k.life, b)
	}
}

// Lag returns how long the object has waited that has waited longest for a replica
// to confirm it, 0 where none does. Members that are not in do not count.
func (k *Keeper) Lag() time.Duration {
	view := k.cfg.View()
	var lag time.Duration
	for _, b := range k.all() {
		if view == nil {
			break
		}
		if since, ok := b.oldest(); ok {
			if _, in := view.Find(b.id); in {
				lag = max(lag, time.Since(since))
			}
		}
	}
	return lag
}

// Hints returns how many objects wait for members that were down.
func (k *Keeper) Hints() int {
	n := 0
	for _, b := range k.all() {
		n += b.hints()
	}
	return n
}

// Unsynced tells whether more waited for a member than was kept.
func (k *Keeper) Unsynced(id string) bool {
	k.mu.Lock()
	b := k.backlogs[id]
	k.mu.Unlock()
	return b != nil && b.isUnsynced()
}

// Synced says that a member compares what it holds, so that nothing is lost any more.
func (k *Keeper) Synced(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	b := k.backlogs[id]
	if b == nil {
		return
	}
	b.synced()
	if k.life != nil {
		k.deliver(k.life, b) // which has the file
	}
}

func (k *Keeper) all() []*backlog {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make([]*backlog, 0, len(k.backlogs))
	for _, b := range k.backlogs {
		all = append(all, b)
	}
	return all
}
