package member

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ringmod/ringmod/ring"
)

const debounce = 250 * time.Millisecond // joins come in bursts

// publisher builds views of what is known, off everybody's path.
type publisher struct {
	log      *slog.Logger
	newView  func() (*ring.View, error) // of now
	entries  signal                     // an entry has changed
	ups      signal                     // a member has come up or gone down
	view     atomic.Pointer[ring.View]
	changed  *notice
	changes  atomic.Uint64 // of the digest
	failures atomic.Uint64
	building sync.Mutex // held to replace view
}

// run publishes until ctx is done.
func (p *publisher) run(ctx context.Context) {
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.ups:
			p.changed.give()
		case <-p.entries:
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
	p.building.Lock()
	defer p.building.Unlock()
	old := p.view.Load()
	if err := p.build(); err != nil {
		p.failures.Add(1)
		p.log.ErrorContext(ctx, "cannot build a view, keeping the one before", "err", err)
		return
	}
	if v := p.view.Load(); v.Digest() != old.Digest() {
		p.changes.Add(1)
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
	v, err := p.newView()
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
