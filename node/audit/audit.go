// Package audit finds out whether upstream still says of a node's module versions what it
// said when they came.
//
// # What is asked
//
// Each version that a node holds is looked at within Period (14 days), the one that was
// looked at longest ago first, by the one node that Config.Mine names for it: its home
// coordinator. The sources are those of a fill, in their order and within their budgets: a
// proxy or a folder says by its .info, version control by the tags of the repository,
// all of which one "git ls-remote" brings, and no clone. A private name goes to no proxy.
// Between two requests the auditor rests for Config.Rest; five failures in a row end a
// round, and what could not be asked is asked again a day later. Offline nothing is asked.
//
// # What is found
//
//   - moved: the version is another commit (Origin.Hash in its .info) than the one that is
//     held. A source that does not tell commits can only have versions, or not.
//   - vanished: every source says that there is no such version, the tag or the
//     repository. Trouble is never that.
//
// A finding stays in the store with both commits, who said so and when that was first
// seen, and makes one line in the log and one count when it is new, or another. Until it is
// closed it is looked at again every day: once upstream says what it said before,
// the finding is closed, with a line in the log, and forgotten 30 days later. So is
// one whose version is not held any more.
//
// The auditor changes nothing that is served: the bytes, the lists and the .info stay as
// they came.
package audit

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/upstream"
)

const (
	// Period is within how long each version is looked at again.
	Period = 14 * 24 * time.Hour
	// DefaultRest is how long the auditor rests after each request, in the background.
	DefaultRest = 5 * time.Second

	openPeriod  = 24 * time.Hour      // the same for what there is a finding about, and after a failure
	keepClosed  = 30 * 24 * time.Hour // findings that are closed, or about what is not held
	operator    = 100 * time.Millisecond
	startPause  = 10 * time.Minute // leaves a process alone that has just begun
	idlePause   = time.Hour        // choosing reads the index
	batch       = 1024             // versions of a round
	maxNow      = 1 << 16          // versions that are looked at for an operator at once
	maxFindings = 10_000           // that are kept
	maxTroubles = 5                // in a row, that end a round
	lookLimit   = 3 * time.Minute  // for one version
)

// Disk is what is audited; *store.Disk is one.
type Disk interface {
	Versions
	Findings

	ReadOnly() error
}

// Versions knows what is held, and when it was looked at.
type Versions interface {
	Open(ctx context.Context, name string) (*store.Object, error)
	Unaudited(ctx context.Context, before time.Time, most int, wanted func(name string) bool) (store.Backlog, error)
	Audited(at time.Time, names ...string) error
}

// Findings keeps what was found.
type Findings interface {
	Finding(name string) (store.Finding, error)
	Findings(from string, most int) (all []store.Finding, next string, err error)
	PutFinding(f store.Finding) error
	DropFinding(name string) error
}

// Upstream is the list of sources; *upstream.Client is one. Errors are *cache.Error.
type Upstream interface {
	// FetchListed asks all but version control; vcs says that this has the last word.
	FetchListed(ctx context.Context, t target.Target) (resp *upstream.Response, vcs bool, err error)
	// Refs asks version control for the commits of a repository's tags, by ref. path is a
	// module that is said to be in it.
	Refs(ctx context.Context, path, url string) (map[string]string, error)
	Offline() bool
}

// Config says what is audited, and how.
type Config struct {
	Disk     Disk
	Upstream Upstream
	// Mine tells whether this node is the one to look at a version now.
	Mine    func(t target.Target) bool
	Rest    time.Duration         // 0 = DefaultRest
	Metrics prometheus.Registerer // nil = none
	Logger  *slog.Logger          // nil = silent
}

// Auditor audits one node's versions. Its methods may be called concurrently.
type Auditor struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	busy    chan struct{} // holds a value while an operator's audit runs

	settling sync.Mutex // held to change a finding
}

// New returns an Auditor. It does no I/O. It panics when the metrics are registered already.
func New(cfg Config) *Auditor {
	if cfg.Rest == 0 {
		cfg.Rest = DefaultRest
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Auditor{cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Metrics), busy: make(chan struct{}, 1)}
}

// Run audits until ctx is done.
func (a *Auditor) Run(ctx context.Context) error {
	a.tidy(ctx, time.Now())
	pause := startPause + rand.N(startPause)
	for sleep(ctx, pause) {
		pause = idlePause
		if a.cfg.Disk.ReadOnly() != nil || a.cfg.Upstream.Offline() {
			continue
		}
		now := time.Now()
		a.tidy(ctx, now)
		if a.auditDue(ctx, now) > batch/2 {
			pause = 0
		}
	}
	return nil
}

// auditDue looks at some of what is due, and returns how much that was.
func (a *Auditor) auditDue(ctx context.Context, now time.Time) (done int) {
	b, err := a.cfg.Disk.Unaudited(ctx, now.Add(-Period), batch, a.isMine)
	if err != nil {
		if ctx.Err() == nil {
			a.log.WarnContext(ctx, "audit cannot read the index", "err", err)
		}
		return 0
	}
	names := namesOf(b)
	for f := range a.findings(ctx) {
		if f.IsOpen() && now.Sub(f.Looked) >= openPeriod {
			names = append(names, f.Name)
		}
	}
	r := a.newRound(a.cfg.Rest)
	troubles := 0
	for name := range sorted(names) {
		if ctx.Err() != nil || a.cfg.Disk.ReadOnly() != nil || troubles >= maxTroubles {
			break
		}
		v, err := r.look(ctx, name)
		done++
		troubles++
		if v != troubled {
			troubles = 0
		} else if ctx.Err() == nil {
			a.log.DebugContext(ctx, "version not audited", "key", name, "err", err)
			r.mark(now.Add(openPeriod-Period), name)
		}
		r.rest(ctx)
	}
	return done
}

// isMine tells whether an object stands for a version that is ours to look at.
func (a *Auditor) isMine(name string) bool {
	t, err := target.Parse(name)
	return err == nil && t.Kind == target.Info && a.cfg.Mine(t)
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
