package antientropy

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/ring"
)

const (
	recentDays = 7 // what was used within them is pulled
	maxWants   = 1 << 17
	atOnce     = 8 // comparisons of partitions
	pullsAt    = 4 // pulls, which Puller bounds as well
)

// round is one comparison with all partners.
type round struct {
	*Comparer

	plan *plan
	sums []store.Sum
	now  time.Time
	room bool

	mu        sync.Mutex // also held to use mem
	wants     map[wantKey]*want
	missing   int64                   // bytes of the wants and of what has failed
	lacking   map[ring.Partition]bool // partitions of those
	cold      map[ring.Partition]int64
	checks    []*check
	barred    map[string]bool // peers that have failed, of which nothing more is asked
	alone     bool            // somebody who can be reached was not compared
	unsettled bool            // there is a reason to come back soon
}

type wantKey struct {
	partition ring.Partition
	hash      uint64
}

// want is an object that a partner holds and this node does not.
type want struct {
	wantKey
	digest uint64
	size   int64
	days   uint32
	holder string
	checks []*check // that have found it
}

// check is a comparison of one partition with one partner.
type check struct {
	key          pairKey
	ours, theirs store.Sum
	open         int // of its wants, those that are not refused
}

// round compares once, and reports whether all has come that should, and whether the
// node is Leaving and has something left.
func (c *Comparer) round(ctx context.Context, view *ring.View) (settled, hands bool) {
	if c.mem.plan == nil || c.mem.plan.view != view {
		c.mem.plan = newPlan(view, c.cfg.Self, c.cfg.Region)
		c.mem.prune()
	}
	r := &round{
		Comparer: c, plan: c.mem.plan, now: time.Now(), room: c.cfg.Store.HasRoom(),
		wants: map[wantKey]*want{}, lacking: map[ring.Partition]bool{}, cold: map[ring.Partition]int64{}, barred: map[string]bool{},
	}
	var err error
	if r.sums, err = c.sums(ctx); err != nil {
		if ctx.Err() == nil {
			c.log.ErrorContext(ctx, "reading the index", "err", err)
		}
		return false, false
	}
	for _, id := range members(r.plan.partners) {
		switch {
		case ctx.Err() != nil:
		case c.cfg.Nodes.Usable(id):
			r.compareWith(ctx, id)
		default: // it may have been met in the view only
			r.unsettled = true
			r.alone = r.alone || r.now.Sub(c.mem.began) < patience
		}
	}
	r.publish(ctx.Err() == nil && !r.alone)
	r.pullAll(ctx)
	r.settle()
	left := r.handOver(ctx)
	c.metrics.rounds.Inc()
	return !r.unsettled && ctx.Err() == nil, r.plan.leaving && left.objects > 0
}

// compareWith compares all that is shared with a partner.
func (r *round) compareWith(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, peerLimit)
	defer cancel()
	parts := r.plan.partners[id]
	differing, err := r.digests(ctx, id, parts, r.sums)
	if err != nil {
		r.failed(ctx, id, err)
		return
	}
	r.metrics.compared.Add(float64(len(parts)))
	r.metrics.differing.Add(float64(len(differing)))
	var group errgroup.Group
	group.SetLimit(atOnce)
	for p, theirs := range differing {
		ch := &check{key: pairKey{id, p, false}, ours: r.sums[p], theirs: theirs}
		if !r.room || r.isSettled(ch) {
			continue
		}
		group.Go(func() error {
			if err := r.compare(ctx, ch); err != nil {
				r.failed(ctx, id, err)
			}
			return nil
		})
	}
	_ = group.Wait()
}

// failed notes that a partner could not be compared.
func (r *round) failed(ctx context.Context, id string, err error) {
	r.log.DebugContext(ctx, "not compared", "peer", id, "err", err)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.alone, r.unsettled = true, true
}

func (r *round) isSettled(ch *check) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mem.isSettled(ch.key, ch.ours, ch.theirs)
}

// want notes an object that a partner alone holds.
func (r *round) want(w *want) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w.checks[0].open++
	if other := r.wants[w.wantKey]; other != nil {
		other.checks = append(other.checks, w.checks...)
		if rand.IntN(2) == 0 { // so that neither is asked for all, or again and again
			other.holder, other.digest = w.holder, w.digest
		}
		return
	}
	r.missing += w.size
	r.lacking[w.partition] = true
	if r.mem.hasFailed(w.hash) {
		r.unsettled = true
		return
	}
	r.wants[w.wantKey] = w
	if len(r.wants) > maxWants {
		r.shorten()
	}
}

// shorten drops the half of the wants that were not used for longest: the next round
// finds them again.
func (r *round) shorten() {
	for _, w := range r.sorted()[maxWants/2:] {
		delete(r.wants, w.wantKey)
	}
	r.unsettled = true
}

// sorted returns the wants in the order in which they are pulled: the most recently
// used first, and together what one call can ask for.
func (r *round) sorted() []*want {
	all := make([]*want, 0, len(r.wants))
	for _, w := range r.wants {
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b *want) int {
		return cmp.Or(
			cmp.Compare(a.days, b.days), cmp.Compare(a.partition, b.partition), cmp.Compare(a.holder, b.holder), cmp.Compare(a.hash, b.hash),
		)
	})
	return all
}

// publish makes what is known by now Progress.
func (r *round) publish(compared bool) {
	p := Progress{Missing: r.missing, Total: r.missing, Partitions: len(r.lacking)}
	for part, ours := range r.plan.ours {
		if ours {
			p.Total += r.sums[part].Bytes - r.cold[ring.Partition(part)]
		}
	}
	c := r.Comparer
	c.mu.Lock()
	defer c.mu.Unlock()
	digest := r.plan.view.Digest()
	c.handed = c.handed && c.digest == digest
	c.digest, c.leaving, c.progress, c.compared = digest, r.plan.leaving, p, compared
}

// came notes that n bytes are not missing any more.
func (c *Comparer) came(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.progress.Missing = max(0, c.progress.Missing-n)
	if c.progress.Missing == 0 {
		c.progress.Partitions = 0
	}
}

// settle remembers the comparisons that have nothing more to bring. What was refused for
// want of room has more.
func (r *round) settle() {
	if !r.cfg.Store.HasRoom() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ch := range r.checks {
		if ch.open == 0 {
			r.mem.settled[ch.key] = pair{ch.ours, ch.theirs, r.now}
		}
	}
}
