package peer

import (
	"context"
	"io"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/sumdb"
	"github.com/ringmod/ringmod/node/upstream"
)

// Lookups is the way to the lookups of checksum databases that leads through the
// region and the coordinators, so that a lookup crosses upstream once. It answers
// NotCached where this node is the one to ask the database, by way of Copies, and
// where no other could.
func (p *Peers) Lookups() sumdb.Remote { return lookups{p} }

type lookups struct{ peers *Peers }

// Fetch implements sumdb.Remote.
func (l lookups) Fetch(ctx context.Context, t target.Target) ([]byte, error) {
	coordinators := l.peers.Coordinators(t)
	if len(coordinators) > 0 && !coordinators[0].Self {
		if data, ok := l.peers.copyOf(ctx, t); ok {
			return data, nil
		}
	}
	for _, c := range coordinators {
		if c.Self {
			break
		}
		obj, err := l.peers.Coordinate(ctx, c.ID, cache.Request{Target: t, Mode: cache.Coordinate, Hops: 1})
		if err == nil {
			data, err := readAll(obj, t)
			if err == nil {
				return data, nil
			}
		}
		if reason := cache.ReasonOf(err); reason == cache.NotFound || reason == cache.Gone {
			return nil, err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, &cache.Error{Reason: cache.NotCached, Text: "no other node could answer for " + t.Describe()}
}

// Copies returns a way to checksum databases that looks for lookups and tiles at
// the other nodes of the region before it takes the way direct. It waits for
// nobody's work, as proving a record wants many tiles.
func (p *Peers) Copies(direct sumdb.Remote) sumdb.Remote { return copies{p, direct} }

type copies struct {
	peers  *Peers
	direct sumdb.Remote
}

// Fetch implements sumdb.Remote.
func (r copies) Fetch(ctx context.Context, t target.Target) ([]byte, error) {
	if t.Kind.Immutable() {
		if data, ok := r.peers.copyOf(ctx, t); ok {
			return data, nil
		}
	}
	return r.direct.Fetch(ctx, t)
}

// copyOf returns what another node of the region has of t.
func (p *Peers) copyOf(ctx context.Context, t target.Target) ([]byte, bool) {
	obj, err := p.Peek(ctx, t)
	if err != nil {
		return nil, false
	}
	data, err := readAll(obj, t)
	return data, err == nil
}

// readAll reads what is not larger than its kind may be; the client verifies it.
func readAll(obj *cache.Object, t target.Target) ([]byte, error) {
	defer obj.Body.Close()
	return io.ReadAll(io.LimitReader(obj.Body, upstream.Limit(t.Kind)))
}
