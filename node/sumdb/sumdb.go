// Package sumdb is a verifying, caching client of one Go checksum database
// (https://go.dev/design/25530-sumdb), made to answer others from what it keeps.
//
// To the fill it promises the hashes of a module version that the database
// committed to; to developers it promises bodies that are the database's own, byte
// for byte, which their go command verifies again. Nothing that comes from the
// network is stored or answered before it is proven: a tree head by its
// signature and by containing the head known before, a record and a hash tile by
// their place in the tree, a data tile record by record.
//
// Heads only move forward. Whenever the head moves, each partial tile of the old
// tree is fetched anew at its width in the new one. From this follows what makes
// the cache complete: once some lookups were answered, a go command can be given the
// same lookups in any order, with all the tiles that it wants for proving them,
// without asking the network again.
//
// What is stored keeps being answered when the network is away. What storage
// returns damaged counts as absent. A database that contradicts itself (a fork, a bad
// signature, a record that is not in the tree) is reported as cache.Mismatch
// and logged; the stored state stays as it was. So it does when the database answers with
// an older head than is known, which is refused and no error. Trouble tells
// of either.
//
// Unlike golang.org/x/mod/sumdb.Client, a DB remembers no errors, keeps their identity
// and can be cancelled. It decides nothing about private modules: who may not
// be looked up is for the caller to know.
package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/singleflight"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

const (
	workTimeout  = time.Minute      // for work that callers share, whoever leaves
	maxWork      = 4096             // names that are worked on at once
	workPause    = 5 * time.Second  // after which it makes sense to ask a busy one again
	vouchTimeout = 2 * time.Second  // for checking anew what is stored already
	vouchPause   = 30 * time.Second // after that check could not reach the database
	latestMaxAge = time.Minute      // of the head, when asked for the latest
	latestPause  = time.Second      // between two requests for the head
	tilesKept    = 1024             // in memory, of at most 8 KiB
	pendingKept  = 256              // in memory, of at most 8 KiB
	vouchedKept  = 8192             // names of records, in memory
	headsKept    = 256              // signed tree heads, in memory
)

// Remote reaches the database, through an upstream proxy or directly.
type Remote interface {
	// Fetch returns the body of t, one of the sumdb kinds. It bounds size and
	// time. Errors are *cache.Error.
	Fetch(ctx context.Context, t target.Target) ([]byte, error)
}

// Storage keeps verified bodies by the name of their target, for example
// "sumdb/sum.golang.org/tile/8/0/001". The same name is only ever written with
// other bytes when what was read under it had proven damaged, or when a record
// came on two ways at the same time, with different heads behind it.
type Storage interface {
	// ReadFile returns what was written; absence matches fs.ErrNotExist.
	ReadFile(ctx context.Context, name string) ([]byte, error)
	// WriteFile keeps data, atomically.
	WriteFile(ctx context.Context, name string, data []byte) error
}

// Heads keeps the latest signed tree head of each database across restarts.
type Heads interface {
	// Head returns the head of db; absence is no bytes or matches fs.ErrNotExist.
	Head(db string) ([]byte, error)
	SetHead(db string, msg []byte) error
}

// Config is what a DB is made of.
type Config struct {
	Spec    Spec    // which database; needed
	Remote  Remote  // needed
	Members Remote  // asked for lookups first, see DB.Lookup; nil for nobody
	Storage Storage // needed
	Heads   Heads   // needed
	// Refused is called for each answer that was refused, with why: Forked, Altered or
	// Older. nil for nobody. It must not block.
	Refused func(why string)
	Logger  *slog.Logger // nil discards
}

// DB is a client of one checksum database. All methods may be called
// concurrently. Slices that they return are shared: callers do not change them.
//
// Work for one name is done once for all who wait for it, and goes on when the
// first of them leaves.
type DB struct {
	name      string
	verifiers note.Verifiers
	remote    Remote
	members   Remote // may be nil
	storage   Storage
	heads     Heads
	refused   func(why string)
	log       *slog.Logger

	flights singleflight.Group
	working atomic.Int64            // names that callers asked for and that are worked on
	tiles   *lru[place, []byte]     // verified or stored hash tiles, the widest known
	pending *lru[tlog.Tile, []byte] // fetched hash tiles whose proof is under way
	vouched *lru[string, struct{}]  // records that are proven to fit the head
	edges   *lru[int64, struct{}]   // tree sizes whose right edge is stored
	signed  *lru[string, *head]     // heads whose signature was checked, by message
	within  *lru[step, struct{}]    // proven steps on the timeline

	head   atomic.Pointer[head] // nil until loaded
	headMu sync.Mutex           // held to load or replace head

	mu         sync.Mutex // guards what follows: when the database was asked for what
	asked      time.Time  // last request for the head
	refreshed  time.Time  // last one that succeeded
	refreshErr error      // outcome of the last one
	vouchAgain time.Time  // no check of stored records before
	trouble    Trouble    // the last contradiction
	olderSince time.Time  // it answers with older heads since; zero: it does not
	olderN     int64      // records of the last one
}

// New returns a client of the database that cfg.Spec names. It reads nothing yet.
func New(cfg Config) (*DB, error) {
	if cfg.Spec.Off() {
		return nil, errors.New("no checksum database to use: the specification is empty or off")
	}
	verifier, err := note.NewVerifier(cfg.Spec.Key)
	if err != nil {
		return nil, fmt.Errorf("checksum database %s: reading its key: %w", cfg.Spec.Name, err)
	}
	if verifier.Name() != cfg.Spec.Name {
		return nil, fmt.Errorf("checksum database %s: the key belongs to %s", cfg.Spec.Name, verifier.Name())
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Refused == nil {
		cfg.Refused = func(string) {}
	}
	return &DB{
		name:      cfg.Spec.Name,
		verifiers: note.VerifierList(verifier),
		remote:    cfg.Remote,
		members:   cfg.Members,
		storage:   cfg.Storage,
		heads:     cfg.Heads,
		refused:   cfg.Refused,
		log:       cfg.Logger.With("sumdb", cfg.Spec.Name),
		tiles:     newLRU[place, []byte](tilesKept),
		pending:   newLRU[tlog.Tile, []byte](pendingKept),
		vouched:   newLRU[string, struct{}](vouchedKept),
		edges:     newLRU[int64, struct{}](vouchedKept),
		signed:    newLRU[string, *head](headsKept),
		within:    newLRU[step, struct{}](headsKept),
	}, nil
}

// Name returns the database's name, as in sumdb/<name>/supported.
func (d *DB) Name() string { return d.name }

// shared does work once for all callers with the same key, which is what stands
// behind the database's name, perhaps with a word in front. The work does not end
// with the caller that began it, only after workTimeout.
func (d *DB) shared(ctx context.Context, key string, work func(context.Context) ([]byte, error)) ([]byte, error) {
	done := d.flights.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), workTimeout)
		defer cancel()
		data, err := d.survive(ctx, key, work)
		if _, known := errors.AsType[*cache.Error](err); err != nil && !known && ctx.Err() != nil {
			err = &cache.Error{Reason: cache.Slow, Source: d.name, Text: "no answer within " + workTimeout.String(), Err: err}
		}
		if cache.ReasonOf(err) == cache.Mismatch {
			d.contradicted(ctx, key, err)
		}
		return data, err
	})
	select {
	case result := <-done:
		data, _ := result.Val.([]byte)
		return data, result.Err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// admit is shared for the names that callers choose. Their work outlives them, so
// a flood of made-up names must meet a bound.
func (d *DB) admit(ctx context.Context, key string, work func(context.Context) ([]byte, error)) ([]byte, error) {
	return d.shared(ctx, key, func(ctx context.Context) ([]byte, error) {
		defer d.working.Add(-1)
		if d.working.Add(1) > maxWork {
			return nil, &cache.Error{Reason: cache.Busy, Text: "too many requests to " + d.name + " are waiting", RetryAfter: workPause}
		}
		return work(ctx)
	})
}

// survive makes a panic of work an error: singleflight would end the process.
func (d *DB) survive(ctx context.Context, key string, work func(context.Context) ([]byte, error)) (data []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			d.log.ErrorContext(ctx, "panic in a checksum database's work", "work", key, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = &cache.Error{Reason: cache.Internal, Text: "the cache failed while asking " + d.name}
		}
	}()
	return work(ctx)
}

// fetch asks the database for what stands behind its name in a target.
func (d *DB) fetch(ctx context.Context, rest string) ([]byte, error) {
	return d.fetchFrom(ctx, d.remote, rest)
}

func (d *DB) fetchFrom(ctx context.Context, r Remote, rest string) ([]byte, error) {
	t, err := target.ForSumdb(d.name, rest)
	if err != nil {
		return nil, &cache.Error{Reason: cache.Malformed, Text: err.Error(), Err: err}
	}
	return r.Fetch(ctx, t)
}

// file returns the name in storage of what stands behind the database's name.
func (d *DB) file(rest string) string { return "sumdb/" + d.name + "/" + rest }

// load returns a stored body, nil when there is none.
func (d *DB) load(ctx context.Context, rest string) []byte {
	data, err := d.storage.ReadFile(ctx, d.file(rest))
	if err == nil {
		return data
	}
	if !errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil {
		d.log.WarnContext(ctx, "stored sumdb file unreadable", "key", d.file(rest), "err", err)
	}
	return nil
}

// save stores a verified body. Without it the answer is still right, so a
// failure is only logged. The same body is written once at a time.
func (d *DB) save(ctx context.Context, rest string, data []byte) {
	_, err, _ := d.flights.Do("save "+rest, func() (any, error) {
		return nil, d.storage.WriteFile(ctx, d.file(rest), data)
	})
	if err != nil {
		d.log.WarnContext(ctx, "sumdb file not stored", "key", d.file(rest), "err", err)
	}
}

// broken is an answer that cannot be read.
func (d *DB) broken(format string, args ...any) error {
	return &cache.Error{Reason: cache.Broken, Source: d.name, Text: fmt.Sprintf(format, args...)}
}

// mismatch is an answer that contradicts what the database committed to.
func (d *DB) mismatch(text string, err error) error {
	return &cache.Error{Reason: cache.Mismatch, Source: d.name, Text: text, Err: err}
}
