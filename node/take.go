package node

import (
	"context"
	"fmt"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/verify"
)

// Take stores t as obj, which another node of the region holds, and closes obj. What
// is here stays: a copy is never replaced by another one, nor a document by an
// older one. As with fills, what no checksum database has confirmed there, and one
// covers here, is verified first. When it returns nil, t is stored, or was about to
// be already.
func (n *Node) Take(ctx context.Context, t target.Target, obj *cache.Object) error {
	return n.take(ctx, t, obj, false)
}

// Replace is Take for an immutable object that has won over the copy here, which has
// other bytes. What another node says of its hash is not believed. The store keeps
// what it replaces.
func (n *Node) Replace(ctx context.Context, t target.Target, obj *cache.Object) error {
	obj.Verified = false
	return n.take(ctx, t, obj, true)
}

func (n *Node) take(ctx context.Context, t target.Target, obj *cache.Object, replaces bool) (err error) {
	defer n.survive(ctx, t, &err)
	defer obj.Body.Close()
	if err := n.cfg.Purges.Check(t.String()); err != nil {
		return err
	}
	s := &supply{origin: fromPeer, source: cache.Peer, size: obj.Size, body: obj.Body, object: obj}
	switch {
	case t.Kind == target.Zip:
		return n.takeZip(ctx, t, s, n.cfg.Store, replaces)
	case t.Kind.Immutable():
		return n.takeSmall(ctx, t, s, replaces)
	case t.Kind.Sumdb():
		return fmt.Errorf("%s is not taken over", t.Kind)
	default:
		return n.takeDocument(ctx, t, s)
	}
}

// TakeHot is Take for the hot area, where files of module versions may be that other
// nodes own.
func (n *Node) TakeHot(ctx context.Context, t target.Target, obj *cache.Object) (err error) {
	defer n.survive(ctx, t, &err)
	defer obj.Body.Close()
	s := &supply{origin: fromPeer, source: cache.Peer, size: obj.Size, body: obj.Body, object: obj}
	switch t.Kind {
	case target.Zip:
		return n.takeZip(ctx, t, s, n.cfg.Hot, false)
	case target.Info, target.Mod:
		o, err := n.smallOf(ctx, t, s)
		if err != nil {
			return err
		}
		return put(n.cfg.Hot, t.String(), o)
	default:
		return fmt.Errorf("%s is not kept there", t.Kind)
	}
}

// takeZip is a fill that nobody follows.
func (n *Node) takeZip(ctx context.Context, t target.Target, s *supply, to Area, replaces bool) error {
	f := &flight{flightKey: flightKey{name: t.String()}, changed: make(chan struct{}), size: -1}
	z := &zipFill{node: n, target: t, flight: f, store: to, size: -1, stored: true, replaces: replaces}
	defer z.drop()
	if err := z.take(ctx, s); err != nil {
		return err
	}
	stored, err := to.Open(ctx, t.String())
	if err != nil { // the log has why
		return fmt.Errorf("storing %s: %w", t, errDisk)
	}
	return stored.File.Close()
}

// takeSmall stores what is read whole.
func (n *Node) takeSmall(ctx context.Context, t target.Target, s *supply, replaces bool) error {
	o, err := n.smallIn(ctx, t, s)
	if err != nil || !replaces && n.isDuplicate(ctx, t) {
		return err
	}
	return put(n.cfg.Store, t.String(), o)
}

// smallIn reads and verifies it. What belongs to a checksum database was proven
// where it was fetched; here only its form is looked at.
func (n *Node) smallIn(ctx context.Context, t target.Target, s *supply) (small, error) {
	if !t.Kind.Sumdb() {
		return n.smallOf(ctx, t, s)
	}
	if n.databaseNamed(t.DB) == nil {
		return small{}, fmt.Errorf("checksum database %s is not served here", t.DB)
	}
	data, err := readSmall(s.body, t)
	if err == nil {
		err = checkSumdbFile(t, data)
	}
	return small{data: data}, err
}

// takeDocument keeps a mutable answer, whose age counts from now.
func (n *Node) takeDocument(ctx context.Context, t target.Target, s *supply) error {
	doc := store.Document{Fetched: time.Now().Add(-s.object.Age)}
	var err error
	if doc.Body, err = readSmall(s.body, t); err != nil {
		return err
	}
	if err := verify.Form(t, doc.Body); err != nil {
		return err
	}
	n.keep(ctx, t, doc)
	return nil
}

// Vet shows the hash of t to the checksum database that covers it: true when that confirms
// it, a cache.Mismatch when it contradicts. Another error says that it could not be asked.
func (n *Node) Vet(ctx context.Context, t target.Target, h1 string) (confirmed bool, err error) {
	db := n.database(t)
	if db == nil || h1 == "" || t.Kind != target.Zip && t.Kind != target.Mod {
		return false, nil
	}
	err = db.Check(ctx, t.Module(), t.Kind, h1)
	return err == nil, err
}
