package node_test

import (
	"bytes"
	"crypto/sha256"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/store/storetest"
	"github.com/ringmod/ringmod/node/sumdb"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

const (
	lookupName = "sumdb/sum.example.com/lookup/example.com/m@v1.0.0"
	tileName   = "sumdb/sum.example.com/tile/8/0/000.p/1"
	someList   = "example.com/m/@v/list"
)

// closed notes that a body was closed.
type closed struct {
	io.Reader

	times int
}

func (c *closed) Close() error {
	c.times++
	return nil
}

// What another node gives is stored if it is what it should be, and never in place of
// what is here.
func TestTake(t *testing.T) {
	t.Parallel()
	zip, h1 := zipOf(t, 0)
	evil, err := upstreamtest.Module{Path: modPath, Version: modVers, Files: map[string]string{"go.mod": modBody, "evil.go": "package evil\n"}}.File(".zip")
	if err != nil {
		t.Fatal(err)
	}
	mem := store.NewMem()
	_, db := newRecords(t, mem, node.NewWriteBehind(mem, nil), zip)
	for _, test := range []struct {
		what, name, data string
		h1               string
		verified         bool
		size             int64 // to be added to what the other node says
		here             string
		want             string // what is here afterwards, "" for nothing
		ok               bool
	}{
		{what: "a zip", name: zipName, data: string(zip), h1: h1, want: string(zip), ok: true},
		{what: "a verified zip", name: zipName, data: string(zip), h1: h1, verified: true, want: string(zip), ok: true},
		{what: "a zip that the database does not know", name: zipName, data: string(evil), h1: h1},
		{what: "no zip", name: zipName, data: "x"},
		{what: "a short zip", name: zipName, data: string(zip), h1: h1, size: 1},
		{what: "another zip", name: zipName, data: string(zip), h1: h1, here: "this one", want: "this one", ok: true},
		{what: "a go.mod", name: modName, data: modBody, want: modBody, ok: true},
		{what: "no go.mod", name: modName, data: "<html>"},
		{what: "another go.mod", name: modName, data: modBody, here: "this one", want: "this one", ok: true},
		{what: "a long go.mod", name: modName, data: modBody + strings.Repeat("//\n", 6<<20)},
		{what: "a lookup", name: lookupName, data: "1\nexample.com/m v1.0.0 h1:x\n\ngo.sum database tree\n", want: "1\nexample.com/m v1.0.0 h1:x\n\ngo.sum database tree\n", ok: true},
		{what: "no lookup", name: lookupName, data: "<html>"},
		{what: "a tile", name: tileName, data: strings.Repeat("x", 32), want: strings.Repeat("x", 32), ok: true},
		{what: "no tile", name: tileName, data: "x"},
		{what: "of another database", name: strings.Replace(tileName, "sum.", "other.", 1), data: strings.Repeat("x", 32)},
		{what: "a tree head", name: "sumdb/sum.example.com/latest", data: "x"},
		{what: "no list", name: someList, data: "<html>"},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			n, mem := newNode(t, node.Config{Peers: newPeers(t), Databases: []*sumdb.DB{db}})
			if test.here != "" {
				storetest.Put(t, mem, test.name, test.here, "")
			}
			body := &closed{Reader: bytes.NewReader([]byte(test.data))}
			obj := &cache.Object{
				Size: int64(len(test.data)) + test.size, SHA256: sha256.Sum256([]byte(test.data)), H1: test.h1, Verified: test.verified, Body: body,
			}
			if err := n.Take(t.Context(), mustParse(t, test.name), obj); err == nil != test.ok {
				t.Errorf("got %v, want %v", err, test.ok)
			}
			if body.times == 0 {
				t.Error("the body was not closed")
			}
			if test.want == "" {
				if _, err := mem.Stat(test.name); err == nil {
					t.Error("it was stored")
				}
				return
			}
			storetest.Want(t, mem, test.name, test.want)
		})
	}
}

// A list is taken when it is younger than the one that is here.
func TestTakeList(t *testing.T) {
	t.Parallel()
	n, mem := newNode(t, node.Config{Peers: newPeers(t)})
	for _, test := range []struct {
		data string
		age  time.Duration
		want string
	}{
		{"v1.0.0\n", time.Hour, "v1.0.0\n"}, {"v1.0.0\nv1.1.0\n", time.Minute, "v1.0.0\nv1.1.0\n"}, {"v1.0.0\n", 30 * time.Minute, "v1.0.0\nv1.1.0\n"},
	} {
		obj := &cache.Object{Size: int64(len(test.data)), Age: test.age, Body: &closed{Reader: strings.NewReader(test.data)}}
		if err := n.Take(t.Context(), mustParse(t, someList), obj); err != nil {
			t.Fatal(err)
		}
		doc, err := mem.Document(someList)
		if err != nil || string(doc.Body) != test.want {
			t.Errorf("of %v: %q, %v, want %q", test.age, doc.Body, err, test.want)
		}
	}
}
