// Package cluster answers a gateway out of a cluster of nodes: it chooses whom to
// ask, asks others when that fails, and keeps what streams alive when its node
// dies.
//
// # Whom it asks
//
// Immutable objects are read from a replica in our own zone, else region, the one
// likely to answer sooner, with cache.OnlyIfCached; the coordinator, the lowest
// rank that is usable, has leave to fill at once. A node that has not got the
// object is followed by the coordinator. What changes is asked of the coordinator
// only. The table in failover.go says what follows each error:
//
//   - A node that is dead, silent or broken is followed by the next one, a region
//     by the next one by distance.
//   - After a silence all others are asked how they are, at once, so that the silence of
//     several does not add up.
//   - A node that is busy is followed by the next one while the budget lasts.
//   - When a coordinator says no, for whatever reason, all who may hold a copy
//     are asked for it before that is the answer, also in the middle of a fill: a
//     build never fails while any copy exists. An absent list is absent at once.
//   - When all are dead, silent or out of reach for 2 s, or were a moment ago,
//     Config.Upstream is asked, if there is one and the module is public, for 32
//     objects at a time; more wait for 30 s. Else the answer is cache.Busy. Where
//     anybody is busy, he is not dead, and Busy is the answer: upstream is not to
//     bear what the nodes do not.
//
// What a node calls hot is read, for the next minute, from as many ranks as it says,
// replicas and spare ones alike, whatever their zones: the better one of two drawn at
// random. A spare rank that has not got it gets it meanwhile, and a replica is asked.
//
// A read that takes longer than its node usually does is hedged: another replica
// may answer what it holds. Nothing here ever gives two nodes leave to fill at the
// same time. Hedges and retries of what is busy have a budget (see budget).
//
// # Bodies
//
// A body goes on when its node dies: at the same byte from any node with the same
// SHA-256; where that is not known yet, in a fill, from the next coordinator when
// what it sends begins with the bytes that were handed out already. If it does not,
// or nobody is left, Read returns an error and never io.EOF.
//
// A zip that one client asks for is passed through to him: a file would cost as
// much again as the way from the node. Who asks at the same time, or within 10 s of
// another, gets it spooled: read at full speed into a temporary file without a
// name, one for all of them, kept for 10 s, and sent from there, so that later ones
// cost no node anything. Where there is no room or no usable folder, zips are
// passed through. What is passed through comes over connections that let in 1 MiB
// ahead of a slow reader, and not the 16 that gRPC might.
//
// With Request.Whole, bodies of known size and digest can seek: what is read
// is asked for when it is read.
//
// # Repair
//
// When a replica has not got what another node of its region has on its disk, it is
// told so, off the way of the request and at most once a minute.
//
// # What it never does
//
// It keeps nothing but these spools, verifies no module hash, and asks an upstream
// itself only through Config.Upstream.
package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/ring"
)

const (
	// smallLimit is how long anything but a zip may take. Nodes have their own,
	// shorter limits for each thing that they do; this is for what adds up.
	smallLimit = 2 * time.Minute
	// maxHeld is the largest object but a zip that is read before it is answered:
	// the gateway holds it in memory all the same.
	maxHeld = 2 << 20
	// maxSmallZip is the same for zips, which the gateway keeps in memory up to
	// this size.
	maxSmallZip = 256 << 10

	unreachablePause = 3 * time.Second // before it makes sense to ask again
)

// Peers are the nodes; *peers.Set is.
type Peers interface {
	Get(ctx context.Context, id string, req cache.Request, o wire.Options) (*cache.Object, error)
	Usable(id string) bool
	Stats(id string) peers.Stats
	// Answers tells whether a node says at once that it is well.
	Answers(ctx context.Context, id string) bool
}

// View is who owns what; nil while nothing is known.
type View interface {
	View() *ring.View
}

// Upstream is the last resort: it fetches public modules without any node. Its
// errors are *cache.Error.
type Upstream interface {
	Get(ctx context.Context, req cache.Request) (*cache.Object, error)
}

// Config says where a Cluster is and how it reaches the nodes.
type Config struct {
	Cluster      string // its name, for messages
	Region, Zone string // our own
	Peers        Peers  // required
	View         View   // required
	// Conns leads to nodes that are to be told what they lack. nil: none is told.
	Conns Conns
	// Upstream is asked when no node can be reached. nil: nobody is.
	Upstream Upstream
	// Private are patterns of modules (as in GOPRIVATE) that Upstream is never
	// asked for.
	Private string
	// SpoolDir is the folder for spools. Empty: the system's for temporary files.
	SpoolDir string
	// SpoolLimit is how many bytes of spools there may be. 0 means 1 GiB; less:
	// nothing is spooled.
	SpoolLimit int64
	Pool       *wire.Pool            // of buffers; nil = one of its own
	Metrics    prometheus.Registerer // nil = none
	Logger     *slog.Logger          // nil = nobody
}

// Cluster is a gateway.Cache. It is safe for concurrent use.
type Cluster struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	atlas   atlas
	budget  *budget
	outage  outage
	fanouts fanouts
	spools  *spools
	repairs *repairs
	permits chan struct{} // of last resorts
}

// New returns a Cluster that has asked nobody yet. It panics when the metrics are
// registered already.
func New(cfg Config) *Cluster {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Pool == nil {
		cfg.Pool = new(wire.Pool)
	}
	c := &Cluster{
		cfg: cfg, log: cfg.Logger, budget: newBudget(),
		atlas:   atlas{region: cfg.Region, zone: cfg.Zone, peers: cfg.Peers},
		spools:  newSpools(cfg),
		permits: make(chan struct{}, maxLastResorts),
	}
	c.repairs = newRepairs(c)
	c.metrics = newMetrics(cfg.Metrics, c.spools)
	return c
}

// Run makes repairs until the end of ctx, then ends what is spooled and gives the
// disk back. Get works before and after, but spools nothing after.
func (c *Cluster) Run(ctx context.Context) error {
	c.repairs.run(ctx)
	c.spools.close()
	return nil
}

// Drop lets go of what has just been purged.
func (c *Cluster) Drop(purged func(name string) bool) { c.spools.purge(purged) }

// Get answers req. Its errors are *cache.Error, or that of ctx, which bounds the
// body too.
func (c *Cluster) Get(ctx context.Context, req cache.Request) (*cache.Object, error) {
	var obj *cache.Object
	var err error
	switch {
	case req.Target.Kind != target.Zip:
		obj, err = c.small(ctx, req)
	case req.Whole:
		obj, err = c.wholeZip(ctx, req)
	default:
		obj, err = c.zip(ctx, req)
	}
	c.metrics.request(obj, err)
	return obj, err
}

// small answers what is not a zip: read to its end unless it is surprisingly
// large.
func (c *Cluster) small(ctx context.Context, req cache.Request) (*cache.Object, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, smallLimit, errTooLong)
	obj, err := c.smallWithin(ctx, req)
	if err != nil {
		cancel()
		if errors.Is(context.Cause(ctx), errTooLong) {
			err = &cache.Error{Reason: cache.Slow, Text: "no answer in " + smallLimit.String(), Err: err}
		}
		return nil, err
	}
	if _, held := obj.Body.(*heldBody); held {
		cancel()
		return obj, nil
	}
	obj.Body = &released{obj.Body, cancel}
	return obj, nil
}

var errTooLong = errors.New("the time for a small object is over")

// smallWithin asks anew, once, when a body breaks that cannot be resumed, such as
// a list of which every node has another.
func (c *Cluster) smallWithin(ctx context.Context, req cache.Request) (*cache.Object, error) {
	q := question{req: req}
	for again := true; ; again = false {
		r, err := c.find(ctx, q)
		if err != nil {
			return nil, err
		}
		obj, err := c.hold(c.object(ctx, q, r), maxHeld)
		if err == nil || ctx.Err() != nil || !again || !goesOn(err, true) {
			return obj, asError(err)
		}
		q.avoid = r.node.id
	}
}

// wholeZip answers a zip that is complete: from a spool, or with a body that asks
// for what is read of it.
func (c *Cluster) wholeZip(ctx context.Context, req cache.Request) (*cache.Object, error) {
	if obj, err := c.spools.whole(ctx, req); obj != nil || err != nil {
		return obj, err
	}
	return c.direct(ctx, question{req: req, slow: true})
}

// direct answers a zip without a spool. A fill that fails while it is held back, by
// upstream or by its node, is followed by a copy, of whatever size.
func (c *Cluster) direct(ctx context.Context, q question) (*cache.Object, error) {
	r, err := c.find(ctx, q)
	if err != nil {
		return nil, err
	}
	obj, err := c.hold(c.object(ctx, q, r), maxSmallZip)
	if err == nil || !spoken(err) && !goesOn(err, false) {
		return obj, asError(err)
	}
	q.copies, q.avoid = true, r.node.id
	if r, noCopy := c.find(ctx, q); noCopy == nil {
		obj, err = c.hold(c.object(ctx, q, r), maxSmallZip)
	}
	return obj, asError(err)
}

// zip answers a zip by way of a spool, where several want it and there is room for
// one.
func (c *Cluster) zip(ctx context.Context, req cache.Request) (*cache.Object, error) {
	own := question{req: req, slow: true}
	obj, joined, err := c.spools.get(ctx, req, source{
		open: func(ctx context.Context, slow bool) (*cache.Object, error) {
			return c.direct(ctx, question{req: req, slow: slow})
		},
		rest: func(size int64, at position) (io.ReadCloser, error) { return c.rest(ctx, own, size, at) },
	})
	switch {
	case obj != nil:
		return obj, nil
	case err == nil:
		return c.direct(ctx, own)
	case joined && req.Mode == cache.AllowFill && spoken(err):
		return c.afterTrouble(ctx, req, err)
	default:
		return nil, err
	}
}

// afterTrouble looks once more for a copy, for those who have joined others whom
// trouble was told: one may have come after they had looked, and before he asked.
func (c *Cluster) afterTrouble(ctx context.Context, req cache.Request, trouble error) (*cache.Object, error) {
	req.Mode = cache.OnlyIfCached
	if obj, err := c.zip(ctx, req); err == nil {
		return obj, nil
	}
	return nil, trouble
}

// hold reads an object of up to limit bytes into memory. Others are as they were.
func (c *Cluster) hold(obj *cache.Object, limit int64) (*cache.Object, error) {
	if _, held := obj.Body.(*heldBody); held || obj.Size < 0 || obj.Size > limit {
		return obj, nil
	}
	data := make([]byte, obj.Size)
	_, err := io.ReadFull(obj.Body, data)
	if err == nil { // the end is where a body says that all was well
		_, err = io.ReadFull(obj.Body, make([]byte, 1))
	}
	obj.Body.Close()
	if !errors.Is(err, io.EOF) {
		return nil, cmp.Or(err, errLength)
	}
	held := *obj
	held.Body = newHeldBody(data)
	return &held, nil
}

var errLength = errors.New("the object is not as long as it was said to be")

// Ready tells why requests should go elsewhere for now: a *cache.Error when no
// node is known or none can be used.
func (c *Cluster) Ready() error {
	view := c.cfg.View.View()
	if view == nil || len(view.Members()) == 0 {
		return errNoNode()
	}
	if _, up := c.count(view); up == 0 {
		return c.unreachable(nil)
	}
	return nil
}

// count returns how many nodes are known and how many of them usable.
func (c *Cluster) count(view *ring.View) (known, up int) {
	for _, m := range view.Members() {
		if m.State == ring.Joining { // not asked yet
			continue
		}
		known++
		if c.cfg.Peers.Usable(m.ID) {
			up++
		}
	}
	return known, up
}

func errNoNode() error {
	return &cache.Error{
		Reason: cache.Busy, RetryAfter: unreachablePause,
		Text: "this gateway has not heard of any node yet; if that lasts, check its --join addresses and that the nodes run",
	}
}

// unreachable is the answer when nobody was of any use; cause is the last of the
// reasons.
func (c *Cluster) unreachable(cause error) error {
	known, up := 0, 0
	if view := c.cfg.View.View(); view != nil {
		known, up = c.count(view)
	}
	can := "can answer"
	if up == 0 {
		can = "can be reached"
	}
	return &cache.Error{
		Reason: cache.Busy, RetryAfter: unreachablePause, Err: cause,
		Text: fmt.Sprintf("no node of cluster %s %s (%d known, %d up)", c.cfg.Cluster, can, known, up),
	}
}

// overload is the answer when those who could have answered are busy.
func (c *Cluster) overload(err error) error {
	if e, ok := errors.AsType[*cache.Error](err); ok {
		return e
	}
	return &cache.Error{Reason: cache.Busy, RetryAfter: time.Second, Text: "the nodes have too much to do", Err: err}
}

// asError returns err as Get's errors are.
func asError(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if e, ok := errors.AsType[*cache.Error](err); ok {
		return e
	}
	return &cache.Error{Reason: cache.Busy, RetryAfter: time.Second, Text: "the nodes that have it fail while they send it", Err: err}
}
