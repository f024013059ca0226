package antientropy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// handBatch keeps announcements below 1 MiB.
const handBatch = 256

// Orphans are the partitions whose objects this node need not hold any more. It may be
// asked before its Comparer is made.
type Orphans struct {
	set atomic.Pointer[[ring.Partitions]bool]
}

// ClassOf returns what objects are worth: those that need not be here the least.
func (o *Orphans) ClassOf(others func(name string) store.Class) func(name string) store.Class {
	return func(name string) store.Class {
		set := o.set.Load()
		if set == nil {
			return others(name)
		}
		if p, _ := Place(name); p >= 0 && set[p] {
			return store.Orphaned
		}
		return others(name)
	}
}

// estate is what this node holds for its heirs.
type estate struct {
	*round

	heirs map[string]map[ring.Partition]store.Sum // that answer, and what differs there

	mu    sync.Mutex
	left  remains
	whole [ring.Partitions]bool // held by heirs
}

// handOver announces to the heirs of foreign partitions what they lack.
func (r *round) handOver(ctx context.Context) remains {
	e := &estate{round: r, heirs: map[string]map[ring.Partition]store.Sum{}}
	parts := e.parts()
	for _, id := range members(r.plan.heirs) {
		theirs := slices.DeleteFunc(slices.Clone(r.plan.heirs[id]), func(p ring.Partition) bool { return r.sums[p].Objects == 0 })
		if len(theirs) == 0 || !r.cfg.Nodes.Usable(id) || ctx.Err() != nil {
			continue
		}
		differing, err := r.digests(ctx, id, theirs, r.sums)
		if err != nil {
			r.failed(ctx, id, err)
			continue
		}
		e.heirs[id] = differing
	}
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, p := range parts {
		group.Go(func() error {
			e.hand(ctx, p)
			return nil
		})
	}
	_ = group.Wait()
	e.note(parts)
	c := r.Comparer
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left, c.handed = e.left, ctx.Err() == nil
	return e.left
}

// parts returns the foreign partitions of which something is here.
func (e *estate) parts() []ring.Partition {
	var parts []ring.Partition
	for p, foreign := range e.plan.foreign {
		if foreign && e.sums[p].Objects > 0 {
			parts = append(parts, ring.Partition(p))
		}
	}
	return parts
}

// note makes orphans of what has been foreign for long and is held by heirs.
func (e *estate) note(parts []ring.Partition) {
	since := make(map[ring.Partition]time.Time, len(parts))
	orphans := new([ring.Partitions]bool)
	for _, p := range parts {
		began, known := e.mem.foreign[p]
		if !known {
			began = e.now
		}
		since[p] = began
		orphans[p] = e.whole[p] && e.now.Sub(began) >= orphanGrace
	}
	e.mem.foreign = since
	e.cfg.Orphans.set.Store(orphans)
}

// hand sees to one partition.
func (e *estate) hand(ctx context.Context, p ring.Partition) {
	heirs := e.answering(p)
	for _, id := range heirs {
		theirs, differs := e.heirs[id][p]
		if !differs || e.isSettled(&check{key: pairKey{id, p, true}, ours: e.sums[p], theirs: theirs}) {
			e.done(p, remains{}, true)
			return
		}
	}
	lacking, err := e.lacking(ctx, p, heirs)
	if err == nil && len(heirs) > 0 {
		var left remains
		if left, err = e.announce(ctx, lacking, heirs); err == nil {
			e.done(p, left, left.objects == 0)
			return
		}
	}
	if err != nil {
		e.log.DebugContext(ctx, "not handed over", "partition", p, "err", err)
	}
	e.again()
	e.done(p, remains{e.sums[p].Objects, e.sums[p].Bytes}, false)
}

func (e *estate) answering(p ring.Partition) []string {
	var ids []string
	for _, id := range members(e.plan.heirs) {
		if _, answers := e.heirs[id]; answers && !e.isBarred(id) {
			if _, has := slices.BinarySearch(e.plan.heirs[id], p); has {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

func (e *estate) done(p ring.Partition, left remains, whole bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.left.objects += left.objects
	e.left.bytes += left.bytes
	e.whole[p] = whole
}

// lacking returns what none of the heirs holds of a partition. Where one holds all,
// that is remembered.
func (e *estate) lacking(ctx context.Context, p ring.Partition, heirs []string) ([]store.Key, error) {
	var lacking map[string]store.Key
	for _, id := range heirs {
		not := map[string]store.Key{}
		err := e.merge(ctx, id, p, func(ours *store.Key, theirs *ringmodv1.Key) {
			if ours != nil && theirs == nil {
				not[ours.Name] = *ours
			}
		})
		if err != nil {
			e.bar(id)
			return nil, err
		}
		if len(not) == 0 {
			e.round.mu.Lock()
			e.mem.settled[pairKey{id, p, true}] = pair{e.sums[p], e.heirs[id][p], e.now}
			e.round.mu.Unlock()
			return nil, nil
		}
		if lacking == nil {
			lacking = not
		}
		for name := range lacking {
			if _, both := not[name]; !both {
				delete(lacking, name)
			}
		}
	}
	keys := make([]store.Key, 0, len(lacking))
	for _, k := range lacking {
		keys = append(keys, k)
	}
	return keys, nil
}

// announce tells heirs of objects, and returns those that nobody has confirmed.
func (e *estate) announce(ctx context.Context, keys []store.Key, heirs []string) (left remains, err error) {
	for some := range slices.Chunk(keys, handBatch) {
		req := &ringmodv1.AnnounceRequest{Holder: e.cfg.Self}
		req.ViewDigest, req.ViewSeq = e.stamp()
		for _, k := range some {
			theCopy, err := e.copyOf(k.Name)
			if errors.Is(err, fs.ErrNotExist) {
				continue // evicted meanwhile
			}
			if err != nil {
				return remains{}, err
			}
			req.Copies = append(req.Copies, theCopy)
		}
		if len(req.GetCopies()) == 0 {
			continue
		}
		open := make([]bool, len(req.GetCopies()))
		held := make([]bool, len(req.GetCopies()))
		for _, id := range heirs {
			if err := e.tell(ctx, id, req, open, held); err != nil {
				e.bar(id)
				return remains{}, err
			}
		}
		for i, each := range req.GetCopies() {
			if open[i] && !held[i] {
				left.objects++
				left.bytes += int64(each.GetSize())
			}
		}
	}
	return left, nil
}

// tell announces to one heir. Of each copy it notes whether the heir holds it, or may
// yet come to: one that takes new objects and declines will not.
func (e *estate) tell(ctx context.Context, id string, req *ringmodv1.AnnounceRequest, open, held []bool) error {
	conn, err := e.cfg.Nodes.Conn(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	resp, err := ringmodv1.NewPeerServiceClient(conn).Announce(ctx, req)
	if err != nil {
		return err
	}
	if len(resp.GetOutcomes()) != len(req.GetCopies()) {
		return fmt.Errorf("%w: %d outcomes for %d copies", errRules, len(resp.GetOutcomes()), len(req.GetCopies()))
	}
	e.noticeView(id, resp.GetViewDigest(), resp.GetViewSeq())
	i, _ := e.plan.view.Find(id)
	declines := resp.GetViewDigest() == req.GetViewDigest() && !e.plan.view.Member(i).ReadOnly
	for n, outcome := range resp.GetOutcomes() {
		switch outcome {
		case ringmodv1.Outcome_OUTCOME_CONFLICT:
			if t, err := target.Parse(req.GetCopies()[n].GetTarget()); err == nil {
				e.log.ErrorContext(ctx, "two copies differ", "key", t.String(), "peer", id)
				e.metrics.conflicts.Inc()
			}
			held[n] = true
		case ringmodv1.Outcome_OUTCOME_HELD:
			held[n] = true
		case ringmodv1.Outcome_OUTCOME_WANTED:
			open[n] = true
		default:
			open[n] = open[n] || !declines
		}
	}
	return nil
}
