// Package peer chooses, for the fills of one node, whom of the other nodes to
// ask: by the tables of package ring, and without those that are known to be
// away. It implements node.Peers and the ways to a checksum database that lead
// through other members.
//
// # Whom
//
// The copies of a region are looked for at all of its ranks of the partition, spare
// ones included, in the table of now and in the one that is coming, and at those who
// were replicas in the last 30 min, all at once. A process that is younger than that does
// not know them and looks at up to 16 of its region, whatever they are.
// A region that was out of reach may have filled by itself meanwhile: for 30 min
// after it is back its coordinators are looked at as well, which costs a round trip
// between regions and saves upstream the second request.
//
// The coordinators of an object are, for each region that may be its home, home
// first, the two lowest ranks that are ACTIVE and usable, four nodes in all; those
// whose disk takes nothing come after the others of their region. Which
// of them is the one, two nodes may see differently for a while: a fill more is
// the worst that comes of it.
//
// It never waits for a fill when it looks for copies, and never asks a node
// twice for one call.
package peer

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/ring"
)

const (
	peekLimit       = 500 * time.Millisecond // for the first message of a node that is peeked at
	farPeekLimit    = 2 * time.Second        // the same in another region
	watchEvery      = time.Second            // for regions that are out of reach
	warmTime        = 30 * time.Minute       // for which they may hold what others do not (cluster.md 4.5)
	perRegion       = 2                      // coordinators of a region that are tried
	maxCoordinators = 4
	maxYoung        = 16 // nodes that are peeked at by a process that does not know who was a replica
	maxPast         = 16 // views that are kept
)

// Nodes is the way to the other nodes; *peers.Set is one.
type Nodes interface {
	// Get asks the node with this id, as wire.Get does.
	Get(ctx context.Context, id string, req cache.Request, o wire.Options) (*cache.Object, error)
	// Usable tells whether it makes sense to ask it.
	Usable(id string) bool
	// Answers tells whether it says at once that it is well.
	Answers(ctx context.Context, id string) bool
}

// Config says who asks whom.
type Config struct {
	Self   string            // id of this node
	Region string            // of this node
	View   func() *ring.View // the placement as it is known now; may return nil
	Nodes  Nodes
	Logger *slog.Logger // nil = silent
}

// Peers are the other nodes.
type Peers struct {
	cfg     Config
	started time.Time

	mu   sync.Mutex           // guards what follows
	lost map[string]time.Time // regions of which no node could be asked, and when last
	view *ring.View           // the last one that was seen
	old  []past               // the ones before it, the latest last
}

// past is a view that holds no more.
type past struct {
	view  *ring.View
	ended time.Time
}

var _ node.Peers = (*Peers)(nil)

// New returns the peers of a node.
func New(cfg Config) *Peers {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Peers{cfg: cfg, started: time.Now(), lost: make(map[string]time.Time)}
}

// Run watches for regions that are out of reach, until ctx is done.
func (p *Peers) Run(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			p.watch(time.Now())
			p.past(time.Now())
		}
	}
}

func (p *Peers) watch(now time.Time) {
	view := p.cfg.View()
	if view == nil {
		return
	}
	reached := make(map[string]bool)
	for _, m := range view.Members() {
		reached[m.Region] = reached[m.Region] || m.ID == p.cfg.Self || p.cfg.Nodes.Usable(m.ID)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for region, ok := range reached {
		if !ok {
			p.lost[region] = now
		}
	}
	maps.DeleteFunc(p.lost, func(_ string, at time.Time) bool { return now.Sub(at) > warmTime })
}

// past returns the views that held in the last 30 min, the latest first, and whether
// there may have been others that this process has not seen.
func (p *Peers) past(now time.Time) (views []*ring.View, young bool) {
	view := p.cfg.View()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.view != nil && view != nil && p.view.Digest() != view.Digest() {
		p.old = append(p.old, past{p.view, now})
		p.old = p.old[max(0, len(p.old)-maxPast):]
	}
	p.view = view
	p.old = slices.DeleteFunc(p.old, func(o past) bool { return now.Sub(o.ended) > warmTime })
	for _, o := range slices.Backward(p.old) {
		views = append(views, o.view)
	}
	return views, now.Sub(p.started) <= warmTime
}

// returned tells whether a region was out of reach lately.
func (p *Peers) returned(region string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.lost[region]
	return ok && time.Since(at) <= warmTime
}

// Coordinators implements node.Peers.
func (p *Peers) Coordinators(t target.Target) []node.Coordinator {
	view := p.cfg.View()
	if view == nil {
		return nil
	}
	partition := ring.OfTarget(t)
	var all []node.Coordinator
	for _, region := range view.Next().Homes(partition) {
		all = append(all, p.coordinators(view, region, partition)...)
	}
	return all[:min(len(all), maxCoordinators)]
}

// coordinators returns those of one region: who is ACTIVE of the ranks that are coming,
// and behind them, should all of these be joining, of those of now.
func (p *Peers) coordinators(view *ring.View, region string, partition ring.Partition) []node.Coordinator {
	var all, full []node.Coordinator
	ranks := slices.Clone(view.Next().Ranks(region, partition))
	for _, i := range view.Current().Ranks(region, partition) {
		if !slices.Contains(ranks, i) {
			ranks = append(ranks, i)
		}
	}
	for _, i := range ranks {
		m := view.Member(i)
		self := m.ID == p.cfg.Self
		if m.State != ring.Active || (!self && !p.cfg.Nodes.Usable(m.ID)) {
			continue
		}
		c := node.Coordinator{ID: m.ID, Self: self, Far: region != p.cfg.Region}
		if m.ReadOnly {
			full = append(full, c)
		} else {
			all = append(all, c)
		}
	}
	all = append(all, full...)
	return all[:min(len(all), perRegion)]
}

// Answers implements node.Peers.
func (p *Peers) Answers(ctx context.Context, id string) bool { return p.cfg.Nodes.Answers(ctx, id) }

// Coordinate implements node.Peers.
func (p *Peers) Coordinate(ctx context.Context, id string, req cache.Request) (*cache.Object, error) {
	return p.cfg.Nodes.Get(ctx, id, req, wire.Options{})
}
