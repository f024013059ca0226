package sumdb_test

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

func TestTile(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.db.grow(t, 0, 70000)
	for _, rest := range []string{
		"tile/8/0/000", "tile/8/0/000.p/1", "tile/8/0/000.p/255", "tile/8/0/270", "tile/8/0/273.p/112",
		"tile/8/0/273.p/5", "tile/8/1/000", "tile/8/1/001.p/17", "tile/8/2/000.p/1",
		"tile/8/data/000", "tile/8/data/000.p/3", "tile/8/data/273.p/112", "tile/8/data/273.p/1",
	} {
		want, err := r.db.get(rest)
		if err != nil {
			t.Fatal(err)
		}
		for _, pass := range []string{"cold", "warm", "restarted"} {
			got, err := r.tile(rest)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, %s: %d bytes, %v, want %d bytes", rest, pass, len(got), err, len(want))
			}
			if pass == "warm" {
				r.restart()
			}
		}
	}
	r.checkStored()
}

// TestTileCutFromStored wants narrower tiles without a request, also first
// thing after a restart.
func TestTileCutFromStored(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.db.grow(t, 0, 300)
	for _, rest := range []string{"tile/8/0/001.p/44", "tile/8/0/000", "tile/8/data/001.p/44", "tile/8/data/000"} {
		if _, err := r.tile(rest); err != nil {
			t.Fatal(err)
		}
	}
	asked := r.remote.requests("")
	r.remote.set(down)
	for _, rest := range []string{"tile/8/0/001.p/7", "tile/8/0/000.p/200", "tile/8/data/001.p/7", "tile/8/data/000.p/200"} {
		r.restart()
		want, _ := r.db.get(rest)
		got, err := r.tile(rest)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v, want %d", rest, len(got), err, len(want))
		}
	}
	if got := r.remote.requests(""); got != asked {
		t.Errorf("%d requests, want none", got-asked)
	}
}

// TestTileFullInPlaceOfPartial serves as databases on plain storage do, which
// drop a partial tile when the full one is there.
func TestTileFullInPlaceOfPartial(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.db.grow(t, 0, 200)
	r.lookup(1)
	frozen := r.heads.msgs[dbName]
	r.db.grow(t, 200, 300)
	r.remote.set(func(rest string, data []byte, err error) ([]byte, error) {
		tile, parseErr := tlog.ParseTilePath(rest)
		switch {
		case rest == "latest":
			return frozen, nil
		case parseErr == nil && tile.N == 0 && tile.W < 256 && tile.L <= 0:
			return nil, &cache.Error{Reason: cache.NotFound}
		}
		return data, err
	})
	for _, rest := range []string{"tile/8/0/000.p/200", "tile/8/data/000.p/150"} {
		r.storage.files = make(map[string][]byte)
		r.restart()
		want, _ := r.db.get(rest)
		got, err := r.tile(rest)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v, want %d", rest, len(got), err, len(want))
		}
	}
	r.checkStored()
}

func TestTileBeyondHead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.db.grow(t, 0, 300)
		r.lookup(1)
		r.db.grow(t, 300, 600)
		if _, err := r.tile("tile/8/0/002.p/88"); err != nil {
			t.Errorf("the tree has grown: %v", err)
		}
		if got := r.remote.requests("latest"); got != 1 {
			t.Errorf("%d requests for the head, want 1", got)
		}
		for range 10 {
			_, err := r.tile("tile/8/0/002.p/89")
			checkReason(t, "soon", err, cache.Broken)
			_, err = r.tile("tile/8/0/999")
			checkReason(t, "far away", err, cache.NotFound)
			_, err = r.tile("tile/8/data/002.p/89")
			checkReason(t, "data soon", err, cache.Broken)
			time.Sleep(100 * time.Millisecond)
		}
		if got := r.remote.requests("latest"); got > 3 {
			t.Errorf("%d requests for the head in a second, want one more", got)
		}
		for _, rest := range []string{"tile/8/63/000", "tile/8/8/000.p/1", "tile/8/0/x999/x999/x999/x999/x999/999"} {
			asked := r.remote.requests("")
			_, err := r.tile(rest)
			checkReason(t, rest, err, cache.NotFound)
			if got := r.remote.requests(""); got != asked {
				t.Errorf("%s: %d requests, want none", rest, got-asked)
			}
		}
		other, err := target.ForSumdb("sum.golang.org", "tile/8/0/000")
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Tile(t.Context(), other)
		checkReason(t, "another database", err, cache.Malformed)
		time.Sleep(time.Minute)
		r.remote.set(down)
		if _, err := r.tile("tile/8/0/002.p/89"); err != errDown { //nolint:errorlint // itself, not something around it
			t.Errorf("remote down: %v, want its own error", err)
		}
	})
}

func TestDataTileLies(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.db.grow(t, 0, 300)
	lies := map[string]struct {
		lie  func([]byte) []byte
		want cache.Reason
	}{
		"altered": {func(d []byte) []byte { return bytes.Replace(d, []byte("h1:zip"), []byte("h1:bad"), 1) }, cache.Mismatch},
		"cut":     {func(d []byte) []byte { return d[:len(d)-1] }, cache.Broken},
		"doubled": {func(d []byte) []byte { return append(d, d...) }, cache.Broken},
		"empty":   {func([]byte) []byte { return nil }, cache.Broken},
		"newline": {func(d []byte) []byte { return append([]byte("\n\n"), d...) }, cache.Broken},
	}
	for name, test := range lies {
		r.remote.set(func(rest string, data []byte, err error) ([]byte, error) {
			if tile, _ := tlog.ParseTilePath(rest); tile.L < 0 {
				return test.lie(bytes.Clone(data)), err
			}
			return data, err
		})
		_, err := r.tile("tile/8/data/001.p/44")
		checkReason(t, name, err, test.want)
		if r.storage.snapshot()[fmt.Sprintf("sumdb/%s/tile/8/data/001.p/44", dbName)] != nil {
			t.Fatalf("%s: stored", name)
		}
	}
}
