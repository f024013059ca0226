package audit

import (
	"context"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
)

// reportPause is how often progress is reported.
const reportPause = time.Second

// Progress is how far an operator's audit has come.
type Progress struct {
	Looked, Total int    // versions
	Troubled      int    // of those looked at, that upstream could not be asked about
	Trouble       string // why, of the last of them
}

var (
	// ErrBusy says that another operator's audit runs here.
	ErrBusy = errors.New("an audit runs here already")
	// ErrOffline says that there is no upstream to ask.
	ErrOffline = errors.New("upstream is off (--offline or --upstream off), nothing can be asked")
)

// AuditNow looks at once at the versions of modules that are this node's to look at, all of
// them without modules, and at what it has findings about. See Match. It calls
// report every second while it works and at the end; an error of report ends it, as ctx does.
func (a *Auditor) AuditNow(ctx context.Context, modules []string, report func(Progress) error) error {
	select {
	case a.busy <- struct{}{}:
		defer func() { <-a.busy }()
	default:
		return ErrBusy
	}
	if a.cfg.Upstream.Offline() {
		return ErrOffline
	}
	b, err := a.cfg.Disk.Unaudited(ctx, time.Now(), maxNow, func(name string) bool { return a.isMine(name) && matches(modules, name) })
	if err != nil {
		return err
	}
	names := namesOf(b)
	for _, f := range a.List(ctx, modules) {
		if f.IsOpen() {
			names = append(names, f.Name)
		}
	}
	return a.newRound(operator).all(ctx, slices.Collect(sorted(names)), report)
}

func (r *round) all(ctx context.Context, names []string, report func(Progress) error) error {
	p, reported := Progress{Total: len(names)}, time.Time{}
	for _, name := range names {
		if time.Since(reported) >= reportPause {
			if err := report(p); err != nil {
				return err
			}
			reported = time.Now()
		}
		v, err := r.look(ctx, name)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if p.Looked++; v == troubled {
			p.Troubled, p.Trouble = p.Troubled+1, err.Error()
		}
		r.rest(ctx)
	}
	return report(p)
}

func matches(modules []string, name string) bool {
	t, err := target.Parse(name)
	return err == nil && Match(modules, t.Path)
}

func namesOf(b store.Backlog) []string {
	names := make([]string, len(b.Oldest))
	for i, each := range b.Oldest {
		names[i] = each.Name
	}
	return names
}

// sorted visits each of the names once; those of a repository stand together.
func sorted(names []string) iter.Seq[string] {
	slices.Sort(names)
	return slices.Values(slices.Compact(names))
}
