// Package node holds module versions and fetches what it lacks.
//
// A Node answers cache.Requests for every kind of target:
//
//   - Immutable objects (.info, .mod and .zip of canonical versions) come from
//     the store; a miss is filled from upstream, once per object however many
//     ask, verified, and stored. A .info or .mod never fetches a zip.
//   - Mutable answers (list, @latest, queries) are documents with an age. They
//     are fresh for 60 s, served stale while one refresh runs for 10 min more,
//     and for 7 days when upstream fails. When there is none, list and @latest
//     are made from the versions that are held.
//   - Checksum database lookups and tiles are verified against the signed tree
//     head and kept.
//
// # In a cluster
//
// With Config.Peers a miss is filled from, in this order:
//
//   - a copy on the disk of another node of the region;
//   - the first of Peers.Coordinators that can answer, asked to coordinate: it
//     answers from its own disk, its region or upstream, and never by way of another
//     node. One that is unreachable, silent, stopping or too busy is followed
//     by the next after 50 to 250 ms; what it says of upstream settles the matter,
//     except that trouble with upstream, seen from another region, lets this node
//     try its own way;
//   - upstream, when this node is the coordinator, is asked to coordinate, or
//     none of them has helped.
//
// So upstream is asked once per object and opinion on who coordinates it. A fill
// that waits for another node and one that asks upstream may run side by side
// here: a request to coordinate joins the second kind only, and each kind has its
// own places, so that no two nodes ever wait for each other. The one that takes over
// from failing coordinators joins or starts the other. What was passed on by a node
// is not passed on again.
//
// A zip goes on where its source has died: what another source sends is compared
// with the bytes that are here, and followers notice nothing. Where it differs,
// they fail, and those that have no bytes yet get the new one.
//
// What a node has verified is not verified again: its hash is taken over with the
// bytes, whose SHA-256 the transport has compared. What no checksum database has
// confirmed there, and one covers here, is verified as if it came from upstream.
//
// A mutable answer from a node counts its age from there, and never replaces a
// younger one. When nobody can ask upstream, the youngest document of the region
// is served, marked stale.
//
// # Promises
//
//   - No byte of an object that did not verify is ever the last byte that a
//     caller gets: a zip's last 64 KiB are held back until length, zip rules and
//     checksum database agree; small objects are held back whole.
//   - NotFound and Gone are upstream's word, remembered for 60 s and 10 min by
//     who has heard it, and for as long by whom that one tells. No other failure
//     is remembered as absence.
//   - A fill belongs to the node, not to the caller that started it: callers
//     come and go, the fill goes on at upstream's speed.
//   - What is held never waits for a fill.
//   - With Config.Copier, no caller has all of what a fill brings before a second node
//     has it, unless there is none that takes it: then he gets it all the same.
//   - What an operator has purged (Config.Purges) is absent, in lists too, and @latest is
//     the newest version of the list that is not. The records of checksum databases stay.
//   - A disk that is full or failing is no reason to fail a caller: what was got is
//     passed on, a zip from memory, of which Config.Spool bounds the sum. A zip that
//     does not fit in there at all is Busy. One that had to make room as soon as it was
//     stored is read from the file that the fill has open.
//   - A call that waits for a disk that hangs is silent, so that the caller goes to another
//     node; fills and refreshes that wait for it end with Abandon.
//
// It never forwards private names to a checksum database, and it knows nothing
// of HTTP and of gateways.
package node

import (
	"context"
	"errors"
	"hash/maphash"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/refresh"
	"github.com/ringmod/ringmod/internal/spans"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/sumdb"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/verify"
)

// Upstream is the world outside, in GOPROXY terms. Errors are *cache.Error.
type Upstream interface {
	// Fetch opens the bytes of a module target. The caller closes the body; a
	// read that fails is an error, never a short end.
	Fetch(ctx context.Context, t target.Target, v upstream.Validators) (*upstream.Response, error)
	// Offline reports that there is no source at all.
	Offline() bool
}

// Copier sees to it that other nodes have what is stored here; *copies.Keeper is one.
type Copier interface {
	// Secure returns nil when another node of the region has t durably. It waits for
	// that as long as it makes sense.
	Secure(ctx context.Context, t target.Target) error
}

// Area is where objects are put, and found: a store.Store, or *store.HotArea for
// copies of what other nodes own.
type Area interface {
	Open(ctx context.Context, name string) (*store.Object, error)
	Create(name string) (store.Pending, error)
}

// Limits of a node (cluster.md 4.12 and 4.18).
const (
	DefaultFills = 64               // fills that run at once
	maxQueued    = 8192             // fills that wait for their turn
	queueWait    = 30 * time.Second // how long one may wait for it
	fillTimeout  = 30 * time.Minute // for one fill: 500 MiB at 300 KiB/s
)

// Config says what a Node works with.
type Config struct {
	Store     store.Store
	Documents store.Documents
	Upstream  Upstream
	Peers     Peers  // the other nodes of the cluster; nil = there are none
	Purges    Purges // nil = nothing is purged
	// Refreshes are the orders to ask upstream again; nil = there are none but those that
	// requests tell of.
	Refreshes *refresh.Orders
	// Databases are the checksum databases by preference: the first verifies
	// what is filled. None: nothing is verified but form and length.
	Databases []*sumdb.DB
	Copier    Copier       // waited for before an object counts as stored; nil = nobody
	Hot       Area         // for what others own and many ask for; nil = there is none
	Writes    *WriteBehind // shared with the databases; nil = one of its own
	Verifier  *verify.Verifier
	// Used tells when a version was asked for last, and about how often lately, as
	// store.Disk does. nil = not known.
	Used    func(name string) (last time.Time, recent float64)
	Private string       // GOPRIVATE patterns
	Fills   int          // concurrent fills; 0 = DefaultFills
	Spool   int64        // bytes of memory for zips that the disk does not take; 0 = DefaultSpool
	Metrics *Metrics     // nil = not measured
	Logger  *slog.Logger // nil = silent
}

// Node answers requests. Its methods may be called concurrently.
type Node struct {
	cfg    Config
	log    *slog.Logger
	writes *WriteBehind
	absent *negatives

	memory   *memory
	fills    places // that ask upstream
	forwards places // that go by way of other nodes
	stop     context.CancelCauseFunc
	stopping context.Context //nolint:containedctx // the life of all fills, ended by Run
	running  sync.WaitGroup

	flights  flights
	failures failures
	keeping  stripes // held to replace a document by a younger one
	seed     maphash.Seed

	mu        sync.Mutex
	ended     bool // Run waits for what runs: nothing new begins
	refreshes map[flightKey]*refreshing
	troubled  map[string]time.Time // mutable targets whose refresh failed: not again before
	renewed   map[string]renewed   // mutable targets that were asked for under an order
}

var errStopping = errors.New("the node is stopping")

// New returns a node. It does no I/O.
func New(cfg Config) *Node {
	if cfg.Fills == 0 {
		cfg.Fills = DefaultFills
	}
	if cfg.Spool == 0 {
		cfg.Spool = DefaultSpool
	}
	if cfg.Purges == nil {
		cfg.Purges = noPurges{}
	}
	if cfg.Refreshes == nil {
		cfg.Refreshes = refresh.New()
	}
	if cfg.Used == nil {
		cfg.Used = func(string) (time.Time, float64) { return time.Time{}, 0 }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Verifier == nil {
		cfg.Verifier = verify.New(0)
	}
	if cfg.Writes == nil {
		cfg.Writes = NewWriteBehind(cfg.Store, cfg.Logger)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	return &Node{
		cfg: cfg, log: cfg.Logger, writes: cfg.Writes, absent: newNegatives(),
		memory: newMemory(cfg.Spool), fills: newPlaces(cfg.Fills), forwards: newPlaces(cfg.Fills),
		stop: stop, stopping: ctx, seed: maphash.MakeSeed(),
		flights: flights{running: map[flightKey]*flight{}}, refreshes: map[flightKey]*refreshing{}, troubled: map[string]time.Time{}, renewed: map[string]renewed{},
	}
}

// Run blocks until ctx is done, then lets the fills that run finish for at most
// grace, ends the others, and returns when everything verified is stored. What
// is asked meanwhile is answered from what is held. Another Run with less grace
// hastens the first.
func (n *Node) Run(ctx context.Context, grace time.Duration) error {
	<-ctx.Done()
	n.mu.Lock()
	n.ended = true // else running could grow while it is waited for, which panics
	n.mu.Unlock()
	done := make(chan struct{})
	go func() {
		n.running.Wait()
		close(done)
	}()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		n.log.WarnContext(ctx, "ending fills that did not finish in time", "grace_ms", grace.Milliseconds())
		n.stop(errStopping)
		<-done
	}
	n.stop(errStopping)
	n.writes.Wait()
	return nil
}

// Get answers req. Errors are *cache.Error. The caller closes the body.
func (n *Node) Get(ctx context.Context, req cache.Request) (*cache.Object, error) {
	t := req.Target
	n.cfg.Refreshes.Learn(t.Path, req.Refresh)
	if t.Kind.Sumdb() { // which is never purged
		return n.sumdbObject(ctx, req)
	}
	if err := n.cfg.Purges.Wait(ctx); err != nil {
		return nil, err
	}
	if err := n.cfg.Purges.Check(t.String()); err != nil {
		return nil, err
	}
	if t.Kind.Immutable() {
		return n.object(ctx, req)
	}
	return n.changing(ctx, req)
}

// private reports whether the module of t matches the private patterns.
func (n *Node) private(t target.Target) bool {
	return t.Path != "" && module.MatchPrefixPatterns(n.cfg.Private, t.Path)
}

// object answers an immutable object of a module version.
func (n *Node) object(ctx context.Context, req cache.Request) (*cache.Object, error) {
	if obj, err := n.unsecured(ctx, req); obj != nil || err != nil {
		return obj, err
	}
	obj, err := n.held(ctx, req.Target)
	if err == nil {
		n.cfg.Metrics.answered(req.Target.Kind, cache.Disk)
		return obj, nil
	}
	// A copy that cannot be read is no absence, but upstream may have another.
	unreadable := !errors.Is(err, fs.ErrNotExist)
	if unreadable && (ctx.Err() != nil || !mayFill(req.Mode) || n.sealed()) {
		return nil, err
	}
	if req.Mode == cache.Peek {
		return nil, notCached(req.Target)
	}
	obj, missing := n.filled(ctx, req)
	if unreadable && cache.ReasonOf(missing) == cache.NotCached {
		return nil, err
	}
	return obj, missing
}

// maxAnew is how often a fill is begun for one caller whose object the disk did not
// keep until it was opened.
const maxAnew = 3

// filled answers by a fill.
func (n *Node) filled(ctx context.Context, req cache.Request) (obj *cache.Object, err error) {
	for range maxAnew {
		f, started, startErr := n.flight(ctx, req)
		if startErr != nil {
			return nil, startErr
		}
		if !started {
			spans.Join(ctx, f.span)
		}
		if obj, err = n.follow(ctx, f, req, started); !errors.Is(err, errUnstored) {
			break
		}
	}
	if err == nil {
		n.cfg.Metrics.answered(req.Target.Kind, obj.Source)
	}
	return obj, err
}

// held returns what is stored, or is about to be. fs.ErrNotExist: neither.
func (n *Node) held(ctx context.Context, t target.Target) (*cache.Object, error) {
	if data, proof, ok := n.writes.Pending(t.String()); ok {
		return n.smallObject(t, small{data, proof}, cache.Disk), nil
	}
	defer atDisk(ctx)()
	obj, err := n.cfg.Store.Open(ctx, t.String())
	if errors.Is(err, fs.ErrNotExist) && n.cfg.Hot != nil {
		obj, err = n.cfg.Hot.Open(ctx, t.String())
	}
	if errors.Is(err, fs.ErrNotExist) || err != nil && ctx.Err() != nil {
		return nil, err
	}
	if err != nil {
		if !errors.Is(err, store.ErrDead) { // which says so itself
			n.log.ErrorContext(ctx, "reading a stored object", "key", t.String(), "err", err)
		}
		return nil, unreadable(err)
	}
	return &cache.Object{
		Size: obj.Size, SHA256: obj.SHA256, ModTime: obj.Stored, H1: obj.H1, Verified: obj.Verified,
		Private: n.private(t), Source: cache.Disk, Body: obj.File,
	}, nil
}

func unreadable(err error) error {
	return &cache.Error{Reason: cache.Internal, Text: "the cache cannot read its disk", Err: err}
}

// flight joins the fill of req's target or starts one where that is allowed.
func (n *Node) flight(ctx context.Context, req cache.Request) (f *flight, started bool, err error) {
	t := req.Target
	if f := n.flights.join(t.String(), req.Mode == cache.Coordinate); f != nil {
		return f, false, nil
	}
	brought := upstream.HasBundle(ctx)
	if err := n.absence(t); err != nil && !brought {
		return nil, false, err
	}
	if !mayFill(req.Mode) {
		return nil, false, notCached(t)
	}
	if n.sealed() && !brought {
		return nil, false, offline(t)
	}
	return n.launch(ctx, t, req.Mode == cache.Coordinate, n.route(req))
}

// launch joins the fill of t or starts one by that route.
func (n *Node) launch(ctx context.Context, t target.Target, directOnly bool, route []Coordinator) (f *flight, started bool, err error) {
	f, started, err = n.flights.start(ctx, t.String(), directOnly, route, maxQueued)
	if started && !n.begin(func() { n.fill(ctx, t, f) }) {
		n.flights.remove(f)
		f.finish(small{}, ending())
	}
	return f, started, err
}

// begin runs work that Run waits for, unless Run waits already.
func (n *Node) begin(work func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.ended {
		n.running.Go(work)
	}
	return !n.ended
}

// lasting returns a context for work that belongs to the node: it has the values
// of ctx but ends only with the node or after limit.
func (n *Node) lasting(ctx context.Context, limit time.Duration) (_ context.Context, done func()) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	stop := context.AfterFunc(n.stopping, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

func mayFill(m cache.Mode) bool { return m == cache.AllowFill || m == cache.Coordinate }

func notCached(t target.Target) error {
	return &cache.Error{Reason: cache.NotCached, Text: t.Describe() + " is not in the cache, and the request forbids fetching it"}
}

// endedBy returns err, or that the node is stopping where that is why work failed.
func (n *Node) endedBy(err error) error {
	if err != nil && n.stopping.Err() != nil {
		return ending()
	}
	return err
}

func ending() error {
	return &cache.Error{Reason: cache.Busy, Text: "the cache is stopping", Err: errStopping}
}

func offline(t target.Target) error {
	return &cache.Error{Reason: cache.NotCached, Text: t.Describe() + " is not in the cache, which is offline (--offline or --upstream off)"}
}
