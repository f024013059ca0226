package node

import (
	"context"
	"io"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/verify"
)

// small is an object that was read whole.
type small struct {
	data []byte
	store.Proof
}

// proofOf returns what is known of obj, of a fill when its end was met.
func proofOf(obj *cache.Object) store.Proof {
	if body, ok := obj.Body.(interface{ Proof() (string, bool) }); ok {
		h1, verified := body.Proof()
		return store.Proof{H1: h1, Verified: verified}
	}
	return store.Proof{H1: obj.H1, Verified: obj.Verified}
}

func (n *Node) smallObject(t target.Target, o small, source cache.Source) *cache.Object {
	obj := n.bytesObject(t, o.data, source)
	obj.H1, obj.Verified = o.H1, o.Verified
	return obj
}

// fillSmall gets a .info or .mod whole, verifies it and hands it to the
// writer behind: a caller need not wait for the disk.
func (n *Node) fillSmall(ctx context.Context, t target.Target, f *flight) (o small, err error) {
	var own *flight
	err = n.supplied(ctx, t, f, func(s *supply) error {
		f.from(s.source)
		own = s.own
		o, err = n.smallOf(ctx, t, s)
		return err
	})
	switch {
	case err != nil:
		return small{}, err
	case own != nil:
		own.wait(ctx)
		f.as(own)
		return o, nil
	case n.isDuplicate(ctx, t):
		return o, nil
	case n.cfg.Copier != nil:
		n.storeSecurely(ctx, t, f, o)
		return o, nil
	default:
		return o, n.writes.Put(ctx, t.String(), o.data, o.Proof)
	}
}

// smallOf reads what s gives and verifies it, but for the checksum database's word
// where a node has it already.
func (n *Node) smallOf(ctx context.Context, t target.Target, s *supply) (small, error) {
	data, err := readSmall(s.body, t)
	if err != nil {
		return small{}, err
	}
	h1 := ""
	if t.Kind == target.Mod {
		h1, err = verify.Mod(t, data)
	} else {
		err = verify.Info(t, data)
	}
	if err != nil {
		return small{}, err
	}
	proof := store.Proof{H1: h1, Verified: true}
	if s.object == nil || proofOf(s.object) != proof {
		proof, err = n.check(ctx, t, h1)
	}
	return small{data, proof}, err
}

// readSmall reads what a kind that is not a zip may have.
func readSmall(r io.Reader, t target.Target) ([]byte, error) {
	limit := upstream.Limit(t.Kind)
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = &cache.Error{Reason: cache.Broken, Text: t.Describe() + " is larger than any " + t.Kind.String()}
	}
	return data, err
}
