package scrub

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node/store"
)

const (
	recent      = 24 * time.Hour // what was checked since is left out
	reportPause = time.Second
)

// Progress is how far a scrub has come.
type Progress struct {
	Objects, Bytes           int64     // checked so far
	TotalObjects, TotalBytes int64     // to be checked in all, as it looks now
	Findings                 []Finding // since the last report
}

// Finding is an object whose copy was bad.
type Finding struct {
	Name     string
	Text     string // what was wrong with it, and why it is not back
	Repaired bool
}

// ErrBusy says that another operator's scrub runs here.
var ErrBusy = errors.New("a scrub runs here already")

// ScrubNow checks at once what was not checked within a day, with all everything, and
// waits for the repair of what is bad, whoever has found it. It reads at most rate bytes a second, 0 =
// Config.Rate. It calls report every second while it works and at the end; an error
// of report ends it, as ctx does. It needs Run.
func (s *Scrubber) ScrubNow(ctx context.Context, rate int64, all bool, report func(Progress) error) error {
	select {
	case s.busy <- struct{}{}:
		defer func() { <-s.busy }()
	default:
		return ErrBusy
	}
	if rate <= 0 {
		rate = s.cfg.Rate
	}
	n := &now{work: s.newWork(rate, operatorRest), report: report, before: time.Now()}
	if !all {
		n.before = n.before.Add(-recent)
	}
	n.working = n.tell
	defer n.keep()
	err := n.run(ctx)
	if n.refused == nil && ctx.Err() == nil {
		err = errors.Join(err, n.addLosses(ctx))
	}
	if n.refused == nil && ctx.Err() == nil {
		err = errors.Join(err, n.finish(ctx))
	}
	return err
}

// now is an operator's scrub.
type now struct {
	*work

	before   time.Time // what was checked since is left out
	report   func(Progress) error
	reported time.Time
	refused  error // of report
	progress Progress
	open     []*finding
}

type finding struct {
	name, text string
	repair     *repair // nil: there is none
	back       bool    // somebody had it fetched already
}

func (n *now) run(ctx context.Context) error {
	for {
		b, err := n.cfg.Disk.Unchecked(ctx, n.before, batch)
		if err != nil {
			return err
		}
		n.progress.TotalObjects, n.progress.TotalBytes = n.progress.Objects+b.Objects, n.progress.Bytes+b.Bytes
		if len(b.Oldest) == 0 {
			return nil
		}
		done, err := n.checkAll(ctx, b.Oldest)
		left := b.Objects - done
		switch over := int64(len(b.Oldest)) == b.Objects; {
		case err != nil:
			return err
		case over && left == 0:
			return nil
		case n.cfg.Disk.ReadOnly() != nil: // what is checked is not remembered
			return fmt.Errorf("%d objects were not checked: %w", left, n.cfg.Disk.ReadOnly())
		case over || done == 0:
			return fmt.Errorf("%d objects were not checked: %w", left, errUnreadable)
		}
	}
}

var errUnreadable = errors.New("they cannot be opened, the log says why")

// checkAll returns how many it could check.
func (n *now) checkAll(ctx context.Context, some []store.Stale) (done int64, err error) {
	for _, each := range some {
		v := n.check(ctx, each)
		switch {
		case n.refused != nil:
			return done, n.refused
		case ctx.Err() != nil:
			return done, context.Cause(ctx)
		case v == bad:
			n.found(each.Name)
		}
		if n.bytes = 0; v != skipped {
			done++
			n.progress.Objects++
			n.progress.Bytes += each.Size
		}
		if err := n.tell(); err != nil {
			return done, err
		}
	}
	n.keep()
	return done, nil
}

// found notes a bad copy and has it repaired.
func (n *now) found(name string) {
	f := &finding{name: name, text: n.why.Error()}
	if l, err := n.cfg.Disk.Lost(name); err == nil {
		f.repair = n.want(l)
	} else if _, err := n.cfg.Disk.Stat(name); err == nil {
		f.back = true
	}
	n.open = append(n.open, f)
}

// addLosses has repaired, too, what others have found bad.
func (n *now) addLosses(ctx context.Context) error {
	known := make(map[string]bool, len(n.open))
	for _, f := range n.open {
		known[f.name] = true
	}
	return n.losses(ctx, func(l store.Loss) {
		if !known[l.Name] {
			n.open = append(n.open, &finding{name: l.Name, text: "was bad when it was read", repair: n.want(l)})
		}
	})
}

// tell reports, when it is time to.
func (n *now) tell() error {
	if time.Since(n.reported) < reportPause {
		return nil
	}
	return n.tellNow(false)
}

// tellNow reports with the findings that have an end, or with all.
func (n *now) tellNow(all bool) error {
	p := n.progress
	p.Bytes += n.bytes
	var open []*finding
	for _, f := range n.open {
		switch {
		case f.isOver():
			p.Findings = append(p.Findings, f.finding())
		case all:
			p.Findings = append(p.Findings, Finding{Name: f.name, Text: f.text})
		default:
			open = append(open, f)
		}
	}
	n.open, n.reported = open, time.Now()
	n.refused = n.report(p)
	return n.refused
}

func (f *finding) isOver() bool {
	if f.repair == nil {
		return true
	}
	select {
	case <-f.repair.done:
		return true
	default:
		return false
	}
}

func (f *finding) finding() Finding {
	out := Finding{Name: f.name, Text: f.text}
	switch {
	case f.back:
		out.Repaired = true
	case f.repair == nil: // nobody knows what it was
		out.Text += "; fetched again when it is asked for"
	case f.repair.err != nil:
		out.Text += "; " + why(f.repair.err)
	default:
		out.Repaired = true
	}
	return out
}

// why is an error in words for an operator.
func why(err error) string {
	if cache.ReasonOf(err) == cache.NotCached {
		return "no other node has a copy, and none was to be fetched"
	}
	return err.Error()
}

// finish waits for repairs and reports for the last time.
func (n *now) finish(ctx context.Context) error {
	for _, f := range n.open {
		for !f.isOver() {
			select {
			case <-f.repair.done:
			case <-time.After(reportPause):
				if err := n.tell(); err != nil {
					return err
				}
			case <-ctx.Done():
				return errors.Join(context.Cause(ctx), n.tellNow(true))
			}
		}
	}
	return n.tellNow(true)
}
