package hot

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/ring"
)

const (
	pullers   = 2
	maxPulls  = 256 // that wait
	pullLimit = 5 * time.Minute
	pullPause = 5 * time.Second // after one that failed
	maxPaused = 1024
)

// pulls are the objects that are to be got.
type pulls struct {
	queue chan target.Target

	mu     sync.Mutex
	known  map[string]bool      // that wait or run
	paused map[string]time.Time // not before
}

func newPulls() pulls {
	return pulls{queue: make(chan target.Target, maxPulls), known: map[string]bool{}, paused: map[string]time.Time{}}
}

// add queues t, unless it is queued, has just failed, or too many are.
func (p *pulls) add(t target.Target) {
	name := t.String()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known[name] || len(p.known) >= maxPulls || time.Now().Before(p.paused[name]) {
		return
	}
	p.known[name] = true
	p.queue <- t // has room for all that are known
}

func (p *pulls) end(t target.Target, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.known, t.String())
	delete(p.paused, t.String())
	if err == nil {
		return
	}
	if len(p.paused) >= maxPaused {
		clear(p.paused)
	}
	p.paused[t.String()] = time.Now().Add(pullPause)
}

// Lacks says that somebody who spreads t over that many ranks was told that it is not
// here. It does not block.
func (k *Keys) Lacks(t target.Target, ranks int) {
	if Spreads(t.Kind) && k.isSpare(t, ranks) {
		k.pulls.add(t)
	}
}

// isSpare tells whether this node is one of that many ranks, and no replica.
func (k *Keys) isSpare(t target.Target, ranks int) bool {
	view := k.cfg.View()
	if view == nil {
		return false
	}
	self, in := view.Find(k.cfg.Self)
	rank := slices.Index(view.Next().Ranks(k.cfg.Region, ring.OfTarget(t)), self)
	return in && rank >= view.Next().ReplicaCount(k.cfg.Region) && rank < ranks
}

// Run gets what is lacking until ctx is done.
func (k *Keys) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for range pullers {
		all.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case t := <-k.pulls.queue:
					k.get(ctx, t)
				}
			}
		})
	}
	all.Wait()
	return nil
}

// errNobody says that no replica has shown a copy.
var errNobody = errors.New("no replica has shown a copy")

// get brings a copy of t here.
func (k *Keys) get(ctx context.Context, t target.Target) {
	err := errNobody
	for _, id := range k.holders(t) {
		if err = k.getFrom(ctx, t, id); err == nil || ctx.Err() != nil {
			break
		}
		k.log.DebugContext(ctx, "a hot copy was not got", "key", t.String(), "peer", id, "err", err)
	}
	k.pulls.end(t, err)
	k.metrics.pulled(err)
}

// holders returns the replicas that can be asked, in any order.
func (k *Keys) holders(t target.Target) []string {
	view := k.cfg.View()
	if view == nil {
		return nil
	}
	var ids []string
	for _, table := range []*ring.Table{view.Next(), view.Current()} {
		for _, i := range table.Replicas(k.cfg.Region, ring.OfTarget(t)) {
			id := view.Member(i).ID
			if id != k.cfg.Self && !slices.Contains(ids, id) && k.cfg.Nodes.Usable(id) {
				ids = append(ids, id)
			}
		}
	}
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	return ids
}

// getFrom gets t from the disk of a node. What that one sends, or what takes it, never
// ends more than this.
func (k *Keys) getFrom(ctx context.Context, t target.Target, id string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			k.log.ErrorContext(ctx, "panic while getting a hot copy", "key", t.String(), "peer", id, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, pullLimit)
	defer cancel()
	obj, err := k.cfg.Nodes.Get(ctx, id, cache.Request{Target: t, Mode: cache.Peek, Hops: 1}, wire.Options{})
	if err != nil {
		return err
	}
	return k.node.TakeHot(ctx, t, obj)
}
