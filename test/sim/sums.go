package sim

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/module"
	modsumdb "golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/note"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/sumdb"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

const sumsName = "sum.sim.test"

// sums is the checksum database of the modules: what upstream sends wrongly does
// not pass it.
type sums struct {
	spec   sumdb.Spec
	server http.Handler
}

func newSums() (*sums, error) {
	signer, verifier, err := note.GenerateKey(rand.NewChaCha8([32]byte{}), sumsName)
	if err != nil {
		return nil, err
	}
	spec, err := sumdb.ParseSpec(verifier)
	if err != nil {
		return nil, err
	}
	return &sums{spec: spec, server: modsumdb.NewServer(modsumdb.NewTestServer(signer, gosum))}, nil
}

// gosum is what the database says of a version. It knows those of tomorrow too.
func gosum(path, version string) ([]byte, error) {
	mod, number := place(mustTarget(path + "/@v/" + version + ".zip"))
	if mod < 0 || number < 0 {
		return nil, fs.ErrNotExist
	}
	m := module.Version{Path: path, Version: version}
	zip, err := hashOf(m, mod, ".zip")
	if err != nil {
		return nil, err
	}
	gomod, err := hashOf(m, mod, ".mod")
	return fmt.Appendf(nil, "%[1]s %[2]s %[3]s\n%[1]s %[2]s/go.mod %[4]s\n", path, version, zip, gomod), err
}

// hashes keeps what hashOf has returned.
var hashes sync.Map //nolint:gochecknoglobals // a memo of a pure function

// hashOf returns the module hash of a .zip or .mod, "" of a .info.
func hashOf(m module.Version, mod int, ext string) (string, error) {
	key := m.String() + ext
	if h1, ok := hashes.Load(key); ok {
		return h1.(string), nil
	}
	var h1 string
	var err error
	switch data := contentOf(m, zipSizes[mod], ext); ext {
	case ".zip":
		h1, err = upstreamtest.HashZip(data)
	case ".mod":
		h1, err = upstreamtest.HashMod(data)
	}
	hashes.Store(key, h1)
	return h1, err
}

// ask is a sumdb.Remote of one process.
type ask struct {
	sums   *sums
	source *source
}

// Fetch implements sumdb.Remote. Lookups are counted as what upstream was asked.
func (a ask) Fetch(ctx context.Context, t target.Target) ([]byte, error) {
	if t.Kind != target.SumdbLookup {
		return a.fetch(ctx, t)
	}
	f := &fetch{by: a.source.id, boot: a.source.boot, region: regionOf(ctx), target: t}
	a.source.out.begin(f)
	data, err := a.fetch(ctx, t)
	a.source.out.finish(f, err)
	return data, err
}

func (a ask) fetch(ctx context.Context, t target.Target) ([]byte, error) {
	if err := a.source.pause(ctx, 5*time.Millisecond); err != nil {
		return nil, err
	}
	if a.source.cut() {
		return nil, a.source.late(ctx, upstreamDial, cache.Broken, "cannot be reached")
	}
	path := strings.TrimPrefix(t.String(), "sumdb/"+sumsName)
	rec := httptest.NewRecorder()
	a.sums.server.ServeHTTP(rec, httptest.NewRequestWithContext(ctx, http.MethodGet, path, http.NoBody))
	switch rec.Code {
	case http.StatusOK:
		return bytes.Clone(rec.Body.Bytes()), nil
	case http.StatusNotFound:
		return nil, trouble(cache.NotFound, "404")
	default:
		return nil, trouble(cache.Broken, rec.Result().Status)
	}
}
