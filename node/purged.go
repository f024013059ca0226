package node

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

// Purges tell what operators have removed; a *purge.Keeper does. The store must refuse
// the same.
type Purges interface {
	// Wait returns when enough is known to serve anything.
	Wait(ctx context.Context) error
	// Check returns the *cache.Error to answer with in place of a target, nil where it is
	// not purged; CheckVersion is for a version of a module.
	Check(name string) error
	CheckVersion(m module.Version) error
	// List returns what is left of a list.
	List(path string, list []byte) []byte
}

// noPurges is where nothing is purged.
type noPurges struct{}

func (noPurges) Wait(context.Context) error        { return nil }
func (noPurges) Check(string) error                { return nil }
func (noPurges) CheckVersion(module.Version) error { return nil }
func (noPurges) List(_ string, list []byte) []byte { return list }

// Drop ends what runs for targets that have just been purged. Who follows it learns why,
// and what it has brought is not stored.
func (n *Node) Drop(purged func(name string) bool) {
	n.flights.mu.Lock()
	defer n.flights.mu.Unlock()
	for key, f := range n.flights.running {
		if purged(key.name) {
			f.end(n.cfg.Purges.Check(key.name))
		}
	}
}

func (n *Node) isPurged(t target.Target) bool { return n.cfg.Purges.Check(t.String()) != nil }

// endedByPurge returns what the target is answered with if it was purged meanwhile, else
// o and err.
func (n *Node) endedByPurge(t target.Target, o small, err error) (small, error) {
	if purged := n.cfg.Purges.Check(t.String()); purged != nil {
		return small{}, purged
	}
	return o, err
}

// changing answers list, latest and queries without what is purged.
func (n *Node) changing(ctx context.Context, req cache.Request) (*cache.Object, error) {
	obj, err := n.mutable(ctx, req)
	if err != nil {
		return nil, err
	}
	return n.unpurged(ctx, req, obj)
}

// unpurged takes purged versions out of a mutable answer. It closes obj where that is not
// the answer.
func (n *Node) unpurged(ctx context.Context, req cache.Request, obj *cache.Object) (*cache.Object, error) {
	t := req.Target
	if err := n.cfg.Purges.Check(t.String()); err != nil { // meanwhile
		obj.Body.Close()
		return nil, err
	}
	data, err := readAll(obj)
	if err != nil {
		return nil, err
	}
	obj.Body = bytesBody{bytes.NewReader(data)}
	if t.Kind == target.List {
		if left := n.cfg.Purges.List(t.Path, data); len(left) < len(data) {
			obj = n.like(obj, t, left)
		}
		return obj, nil
	}
	err = n.cfg.Purges.CheckVersion(module.Version{Path: t.Path, Version: resolved(data)})
	switch {
	case err == nil:
		return obj, nil
	case t.Kind == target.Latest:
		return n.nextLatest(ctx, req, err)
	default:
		return nil, err
	}
}

// like returns another body with what is known of obj.
func (n *Node) like(obj *cache.Object, t target.Target, data []byte) *cache.Object {
	same := n.bytesObject(t, data, obj.Source)
	same.Age, same.TTL, same.Stale = obj.Age, obj.TTL, obj.Stale
	return same
}

// resolved returns the version that a latest or query stands for.
func resolved(data []byte) string {
	var info struct{ Version string }
	_ = json.Unmarshal(data, &info) // verify.Form has seen it
	return info.Version
}

// nextLatest answers @latest where upstream's is purged: by the newest version of the list
// that is not, and whose .info can be had. Without one the answer is cause.
func (n *Node) nextLatest(ctx context.Context, req cache.Request, cause error) (*cache.Object, error) {
	var err error
	if req.Target, err = target.ForModule(req.Target.Path, target.List); err != nil {
		return nil, cause
	}
	list, err := n.changing(ctx, req)
	if err != nil {
		return nil, cause
	}
	lines, err := readAll(list)
	if err != nil {
		return nil, cause
	}
	versions := strings.Fields(string(lines))
	if len(versions) == 0 {
		return nil, cause
	}
	req.Whole = true
	if req.Target, err = target.ForVersion(module.Version{Path: req.Target.Path, Version: newest(versions)}, target.Info); err != nil {
		return nil, cause
	}
	info, err := n.object(ctx, req)
	if err != nil {
		return nil, err
	}
	data, err := readAll(info)
	if err != nil {
		return nil, err
	}
	return n.like(list, req.Target, data), nil
}
