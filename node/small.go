package node

import (
	"context"
	"io"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/verify"
)

// small is an object that was read whole.
type small struct {
	data []byte
	proof
}

// proof is what is known of an object's module hash: see cache.Object.
type proof struct {
	h1       string
	verified bool
}

// proofOf returns what is known of obj, of a fill when its end was met.
func proofOf(obj *cache.Object) proof {
	if body, ok := obj.Body.(interface{ Proof() (string, bool) }); ok {
		h1, verified := body.Proof()
		return proof{h1, verified}
	}
	return proof{obj.H1, obj.Verified}
}

// proofOf is for what this node holds with that hash: where a checksum database
// covers the module, nothing gets in without its consent.
func (n *Node) proofOf(t target.Target, h1 string) proof {
	return proof{h1, h1 != "" && n.database(t) != nil}
}

func (n *Node) smallObject(t target.Target, o small, source cache.Source) *cache.Object {
	obj := n.bytesObject(t, o.data, source)
	obj.H1, obj.Verified = o.h1, o.verified
	return obj
}

// fillSmall gets a .info or .mod whole, verifies it and hands it to the
// writer behind: a caller need not wait for the disk.
func (n *Node) fillSmall(ctx context.Context, t target.Target, f *flight) (o small, err error) {
	var own bool
	err = n.supplied(ctx, t, f, func(s *supply) error {
		f.from(s.source)
		own = s.own != nil
		o, err = n.smallOf(ctx, t, s)
		return err
	})
	switch {
	case err != nil:
		return small{}, err
	case own || n.isDuplicate(ctx, t):
		return o, nil
	default:
		return o, n.writes.Put(ctx, t.String(), o.data, o.h1)
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
	if s.object != nil && proofOf(s.object) == (proof{h1, true}) {
		return small{data, proof{h1, true}}, nil
	}
	if err := n.check(ctx, t, h1); err != nil {
		return small{}, err
	}
	return small{data, n.proofOf(t, h1)}, nil
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
