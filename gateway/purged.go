package gateway

import (
	"bytes"
	"encoding/json"
	"io"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

// noPurges is where nothing is purged.
type noPurges struct{}

func (noPurges) Check(string) error                { return nil }
func (noPurges) CheckVersion(module.Version) error { return nil }
func (noPurges) List(_ string, list []byte) []byte { return list }

// Drop forgets what has just been purged, and lists, @latest and queries that name it.
// Others stay, so that no client is told anything older than before.
func (g *Gateway) Drop(purged func(name string) bool) {
	is := func(e *entry) bool { return purged(e.target.String()) }
	g.immutable.drop(is)
	g.newestMu.Lock()
	defer g.newestMu.Unlock()
	g.mutable.drop(func(e *entry) bool { return is(e) || g.namesPurged(e) })
}

// namesPurged tells whether a mutable answer is purged or names a version that is.
func (g *Gateway) namesPurged(e *entry) bool {
	switch {
	case g.purges.Check(e.target.String()) != nil:
		return true
	case e.target.Kind == target.List:
		return len(g.purges.List(e.target.Path, e.body)) < len(e.body)
	default:
		return g.purges.CheckVersion(resolved(e.target.Path, e.body)) != nil
	}
}

// resolved returns what a latest or query stands for. What is no JSON names no version.
func resolved(path string, body []byte) module.Version {
	var info struct{ Version string }
	_ = json.Unmarshal(body, &info)
	return module.Version{Path: path, Version: info.Version}
}

// purged answers for what may not be had.
func (g *Gateway) purged(x *exchange, name string, why error) {
	t, err := target.Parse(name)
	if err != nil {
		x.fail(err)
		return
	}
	x.target, x.kind = t, uint8(t.Kind)
	x.private = g.isPrivate(t)
	x.fail(why)
}

// unpurged takes purged versions out of obj, of a node that has not heard of the purge
// yet. Others it leaves as they are.
func (g *Gateway) unpurged(t target.Target, obj *cache.Object) error {
	if t.Kind != target.List && t.Kind != target.Latest && t.Kind != target.Query {
		return nil
	}
	body, err := readAll(obj, maxText)
	if err != nil {
		return err
	}
	if t.Kind != target.List {
		err = g.purges.CheckVersion(resolved(t.Path, body))
	} else if left := g.purges.List(t.Path, body); len(left) < len(body) {
		body, obj.Size, obj.SHA256 = left, int64(len(left)), [32]byte{}
	}
	obj.Body = io.NopCloser(bytes.NewReader(body))
	return err
}
