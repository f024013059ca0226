package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// Holding tells what this node has and knows of t. It asks the index and reads no object,
// so that a copy that nobody has read for long may turn out to be bad.
func (n *Node) Holding(ctx context.Context, t target.Target) (*ringmodv1.Holding, error) {
	h := &ringmodv1.Holding{Target: t.String(), Filling: n.flights.join(t.String(), false) != nil}
	n.recall(h)
	var err error
	switch {
	case n.isPurged(t):
	case t.Kind.Immutable():
		h.Copy, err = n.copyOf(t)
	default:
		h.Copy, err = n.documentCopy(t)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.ErrorContext(ctx, "reading the entry of an object", "key", t.String(), "err", err)
		return nil, &cache.Error{Reason: cache.Internal, Text: "the cache cannot read its disk", Err: err}
	}
	return h, nil
}

// copyOf describes an object that is stored, or is about to be.
func (n *Node) copyOf(t target.Target) (*ringmodv1.Copy, error) {
	entry, err := n.cfg.Store.Stat(t.String())
	if data, proof, ok := n.writes.Pending(t.String()); err != nil && ok {
		entry, err = store.Entry{Size: int64(len(data)), SHA256: sha256.Sum256(data), Proof: proof, Stored: time.Now()}, nil
	}
	if err != nil {
		return nil, err
	}
	c := &ringmodv1.Copy{
		Target: t.String(), Size: uint64(entry.Size), Sha256: entry.SHA256[:], H1: entry.H1,
		Verified: entry.Verified, Private: n.private(t), StoredAge: durationpb.New(ageOf(entry.Stored)),
	}
	if last, recent := n.cfg.Used(t.String()); !last.IsZero() {
		c.UsedAge, c.Uses = durationpb.New(ageOf(last)), recent
	}
	return c, nil
}

// documentCopy describes a mutable answer.
func (n *Node) documentCopy(t target.Target) (*ringmodv1.Copy, error) {
	doc, err := n.cfg.Documents.Document(t.String())
	if err != nil {
		return nil, err
	}
	sum, age := sha256.Sum256(doc.Body), ageOf(doc.Fetched)
	return &ringmodv1.Copy{
		Target: t.String(), Size: uint64(len(doc.Body)), Sha256: sum[:], Private: n.private(t), Upstream: doc.Source,
		StoredAge: durationpb.New(age), Age: durationpb.New(age), Ttl: durationpb.New(max(0, freshFor-age)),
	}, nil
}
