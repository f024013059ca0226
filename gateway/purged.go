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

// Drop forgets what has just been purged, and everything that may name it: lists, @latest
// and queries.
func (g *Gateway) Drop(purged func(name string) bool) {
	g.immutable.drop(purged)
	g.newestMu.Lock()
	defer g.newestMu.Unlock()
	g.drops++
	g.mutable.drop(func(string) bool { return true })
}

// dropped tells how often mutable answers were forgotten: what was asked for before is not
// kept.
func (g *Gateway) dropped() int {
	g.newestMu.Lock()
	defer g.newestMu.Unlock()
	return g.drops
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
		var info struct{ Version string }
		_ = json.Unmarshal(body, &info) // what is no JSON names no version
		err = g.purges.CheckVersion(module.Version{Path: t.Path, Version: info.Version})
	} else if left := g.purges.List(t.Path, body); len(left) < len(body) {
		body, obj.Size, obj.SHA256 = left, int64(len(left)), [32]byte{}
	}
	obj.Body = io.NopCloser(bytes.NewReader(body))
	return err
}
