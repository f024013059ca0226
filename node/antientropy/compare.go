package antientropy

import (
	"context"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/upstream"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// compare finds what a partner holds of a partition that this node does not, and where
// the two disagree.
func (r *round) compare(ctx context.Context, ch *check) error {
	var disagree []uint64
	cold := int64(0)
	err := r.merge(ctx, ch.key.peer, ch.key.partition, func(ours *store.Key, theirs *ringmodv1.Key) {
		switch {
		case ours != nil && unusedDays(ours.Used, r.now) >= recentDays:
			cold += ours.Size
		case ours == nil && theirs.GetUnusedDays() < recentDays && theirs.GetSize() <= uint64(upstream.Limit(target.Zip)):
			r.want(&want{
				wantKey{ch.key.partition, theirs.GetHash()}, theirs.GetDigest(), int64(theirs.GetSize()), theirs.GetUnusedDays(), ch.key.peer, []*check{ch},
			})
		}
		if ours != nil && theirs != nil && ours.Digest != theirs.GetDigest() && len(disagree) < maxPage {
			disagree = append(disagree, ours.Hash)
		}
	})
	if err == nil && len(disagree) > 0 {
		err = r.disagree(ctx, ch, disagree)
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cold[ch.key.partition] = cold
	r.checks = append(r.checks, ch)
	return nil
}

// disagree looks closer at what seems to differ.
func (r *round) disagree(ctx context.Context, ch *check, hashes []uint64) error {
	return r.copiesOf(ctx, ch.key.peer, ch.key.partition, hashes, func(_ uint64, theirs *ringmodv1.Copy) {
		t, err := target.Parse(theirs.GetTarget())
		sum, ok := digestIn(theirs)
		if err != nil || !ok {
			return
		}
		if _, fixed := Place(t.String()); !fixed {
			return
		}
		entry, err := r.cfg.Store.Stat(t.String())
		if err != nil || entry.SHA256 == sum {
			return
		}
		r.log.ErrorContext(ctx, "two copies differ", "key", t.String(), "peer", ch.key.peer)
		r.metrics.conflicts.Inc()
		r.cfg.OnConflict(t, ch.key.peer, theirs)
	})
}

// merge visits the keys of a partition that this node or a peer holds, in the order of
// their hashes; the side that does not hold a key is nil.
func (c *Comparer) merge(ctx context.Context, id string, p ring.Partition, visit func(ours *store.Key, theirs *ringmodv1.Key)) error {
	own := &cursor{from: c.cfg.Store, partition: p}
	err := c.keysOf(ctx, id, p, func(theirs *ringmodv1.Key) error {
		for {
			ours, err := own.get(ctx)
			switch {
			case err != nil:
				return err
			case ours == nil || ours.Hash > theirs.GetHash():
				visit(nil, theirs)
				return nil
			case ours.Hash == theirs.GetHash():
				visit(ours, theirs)
				own.next()
				return nil
			}
			visit(ours, nil)
			own.next()
		}
	})
	for err == nil {
		var ours *store.Key
		if ours, err = own.get(ctx); ours == nil {
			break
		}
		visit(ours, nil)
		own.next()
	}
	return err
}

// cursor walks over our keys of a partition.
type cursor struct {
	from      Store
	partition ring.Partition
	page      []store.Key
	at        int
	after     store.Key
	ended     bool
}

// get returns the key that the cursor is at, nil at the end.
func (c *cursor) get(ctx context.Context) (*store.Key, error) {
	if c.at == len(c.page) && !c.ended {
		var err error
		if c.page, err = c.from.Keys(ctx, int(c.partition), c.after, maxPage); err != nil {
			return nil, err
		}
		c.at, c.ended = 0, len(c.page) < maxPage
	}
	if c.at == len(c.page) {
		return nil, nil
	}
	return &c.page[c.at], nil
}

func (c *cursor) next() {
	c.after = c.page[c.at]
	c.at++
}
