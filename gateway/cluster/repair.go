package cluster

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// Conns leads to the nodes for calls other than Get; *peers.Set does.
type Conns interface {
	Conn(id string) (grpc.ClientConnInterface, error)
}

// Limits of read repair (cluster.md 4.8).
const (
	repairPause  = time.Minute            // between two for one object at one node
	repairGather = 100 * time.Millisecond // what comes together goes together
	repairLimit  = 2 * time.Second        // for one call
	maxRepairs   = 1024                   // that wait, and that go in one call (peer.proto)
	maxRepaired  = 8192                   // that are remembered
)

// repairs tell replicas of objects that they lack and that another node of their
// region holds. It is best effort: what does not go at once is found again at the
// next read.
type repairs struct {
	c     *Cluster
	queue chan repair

	mu   sync.Mutex
	told map[repairKey]time.Time
}

type repairKey struct{ node, name string }

// repair is an object that a replica lacks.
type repair struct {
	pair

	copy *ringmodv1.Copy
}

// pair is who lacks something and who has it.
type pair struct{ node, holder string }

func newRepairs(c *Cluster) *repairs {
	return &repairs{c: c, queue: make(chan repair, maxRepairs), told: make(map[repairKey]time.Time)}
}

// note looks at who did not have what r has brought. Only what r's node has on its
// disk can be pulled from there: fills are announced when they are done.
func (s *search) note(r reply) {
	if s.cfg.Conns == nil || len(s.heard) == 0 || !s.immutable || r.Object == nil || r.Source != cache.Disk ||
		r.Size < 0 || r.SHA256 == [32]byte{} {
		return
	}
	view := s.cfg.View.View()
	if view == nil {
		return
	}
	holder, ok := view.Find(r.node.id)
	if !ok {
		return
	}
	t := s.req.Target
	for _, i := range view.Next().Replicas(view.Member(holder).Region, ring.OfTarget(t)) {
		if id := view.Member(i).ID; id != r.node.id && slices.Contains(s.heard, id) {
			s.repairs.add(pair{id, r.node.id}, t, r.Object)
		}
	}
}

// add queues a repair, unless there was one just now or there are too many.
func (p *repairs) add(who pair, t target.Target, obj *cache.Object) {
	if !p.due(repairKey{who.node, t.String()}) {
		return
	}
	each := repair{who, &ringmodv1.Copy{
		Target: t.String(), Size: uint64(obj.Size), Sha256: obj.SHA256[:], H1: obj.H1, Verified: obj.Verified, Private: obj.Private,
	}}
	select {
	case p.queue <- each:
	default:
		p.c.metrics.repaired("dropped")
	}
}

// due tells whether a repair is to be made, and remembers it.
func (p *repairs) due(key repairKey) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Sub(p.told[key]) < repairPause {
		return false
	}
	if len(p.told) >= maxRepaired {
		for old, at := range p.told {
			if now.Sub(at) >= repairPause {
				delete(p.told, old)
			}
		}
	}
	if len(p.told) >= maxRepaired {
		return false
	}
	p.told[key] = now
	return true
}

// run makes repairs until ctx is done.
func (p *repairs) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case first := <-p.queue:
			if sleep(ctx, repairGather) != nil {
				return
			}
			for who, copies := range p.gather(first) {
				p.tell(ctx, who, copies)
			}
		}
	}
}

// gather returns what waits, by who is to be told.
func (p *repairs) gather(first repair) map[pair][]*ringmodv1.Copy {
	batch := map[pair][]*ringmodv1.Copy{first.pair: {first.copy}}
	for n := 1; n < maxRepairs; n++ {
		select {
		case each := <-p.queue:
			batch[each.pair] = append(batch[each.pair], each.copy)
		default:
			return batch
		}
	}
	return batch
}

func (p *repairs) tell(ctx context.Context, who pair, copies []*ringmodv1.Copy) {
	ctx, cancel := context.WithTimeout(ctx, repairLimit)
	defer cancel()
	conn, err := p.c.cfg.Conns.Conn(who.node)
	var resp *ringmodv1.AnnounceResponse
	if err == nil {
		req := &ringmodv1.AnnounceRequest{Copies: copies, Holder: who.holder}
		if view := p.c.cfg.View.View(); view != nil {
			req.ViewDigest, req.ViewSeq = view.Digest(), view.Seq()
		}
		resp, err = ringmodv1.NewPeerServiceClient(conn).Announce(ctx, req)
	}
	if err != nil {
		p.c.log.DebugContext(ctx, "a replica was not told of copies that it lacks", "peer", who.node, "err", err)
		p.c.metrics.repaired("failed")
		return
	}
	for _, o := range resp.GetOutcomes()[:min(len(copies), len(resp.GetOutcomes()))] {
		if _, known := ringmodv1.Outcome_name[int32(o)]; !known {
			o = ringmodv1.Outcome_OUTCOME_DECLINED
		}
		p.c.metrics.repaired(strings.ToLower(strings.TrimPrefix(o.String(), "OUTCOME_")))
	}
}
