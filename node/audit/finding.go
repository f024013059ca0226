package audit

import (
	"context"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
)

// page is how many findings are read at a time.
const page = 256

// findings visits all that is kept. An index that cannot be read ends it early.
func (a *Auditor) findings(ctx context.Context) iter.Seq[store.Finding] {
	return func(yield func(store.Finding) bool) {
		for from, first := "", true; first || from != ""; first = false {
			some, next, err := a.cfg.Disk.Findings(from, page)
			if err != nil {
				a.log.WarnContext(ctx, "findings not read", "err", err)
				return
			}
			for _, f := range some {
				if !yield(f) {
					return
				}
			}
			from = next
		}
	}
}

// List returns the findings about modules, those that are closed, too, sorted by name.
// Without modules it is all.
func (a *Auditor) List(ctx context.Context, modules []string) []store.Finding {
	var all []store.Finding
	for f := range a.findings(ctx) {
		if t, err := target.Parse(f.Name); err == nil && Match(modules, t.Path) {
			all = append(all, f)
		}
	}
	return all
}

// Match tells whether a module is among those that are named: by their paths, or by
// DIR/... for all below a path. No names stand for all modules.
func Match(modules []string, path string) bool {
	return len(modules) == 0 || slices.ContainsFunc(modules, func(m string) bool {
		dir, below := strings.CutSuffix(m, "/...")
		return path == dir || below && strings.HasPrefix(path, dir+"/")
	})
}

// settle keeps what a look has shown, and tells what is new of it.
func (a *Auditor) settle(ctx context.Context, t target.Target, v verdict, held origin, says said) {
	a.settling.Lock()
	defer a.settling.Unlock()
	old, err := a.cfg.Disk.Finding(t.String())
	known, now := err == nil && old.IsOpen(), time.Now().UTC()
	switch {
	case v == moved || v == vanished:
		a.keep(ctx, t, store.Finding{
			Name: t.String(), Old: held.Hash, New: says.hash, Repository: held.URL, Ref: held.Ref,
			Source: says.source, Text: says.text, First: now, Looked: now,
		}, old, known)
	case known && (v == same || v == there && old.New == ""):
		old.Looked, old.Closed = now, now
		a.log.InfoContext(ctx, "version is upstream again as it is held", "module", t.Path, "version", t.Version,
			"commit", old.Old, "first_seen", old.First, "upstream", says.source)
		a.metrics.event("restored")
		a.put(ctx, old)
		a.count(ctx)
	case known:
		old.Looked = now
		a.put(ctx, old)
	}
}

// keep keeps a finding, in place of the older one where that is known.
func (a *Auditor) keep(ctx context.Context, t target.Target, f, old store.Finding, known bool) {
	kind := kindOf(f)
	if known {
		f.First = old.First
	} else if a.metrics.kept.Load() >= maxFindings {
		a.log.WarnContext(ctx, "too many findings, this one is not kept", "module", t.Path, "version", t.Version)
		return
	}
	if !known || old.New != f.New {
		a.log.WarnContext(ctx, "version has changed upstream, what is held stays", "module", t.Path, "version", t.Version, "change", kind.String(),
			"old_commit", f.Old, "new_commit", f.New, "upstream", f.Source, "said", f.Text)
		a.metrics.event(kind.String())
	}
	a.put(ctx, f)
	if !known {
		a.count(ctx)
	}
}

// put keeps a finding. Without, it is found again.
func (a *Auditor) put(ctx context.Context, f store.Finding) {
	if err := a.cfg.Disk.PutFinding(f); err != nil {
		a.log.WarnContext(ctx, "finding not kept", "key", f.Name, "err", err)
	}
}

func kindOf(f store.Finding) verdict {
	if f.New == "" {
		return vanished
	}
	return moved
}

// tidy forgets what is closed, or about what is not held, for long.
func (a *Auditor) tidy(ctx context.Context, now time.Time) {
	for f := range a.findings(ctx) {
		if now.Sub(f.Looked) < keepClosed || f.IsOpen() && a.isHeld(ctx, f.Name) {
			continue
		}
		if err := a.cfg.Disk.DropFinding(f.Name); err != nil {
			a.log.WarnContext(ctx, "finding not dropped", "key", f.Name, "err", err)
		}
	}
	a.count(ctx)
}

func (a *Auditor) isHeld(ctx context.Context, name string) bool {
	obj, err := a.cfg.Disk.Open(store.Unused(ctx), name)
	if err != nil {
		return false
	}
	_ = obj.File.Close()
	return true
}

// count counts the findings.
func (a *Auditor) count(ctx context.Context) {
	var kept int64
	open := map[verdict]int{moved: 0, vanished: 0}
	for f := range a.findings(ctx) {
		kept++
		if f.IsOpen() {
			open[kindOf(f)]++
		}
	}
	a.metrics.count(kept, open)
}
