package member

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/ringmod/ringmod/ring"
)

const debounce = 250 * time.Millisecond // joins come in bursts

// publisher builds views of the table, off everybody's path.
type publisher struct {
	log      *slog.Logger
	spec     ring.Spec
	newView  func(ring.Spec, *ring.Members) (*ring.View, error)
	table    *table
	view     atomic.Pointer[ring.View]
	changed  *notice
	failures atomic.Uint64
}

func newPublisher(cfg Config, t *table) *publisher {
	return &publisher{log: cfg.Logger, spec: cfg.Spec, newView: cfg.NewView, table: t, changed: newNotice()}
}

// run publishes until ctx is done.
func (p *publisher) run(ctx context.Context) {
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.table.ups:
			p.changed.give()
		case <-p.table.entries:
			if due == nil {
				due = time.After(debounce)
			}
		case <-due:
			due = nil
			p.replace(ctx)
		}
	}
}

// replace publishes the view of now, or keeps the one before.
func (p *publisher) replace(ctx context.Context) {
	old := p.view.Load()
	if err := p.build(); err != nil {
		p.failures.Add(1)
		p.log.ErrorContext(ctx, "cannot build a view, keeping the one before", "err", err)
		return
	}
	if v := p.view.Load(); v.Digest() != old.Digest() {
		added, removed := diff(old, v)
		p.log.InfoContext(ctx, "placement has changed", "members", len(v.Members()), "epoch", v.Seq(),
			"digest", fmt.Sprintf("%016x", v.Digest()), "added", added, "removed", removed)
	}
	p.changed.give()
}

func (p *publisher) build() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	v, err := p.newView(p.spec, p.table.clone())
	if err != nil {
		return fmt.Errorf("building a view: %w", err)
	}
	p.view.Store(v)
	return nil
}

// diff returns the ids that are in one view only.
func diff(old, v *ring.View) (added, removed []string) {
	for _, m := range v.Members() {
		if _, ok := old.Find(m.ID); !ok {
			added = append(added, m.ID)
		}
	}
	for _, m := range old.Members() {
		if _, ok := v.Find(m.ID); !ok {
			removed = append(removed, m.ID)
		}
	}
	return added, removed
}
