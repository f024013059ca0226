package cluster

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/ring"
)

// Times of a search.
const (
	// persistence is how long nobody may be reachable before that is the answer, and
	// outageMemory how long that stays the answer without waiting anew.
	persistence  = 2 * time.Second
	outageMemory = 10 * time.Second
	// elsewhereLimit is how long other regions may take to offer a copy of what our
	// own cannot give.
	elsewhereLimit = 2 * time.Second
	maxElsewhere   = 16 // nodes asked at once for it
)

// question is what is asked of the cluster.
type question struct {
	req    cache.Request
	resume *wire.Resume // go on there; nil = from the start
	fill   bool         // ask the coordinators at once
	copies bool         // ask nobody but those who may hold one
	slow   bool         // the body may be read slowly
	spread int          // over how many ranks it may be read, as it is hot; 0 = the replicas
	avoid  string       // a node that has just failed is asked when nobody else is left
}

// errExhausted says that everybody was asked and nobody was of any use.
var errExhausted = errors.New("no node is of any use")

// search is a question on its way through the cluster.
type search struct {
	*Cluster
	question

	immutable bool
	bad       []string               // nodes that are of no use
	heard     []string               // nodes that have not got the object
	last      error                  // of the last bad one
	busy      error                  // of the last one that was busy; nil = none was
	pays      bool                   // the next call is a retry of that
	checks    map[string]<-chan bool // who was asked how he is; each yields one answer
}

// errNoCopy says that nobody has shown a copy.
var errNoCopy = errors.New("nobody has a copy")

// findCopy asks those who may hold a copy after a coordinator has said, in the
// middle of a fill, that upstream is of no use.
func (c *Cluster) findCopy(ctx context.Context, q question) (reply, error) {
	s := &search{Cluster: c, question: q, immutable: true, bad: []string{q.avoid}}
	if view := c.cfg.View.View(); view != nil {
		if r, ok := s.elsewhere(ctx, view, ring.OfTarget(q.req.Target)); ok {
			return r, nil
		}
	}
	return reply{}, errNoCopy
}

// find asks the cluster. Its errors are *cache.Error, or the context's; of
// findCopy any.
func (c *Cluster) find(ctx context.Context, q question) (reply, error) {
	if q.copies {
		return c.findCopy(ctx, q)
	}
	c.budget.earn()
	start, patience, pause := time.Now(), persistence, jitter()
	if q.avoid == "" && c.outage.lasts() {
		patience = 0
	}
	q.spread = c.fanouts.get(q.req.Target)
	s := &search{Cluster: c, question: q, immutable: q.req.Target.Kind.Immutable()}
	if q.avoid != "" {
		s.bad = []string{q.avoid}
	}
	for {
		r, err := s.round(ctx)
		switch {
		case err == nil || !errors.Is(err, errExhausted):
			c.outage.end()
			s.note(r)
			return r, err
		case s.busy != nil:
			return reply{}, c.overload(s.busy)
		case time.Since(start)+pause > patience:
			c.outage.begin()
			return c.lastResort(ctx, q, s.last)
		}
		if err := sleep(ctx, pause); err != nil {
			return reply{}, err
		}
		pause *= 4
		s.bad, s.heard = nil, nil
	}
}

// outage is a time in which nobody can be reached. The zero outage is over.
type outage struct {
	mu    sync.Mutex
	since time.Time // when it was noticed last
}

func (o *outage) begin() { o.set(time.Now()) }
func (o *outage) end()   { o.set(time.Time{}) }

func (o *outage) set(since time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.since = since
}

// lasts tells whether it is worth no more than one try.
func (o *outage) lasts() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return time.Since(o.since) < outageMemory
}

// round asks everybody once.
func (s *search) round(ctx context.Context) (reply, error) {
	view := s.cfg.View.View()
	if view == nil || len(view.Members()) == 0 {
		return reply{}, errNoNode()
	}
	p := ring.OfTarget(s.req.Target)
	for g := range s.atlas.groups(view, p) {
		r, then, err := s.ask(ctx, g)
		switch {
		case err == nil:
			return r, nil
		case then == next:
			continue
		case then == elsewhere:
			if r, ok := s.elsewhere(ctx, view, p); ok {
				return r, nil
			}
		}
		return reply{}, err
	}
	return reply{}, errExhausted
}

// ask asks the nodes of one region, one after the other, until one answers. Where
// none does, the step is next for a region of no use.
func (s *search) ask(ctx context.Context, g group) (reply, step, error) {
	mayFill := s.req.Mode == cache.AllowFill
	filling := mayFill && (s.fill || !s.immutable)
	heard := len(s.heard)
	var said error
	for {
		first, second, mode := s.choose(g, filling)
		switch {
		case first.id == "" && said != nil && !mayFill: // who may fill hears a no from a coordinator only
			return reply{}, elsewhere, said
		case first.id == "":
			return reply{}, next, errExhausted
		case s.pays && !s.retry():
			return reply{}, give, s.overload(s.busy)
		case !s.answers(ctx, first.id):
			s.bad = append(s.bad, first.id)
			continue
		}
		r, err := s.hedged(ctx, first, second, mode)
		if err == nil {
			return r, give, nil
		}
		if ctx.Err() != nil {
			return reply{}, give, ctx.Err()
		}
		switch then := stepAfter(err, mode, s.immutable); then {
		case fill:
			s.heard = append(s.heard, first.id)
			if s.spread > first.rank && !first.replica { // it gets a copy now; the replicas have one
				s.spread = 0
				continue
			}
			said, filling = err, mayFill
		case next, retry:
			s.leave(ctx, first, err, then)
			if errors.Is(err, wire.ErrSilent) {
				s.check(ctx, g)
			}
			filling = filling || mayFill && len(s.heard) > heard // from a hedge
		default:
			s.heard = append(s.heard, first.id)
			return reply{}, then, err
		}
	}
}

// choose says whom to ask next, who may help after a while, and how far the
// first may go. A zero candidate is nobody.
func (s *search) choose(g group, filling bool) (first, second candidate, mode cache.Mode) {
	g = g.without(s.bad)
	if len(g.ranks) == 0 {
		return candidate{}, candidate{}, 0
	}
	coordinator := g.coordinator()
	order := g.without(s.heard).ranks
	if s.immutable { // else the coordinator knows best
		order = g.without(s.heard).readers(s.spread, rand.IntN)
	}
	if filling {
		return coordinator, candidate{}, cache.AllowFill
	}
	if len(order) == 0 {
		return candidate{}, candidate{}, 0
	}
	first, mode = order[0], cache.OnlyIfCached
	if s.req.Mode == cache.AllowFill && first.id == coordinator.id {
		mode = cache.AllowFill
	}
	if i := slices.IndexFunc(order[1:], func(n candidate) bool { return n.replica }); i >= 0 && s.immutable {
		second = order[1+i]
	}
	return first, second, mode
}

// leave notes that a node was of no use.
func (s *search) leave(ctx context.Context, n candidate, err error, then step) {
	s.bad = append(s.bad, n.id)
	s.last = err
	s.metrics.failover(err)
	s.log.DebugContext(ctx, "asking another node", "peer", n.id, "key", s.req.Target.String(), "err", err)
	if then == retry {
		s.busy, s.pays = err, true
	} else {
		s.budget.spend()
	}
}

// retry pays for asking another node after one was busy, if the budget allows.
func (s *search) retry() bool {
	s.pays = false
	if s.budget.retry() {
		return true
	}
	s.metrics.denied.Inc()
	return false
}

// elsewhere asks everybody at once who may hold a copy and was not heard yet: a
// build never fails while any copy exists. For what changes the youngest answer
// wins, else the first.
func (s *search) elsewhere(ctx context.Context, view *ring.View, p ring.Partition) (reply, bool) {
	nodes := s.holders(view, p)
	timer := time.NewTimer(elsewhereLimit)
	defer timer.Stop()
	race := s.race(len(nodes))
	for _, n := range nodes {
		race.start(ctx, s.question, n, cache.OnlyIfCached)
	}
	var best outcome
	for late := false; race.running > 0 && !late && (best.Object == nil || !s.immutable); {
		select {
		case o := <-race.outcomes:
			race.running--
			switch {
			case o.err != nil:
			case best.Object == nil:
				best = o
			case younger(o.Object, best.Object):
				best.close()
				best = o
			default:
				o.close()
			}
		case <-timer.C:
			late = true
		}
	}
	race.end(best.node.id)
	return best.reply, best.Object != nil
}

// holders are the replicas of all regions that were not heard and can be asked.
func (s *search) holders(view *ring.View, p ring.Partition) []candidate {
	var nodes []candidate
	for g := range s.atlas.groups(view, p) {
		for _, n := range g.without(s.bad).without(s.heard).ranks {
			if n.replica && n.usable && len(nodes) < maxElsewhere {
				nodes = append(nodes, n)
			}
		}
	}
	return nodes
}

// younger tells whether upstream said a after b. What is stale and has no age was
// put together from what is held, and is worth least.
func younger(a, b *cache.Object) bool {
	dated := func(o *cache.Object) bool { return !o.Stale || o.Age > 0 }
	if dated(a) != dated(b) {
		return dated(a)
	}
	return a.Age < b.Age
}

// jitter is how long to wait before somebody is asked again, so that not all come
// back at once.
func jitter() time.Duration { return 50*time.Millisecond + rand.N(200*time.Millisecond) }

// sleep waits for d, or for the end of ctx, which is an error.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
