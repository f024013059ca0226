package node_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	xsumdb "golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/note"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/sumdb"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

// records is a checksum database in memory that counts what it is asked.
type records struct {
	server  *xsumdb.Server
	spec    sumdb.Spec
	lookups atomic.Int64
}

func (r *records) Fetch(_ context.Context, t target.Target) ([]byte, error) {
	if t.Kind == target.SumdbLookup {
		r.lookups.Add(1)
	}
	rec := httptest.NewRecorder()
	r.server.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/"+t.Rest, nil))
	if rec.Code != http.StatusOK {
		return nil, &cache.Error{Reason: cache.NotFound, Source: "sum.example.com", Text: rec.Body.String()}
	}
	return rec.Body.Bytes(), nil
}

// newRecords returns a database that knows zip as that of oneModule, and a client.
func newRecords(t *testing.T, mem *store.Mem, writes *node.WriteBehind, zip []byte) (*records, *sumdb.DB) {
	t.Helper()
	zipH1, err := upstreamtest.HashZip(zip)
	if err != nil {
		t.Fatal(err)
	}
	modH1, err := upstreamtest.HashMod([]byte(modBody))
	if err != nil {
		t.Fatal(err)
	}
	skey, vkey, err := note.GenerateKey(nil, "sum.example.com")
	if err != nil {
		t.Fatal(err)
	}
	r := &records{server: xsumdb.NewServer(xsumdb.NewTestServer(skey, func(path, version string) ([]byte, error) {
		if path != modPath || version != modVers {
			return nil, fs.ErrNotExist
		}
		return fmt.Appendf(nil, "%s %s %s\n%s %s/go.mod %s\n", path, version, zipH1, path, version, modH1), nil
	}))}
	spec, err := sumdb.ParseSpec(vkey)
	if err != nil {
		t.Fatal(err)
	}
	r.spec = spec
	files := &node.ChecksumFiles{Store: mem, Documents: mem, Writes: writes}
	db, err := sumdb.New(sumdb.Config{Spec: spec, Remote: r, Storage: files, Heads: files})
	if err != nil {
		t.Fatal(err)
	}
	return r, db
}

// What another node has verified is taken as it is; what it has not is verified
// here, and what does not pass comes from the next one.
func TestWhoseWordIsTaken(t *testing.T) {
	t.Parallel()
	zip, h1 := zipOf(t, 1<<20)
	evil := upstreamtest.Module{Path: modPath, Version: modVers, Files: map[string]string{"go.mod": modBody, "evil.go": "package evil\n"}}
	bad, err := evil.File(".zip")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name     string
		target   string
		gives    []byte
		h1       string
		verified bool
		lookups  int64
		up       int
	}{
		{"verified zip", zipName, zip, h1, true, 0, 0},
		{"good zip", zipName, zip, h1, false, 1, 0},
		{"good zip without a hash", zipName, zip, "", false, 1, 0},
		{"bad zip", zipName, bad, h1, false, 1, 1},
		{"no zip", zipName, []byte("garbage"), h1, false, 1, 1},
		{"verified mod", modName, []byte(modBody), mustHash(t, modBody), true, 0, 0},
		{"mod with another's hash", modName, []byte(modBody), h1, true, 1, 0},
		{"good mod", modName, []byte(modBody), "", false, 1, 0},
		{"bad mod", modName, []byte(modBody + "\n"), mustHash(t, modBody), true, 1, 1},
		{"no mod", modName, []byte("<html>"), "", false, 1, 1},
		{"large mod", modName, []byte(modBody + strings.Repeat("\n", 16<<20)), "", false, 1, 1},
		{"info", infoName, []byte(infoBody), "", false, 0, 0},
		{"no info", infoName, []byte("{}"), "", false, 0, 1},
	} {
		for _, how := range []string{"home", "region"} {
			t.Run(test.name+" "+how, func(t *testing.T) {
				t.Parallel()
				bodies := map[string]string{zipName: string(zip), modName: modBody, infoName: infoBody}
				up := newScripted(bodies)
				peers := newPeers(t, "near1")
				obj := func() *cache.Object {
					return &cache.Object{Size: -1, H1: test.h1, Verified: test.verified, Body: &partly{bytes.NewReader(test.gives), io.EOF, test.h1, test.verified}}
				}
				peers.home = func(context.Context, string, cache.Request) (*cache.Object, error) {
					if how != "home" {
						return nil, trouble("near1")
					}
					return obj(), nil
				}
				if how == "region" {
					peers.peek = func(target.Target) (*cache.Object, error) { return obj(), nil }
				}
				mem := store.NewMem()
				writes := node.NewWriteBehind(mem, nil)
				records, db := newRecords(t, mem, writes, zip)
				n := node.New(node.Config{Store: mem, Documents: mem, Upstream: up, Peers: peers, Writes: writes, Databases: []*sumdb.DB{db}})
				got, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, test.target), Whole: true})
				stopNode(n)
				if err != nil || string(got) != bodies[test.target] {
					t.Errorf("%d bytes, %v, want %d", len(got), err, len(bodies[test.target]))
				}
				if got := records.lookups.Load(); got != test.lookups {
					t.Errorf("%d lookups, want %d", got, test.lookups)
				}
				if got := up.count(test.target); got != test.up {
					t.Errorf("%d upstream requests, want %d", got, test.up)
				}
				entry, err := mem.Stat(test.target)
				if err != nil || entry.Size != int64(len(bodies[test.target])) || entry.Verified != (test.target != infoName) {
					t.Errorf("stored %+v, %v", entry, err)
				}
			})
		}
	}
}

func mustHash(t *testing.T, mod string) string {
	t.Helper()
	h1, err := upstreamtest.HashMod([]byte(mod))
	if err != nil {
		t.Fatal(err)
	}
	return h1
}

// Of two fills that end one after the other the first one stays, and both have
// answered.
func TestDuplicateFill(t *testing.T) {
	t.Parallel()
	zip, h1 := zipOf(t, 1<<20)
	other, err := upstreamtest.Module{Path: modPath, Version: modVers, Files: map[string]string{"go.mod": modBody, "x.go": "package x\n"}}.File(".zip")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name          string
		first, second []byte
	}{{zipName, zip, other}, {infoName, []byte(infoBody), []byte(`{ "Version": "v1.0.0" }`)}} {
		synctest.Test(t, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			up := newScripted(map[string]string{test.name: string(test.first)})
			peers := newPeers(t, "near1")
			peers.home = func(context.Context, string, cache.Request) (*cache.Object, error) {
				time.Sleep(20 * time.Second)
				return filling(test.second, -1, io.EOF, h1), nil
			}
			n, mem := newNode(t, node.Config{Upstream: up, Peers: peers, Metrics: node.NewMetrics(reg)})
			late := make(chan []byte)
			go func() {
				got, _, _ := read(t.Context(), n, cache.Request{Target: mustParse(t, test.name)})
				late <- got
			}()
			synctest.Wait()
			if got, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, test.name), Mode: cache.Coordinate}); err != nil || !bytes.Equal(got, test.first) {
				t.Errorf("%s: %d bytes, %v, want %d", test.name, len(got), err, len(test.first))
			}
			if got := <-late; !bytes.Equal(got, test.second) && !bytes.Equal(got, test.first) {
				t.Errorf("%s: %d bytes, want those of either", test.name, len(got))
			}
			time.Sleep(time.Minute)
			if entry, err := mem.Stat(test.name); err != nil || entry.Size != int64(len(test.first)) {
				t.Errorf("%s: stored %+v, %v, want the first", test.name, entry, err)
			}
			if got := counter(t, reg, "ringmod_fill_duplicates_total"); got != 1 {
				t.Errorf("%s: %v duplicates counted, want 1", test.name, got)
			}
		})
	}
}

// counter returns the value of a counter, of all its labels together.
func counter(t *testing.T, reg *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}
