package purge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/ring"
)

// Nodes is the way to the other nodes; *peers.Set is one.
type Nodes interface {
	Conn(id string) (grpc.ClientConnInterface, error)
	Usable(id string) bool
}

// Disk is where objects are removed; *store.Disk is one. Its DiskConfig.Purged must be
// that of the Set.
type Disk interface {
	// Purge removes what begins with prefix and matches.
	Purge(ctx context.Context, prefix string, match func(name string) bool) (store.Purged, error)
	// PurgeObject removes one object or document.
	PurgeObject(ctx context.Context, name string) (store.Purged, error)
	store.Documents
}

// Config says whose purges are kept, and how.
type Config struct {
	Self  string // id of this node
	Set   *Set   // what is known already
	State State  // what was kept, of which Set was made
	File  File   // where it is kept
	// View returns the placement as it is known now; Changed a channel that is closed when
	// it changes or a member comes up. See member.Membership.
	View    func() *ring.View
	Changed func() <-chan struct{}
	Nodes   Nodes
	Disk    Disk
	// Seeded says that there should be others, though none was ever heard of.
	Seeded bool
	// Told is called with what begins to be kept away, before it is removed, so that
	// whoever has something of it in memory can let it go. It must not block. nil = nobody.
	Told    func(purged func(name string) bool)
	Metrics prometheus.Registerer // nil = none
	Logger  *slog.Logger          // nil = silent
}

// Keeper keeps one node's purges: it applies them, and exchanges them with the other
// nodes. Its methods may be called concurrently.
type Keeper struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	ready   *gate                // shut until the node may serve
	anew    atomic.Pointer[gate] // shut while everything is removed

	mu      sync.Mutex         // guards what follows
	unsaved bool               // the file is not what the Set is
	todo    map[Name]Tombstone // what is still to be done
	away    absence
	peers   map[string]*peer

	working chan struct{} // of one: held by who saves and removes
	wake    chan struct{} // of one: there is something left to do
}

// New returns a Keeper. It does no I/O. It panics when the metrics are registered
// already.
func New(cfg Config) *Keeper {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Told == nil {
		cfg.Told = func(func(string) bool) {}
	}
	k := &Keeper{
		cfg: cfg, log: cfg.Logger, todo: make(map[Name]Tombstone), away: absence{heard: cfg.State.Heard},
		peers: make(map[string]*peer), working: make(chan struct{}, 1), wake: make(chan struct{}, 1), ready: newGate(),
	}
	k.away.kept = k.away.heard
	open := newGate()
	open.open()
	k.anew.Store(open)
	k.metrics = newMetrics(cfg.Metrics, cfg.Set)
	// What a crash has left is removed; until then it is away all the same.
	all, _ := cfg.Set.Since(0)
	for _, t := range all {
		k.todo[t.Name] = t
	}
	return k
}

// gate is shut until it is open for good.
type gate struct {
	once sync.Once
	ch   chan struct{} // closed when it is open
}

func newGate() *gate { return &gate{ch: make(chan struct{})} }

func (g *gate) open() { g.once.Do(func() { close(g.ch) }) }

func (g *gate) wait(ctx context.Context) error {
	select {
	case <-g.ch:
		return nil
	default:
	}
	select {
	case <-g.ch:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Wait returns when the node has heard what must be known before it serves anything, or
// with the error of ctx.
func (k *Keeper) Wait(ctx context.Context) error {
	if err := k.ready.wait(ctx); err != nil {
		return err
	}
	for {
		anew := k.anew.Load()
		if err := anew.wait(ctx); err != nil || k.anew.Load() == anew {
			return err
		}
	}
}

// apply makes tombstones known here, durably, and removes what they name. An error says
// that not all of that is done within patience; it goes on, or is tried again.
func (k *Keeper) apply(ctx context.Context, all []Tombstone) error {
	news, err := k.cfg.Set.Merge(all...)
	k.note(ctx, news)
	return errors.Join(err, k.settleSoon(ctx))
}

// note says what is to be done for tombstones that were learnt.
func (k *Keeper) note(ctx context.Context, news []Tombstone) {
	var names []Name
	k.mu.Lock()
	for _, t := range news {
		k.unsaved = true
		k.todo[t.Name] = t
		if !t.Lifted {
			names = append(names, t.Name)
		}
	}
	k.mu.Unlock()
	for _, t := range news {
		k.log.InfoContext(ctx, "a purge has come", "key", t.Name.Name, "prefix", t.Prefix, "lifted", t.Lifted, "epoch", t.Epoch, "reason", t.Text)
	}
	if len(names) > 0 {
		k.cfg.Told(newRules(asKnown(names)).purged)
	}
}

func asKnown(names []Name) map[Name]*known {
	all := make(map[Name]*known)
	for _, n := range names {
		all[n] = &known{Tombstone: Tombstone{Name: n}}
	}
	return all
}

// settle saves and removes what is not yet.
func (k *Keeper) settle(ctx context.Context) error {
	select {
	case k.working <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-k.working }()
	err := k.save()
	if err != nil {
		k.log.ErrorContext(ctx, "purges are not kept, trying on", "path", string(k.cfg.File), "err", err)
	}
	lists := map[string]bool{}
	for _, t := range k.undone() {
		if bad := k.do(ctx, t, lists); bad != nil {
			k.log.ErrorContext(ctx, "purged objects are not removed, trying on", "key", t.Name.Name, "err", bad)
			err = errors.Join(err, bad)
			continue
		}
		k.done(t)
	}
	for name := range lists {
		if bad := k.shorten(name); bad != nil {
			k.log.WarnContext(ctx, "a list on the disk still names a purged version", "key", name, "err", bad)
		}
	}
	return err
}

// settleSoon is settle within patience. What is left then is done all the same.
func (k *Keeper) settleSoon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := k.settle(ctx)
	if ctx.Err() != nil {
		select {
		case k.wake <- struct{}{}:
		default: // it is known already
		}
	}
	return err
}

// undone returns what is still to be done.
func (k *Keeper) undone() []Tombstone {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Collect(maps.Values(k.todo))
}

func (k *Keeper) done(t Tombstone) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.todo[t.Name].Epoch == t.Epoch {
		delete(k.todo, t.Name)
	}
}

// save writes the file, if it is not what it should be. The caller works.
func (k *Keeper) save() error {
	k.mu.Lock()
	unsaved, heard := k.unsaved, k.away.heard
	k.unsaved = false
	k.mu.Unlock()
	if !unsaved {
		return nil
	}
	state := k.cfg.Set.state()
	state.Heard = heard
	if err := k.cfg.File.Save(state); err != nil {
		k.dirty()
		return fmt.Errorf("writing what has been purged: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.away.kept = heard
	return nil
}

func (k *Keeper) dirty() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.unsaved = true
}

// do removes what t names from the disk, and adds the list to shorten.
func (k *Keeper) do(ctx context.Context, t Tombstone, lists map[string]bool) error {
	if t.Lifted {
		return nil
	}
	if err := k.remove(ctx, t.Name); err != nil {
		return err
	}
	if dir, _, ok := strings.Cut(t.Name.Name, "/@v/"); ok {
		lists[dir+"/@v/list"] = true
	}
	return nil
}

// remove removes what n names from the disk.
func (k *Keeper) remove(ctx context.Context, n Name) error {
	var gone store.Purged
	var err error
	if n.Prefix {
		gone, err = k.cfg.Disk.Purge(ctx, n.Name, n.matches)
	} else {
		gone, err = k.cfg.Disk.PurgeObject(ctx, n.Name)
	}
	k.metrics.removed(gone)
	if gone.Objects > 0 {
		k.log.InfoContext(ctx, "purged objects removed", "key", n.Name, "objects", gone.Objects, "bytes", gone.Bytes)
	}
	return err
}

// shorten takes what is purged out of a list that is kept, for those who read the folder
// without us.
func (k *Keeper) shorten(name string) error {
	doc, err := k.cfg.Disk.Document(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	body := k.cfg.Set.listOf(strings.TrimSuffix(name, "list"), doc.Body)
	if len(body) == len(doc.Body) {
		return nil
	}
	// Upstream must not confirm by its validators what it has not said.
	doc.Body, doc.ETag, doc.LastModified = body, "", ""
	err = k.cfg.Disk.PutDocument(name, doc)
	if errors.Is(err, store.ErrPurged) {
		return nil
	}
	return err
}
