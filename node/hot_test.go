package node_test

import (
	"bytes"
	"crypto/sha256"
	"io"
	"testing"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/sumdb"
)

// A hot copy is verified as any other, answers who asks, other nodes too, and is no
// object of the store.
func TestTakeHot(t *testing.T) {
	t.Parallel()
	zip, h1 := zipOf(t, 0)
	records := store.NewMem()
	_, db := newRecords(t, records, node.NewWriteBehind(records, nil), zip)
	for _, test := range []struct {
		what, name, data string
		ok               bool
	}{
		{"a zip", zipName, string(zip), true},
		{"no zip", zipName, "x", false},
		{"a go.mod", modName, modBody, true},
		{"no go.mod", modName, "<html>", false},
		{"a tile", tileName, "x", false},
		{"a list", someList, "v1.0.0\n", false},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			area := store.NewMem()
			n, mem := newNode(t, node.Config{Peers: newPeers(t), Databases: []*sumdb.DB{db}, Hot: area})
			name, body := mustParse(t, test.name), &closed{Reader: bytes.NewReader([]byte(test.data))}
			obj := &cache.Object{Size: int64(len(test.data)), SHA256: sha256.Sum256([]byte(test.data)), Body: body}
			if test.name == zipName {
				obj.H1 = h1
			}
			if err := n.TakeHot(t.Context(), name, obj); err == nil != test.ok {
				t.Errorf("got %v, want %v", err, test.ok)
			}
			if body.times == 0 {
				t.Error("the body was not closed")
			}
			if _, err := mem.Stat(test.name); err == nil {
				t.Error("it is an object of the store")
			}
			got, err := n.Get(t.Context(), cache.Request{Target: name, Mode: cache.Peek})
			if !test.ok {
				if err == nil {
					t.Error("it was kept")
				}
				return
			}
			if err != nil || got.Source != cache.Disk {
				t.Fatalf("a peek afterwards: %+v, %v", got, err)
			}
			defer got.Body.Close()
			if b, err := io.ReadAll(got.Body); err != nil || string(b) != test.data {
				t.Errorf("got %d bytes, %v, want %d", len(b), err, len(test.data))
			}
		})
	}
}
