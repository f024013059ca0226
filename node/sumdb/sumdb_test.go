package sumdb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

func checkReason(t *testing.T, what string, err error, want cache.Reason) {
	t.Helper()
	if e, ok := errors.AsType[*cache.Error](err); !ok || e.Reason != want {
		t.Errorf("%s: %v (%v), want %v", what, err, cache.ReasonOf(err), want)
	}
	if err != nil && strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: text %q has more than one line", what, err)
	}
}

func TestLookup(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.db.grow(t, 0, 700)
	want, err := r.db.get("lookup/example.com/m5@v1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := r.lookup(5); !bytes.Equal(got, want) {
			t.Errorf("Lookup = %q, want %q", got, want)
		}
		zipH1, modH1, err := r.Hashes(t.Context(), mod(5))
		if zipH1 != "h1:zipexample.com/m5" || modH1 != "h1:modexample.com/m5" || err != nil {
			t.Errorf("Hashes = %q, %q, %v", zipH1, modH1, err)
		}
		r.restart()
		r.db.grow(t, 700, 1400)
	}
	if got := r.remote.requests("lookup/"); got != 1 {
		t.Errorf("%d lookups at the remote, want 1", got)
	}
	if _, ok := r.storage.files["sumdb/"+dbName+"/lookup/example.com/m5@v1.0.0"]; !ok {
		t.Error("record is not stored under its target")
	}
}

func TestLookupEscapes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := module.Version{Path: "example.com/Azure", Version: "v2.0.0-RC1+incompatible"}
	if _, err := r.Lookup(t.Context(), m); err != nil {
		t.Error(err)
	}
	if got := r.remote.requests("lookup/example.com/!azure@v2.0.0-!r!c1+incompatible"); got != 1 {
		t.Errorf("requests: %v", r.remote.counts)
	}
	_, err := r.Lookup(t.Context(), module.Version{Path: "example.com/m", Version: "master"})
	checkReason(t, "query", err, cache.Malformed)
}

func TestCheck(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m, private := mod(3), module.Version{Path: "private.org/x", Version: "v1.0.0"}
	tests := []struct {
		name string
		m    module.Version
		kind target.Kind
		h1   string
		want cache.Reason
		text string
	}{
		{"zip", m, target.Zip, "h1:zipexample.com/m3", 0, ""},
		{"go.mod", m, target.Mod, "h1:modexample.com/m3", 0, ""},
		{
			"zip differs", m, target.Zip, "h1:other", cache.Mismatch,
			"example.com/m3@v1.0.0: bytes from upstream hash to h1:other, the checksum database says h1:zipexample.com/m3",
		},
		{
			"go.mod differs", m, target.Mod, "h1:zipexample.com/m3", cache.Mismatch,
			"example.com/m3@v1.0.0/go.mod: bytes from upstream hash to h1:zipexample.com/m3, the checksum database says h1:modexample.com/m3",
		},
		{
			"unknown", private, target.Zip, "h1:x", cache.Broken,
			"checksum database sum.example.com/db does not know private.org/x@v1.0.0; if the module is private, list it with --private",
		},
		{"info", m, target.Info, "", 0, ""},
		{"info of an unknown version", private, target.Info, "", cache.Broken, "does not know private.org/x@v1.0.0"},
		{"no hash of that kind", m, target.List, "h1:x", cache.Internal, "list"},
	}
	for _, test := range tests {
		err := r.Check(t.Context(), test.m, test.kind, test.h1)
		if test.text == "" {
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		checkReason(t, test.name, err, test.want)
		if !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %q, want %q", test.name, err, test.text)
		}
	}
}

// TestLies wants each lie told apart, nothing stored of it, and the truth
// answered once the remote tells it again.
func TestLies(t *testing.T) {
	t.Parallel()
	honest := newRig(t)
	honest.db.grow(t, 0, 600)
	other := newDatabase(t)
	other.grow(t, 0, 1000)
	only := func(prefix string, lie func([]byte) []byte) func(string, []byte, error) ([]byte, error) {
		return func(rest string, data []byte, err error) ([]byte, error) {
			if err == nil && strings.HasPrefix(rest, prefix) {
				data = lie(bytes.Clone(data))
			}
			return data, err
		}
	}
	replaced := func(from, to string) func([]byte) []byte {
		return func(data []byte) []byte { return bytes.Replace(data, []byte(from), []byte(to), 1) }
	}
	flip := func(data []byte) []byte { data[len(data)/2] ^= 1; return data }
	tests := []struct {
		name   string
		answer func(rest string, data []byte, err error) ([]byte, error)
		want   cache.Reason
	}{
		{"record altered", only("lookup/", replaced("h1:zip", "h1:bad")), cache.Mismatch},
		{"record under another id", only("lookup/", replaced("777\n", "776\n")), cache.Mismatch},
		{"negative id", only("lookup/", replaced("777\n", "-1\n")), cache.Broken},
		{"id beyond its own tree", only("lookup/", replaced("777\n", "7777777\n")), cache.Broken},
		{"record of another module", only("lookup/", replaced("example.com/m777 v1.0.0 ", "example.com/m776 v1.0.0 ")), cache.Mismatch},
		{"record of another version", only("lookup/", func(d []byte) []byte { return bytes.ReplaceAll(d, []byte("v1.0.0"), []byte("v1.0.1")) }), cache.Broken},
		{"signature of another key", func(rest string, _ []byte, _ error) ([]byte, error) { return other.get(rest) }, cache.Mismatch},
		{"tree head altered", only("lookup/", replaced("database tree\n", "database tree\n1")), cache.Mismatch},
		{"html", only("lookup/", func([]byte) []byte { return []byte("<html>") }), cache.Broken},
		{"cut", only("lookup/", func(d []byte) []byte { return d[:len(d)-20] }), cache.Broken},
		{"empty", only("lookup/", func([]byte) []byte { return nil }), cache.Broken},
		{"tile flipped", only("tile/", flip), cache.Mismatch},
		{"tile cut", only("tile/", func(d []byte) []byte { return d[:len(d)-1] }), cache.Broken},
		{"tile empty", only("tile/", func([]byte) []byte { return nil }), cache.Broken},
		{"down", down, cache.Broken},
	}
	for _, warm := range []bool{false, true} {
		for _, test := range tests {
			t.Run(fmt.Sprintf("%s, warm %v", test.name, warm), func(t *testing.T) {
				r := newRig(t)
				r.db.grow(t, 0, 600)
				if warm {
					r.lookup(3)
				}
				r.db.grow(t, 600, 900)
				before, head := r.storage.snapshot(), r.heads.msgs[dbName]
				r.remote.set(test.answer)
				_, err := r.Lookup(t.Context(), mod(777))
				checkReason(t, "Lookup", err, test.want)
				for name := range r.storage.snapshot() {
					if strings.Contains(name, "lookup") && before[name] == nil {
						t.Errorf("%s was stored", name)
					}
				}
				if strings.HasPrefix(test.name, "tile") && warm && !bytes.Equal(head, r.heads.msgs[dbName]) {
					t.Error("the head moved")
				}
				r.checkStored()
				r.remote.set(nil)
				r.lookup(777)
				r.checkStored()
			})
		}
	}
}

// TestFork wants a database that signs two histories to be caught, and nothing
// of the second one to stay.
func TestFork(t *testing.T) {
	t.Parallel()
	for _, size := range []int{300, 500, 2000} { // older, equal and newer than what is known
		r := newRig(t)
		r.db.grow(t, 0, 500)
		r.lookup(3)
		before, head := r.storage.snapshot(), r.heads.msgs[dbName]
		fork := newDatabaseWithKey(r.db.skey, r.db.vkey, "h1:evil")
		fork.grow(t, 0, size)
		r.remote.set(func(rest string, _ []byte, _ error) ([]byte, error) { return fork.get(rest) })
		_, err := r.Lookup(t.Context(), mod(200))
		checkReason(t, "Lookup", err, cache.Mismatch)
		_, err = r.Latest(t.Context())
		checkReason(t, "Latest", err, cache.Mismatch)
		if after := r.storage.snapshot(); len(after) != len(before) {
			t.Errorf("fork of %d: %d files stored, want %d", size, len(after), len(before))
		}
		if !bytes.Equal(head, r.heads.msgs[dbName]) {
			t.Errorf("fork of %d: the head moved", size)
		}
		r.lookup(3)
		r.remote.set(nil)
		r.lookup(200)
		r.checkStored()
	}
}

func TestOlderHeadIsFine(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.db.grow(t, 0, 300)
	old, err := r.db.get("lookup/example.com/m7@v1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	r.db.grow(t, 300, 900)
	r.lookup(800)
	head := r.heads.msgs[dbName]
	r.remote.set(func(rest string, data []byte, err error) ([]byte, error) {
		if strings.HasPrefix(rest, "lookup/") {
			return old, nil
		}
		return data, err
	})
	if got := r.lookup(7); !bytes.Equal(got, old) {
		t.Errorf("Lookup = %q, want %q", got, old)
	}
	if !bytes.Equal(head, r.heads.msgs[dbName]) {
		t.Error("the head moved back")
	}
}

func TestUnknownAndDown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, err := r.Lookup(t.Context(), module.Version{Path: "private.org/x", Version: "v1.0.0"})
	checkReason(t, "unknown", err, cache.NotFound)
	r.lookup(1)
	r.remote.set(down)
	_, err = r.Lookup(t.Context(), mod(2))
	if err != errDown { //nolint:errorlint // itself, not something around it
		t.Errorf("Lookup = %v, want the remote's own %v", err, errDown)
	}
	r.restart()
	r.lookup(1)
	r.remote.set(nil)
	r.lookup(2) // errors are not remembered
	r.heads.err = errors.New("disk gone")
	r.restart()
	r.lookup(1)
	_, err = r.Lookup(t.Context(), mod(3))
	checkReason(t, "heads unreadable", err, cache.Internal)
}

// TestDamagedStorage wants damage in storage to cost a request and nothing else.
func TestDamagedStorage(t *testing.T) {
	t.Parallel()
	damages := map[string]func([]byte) []byte{
		"cut":     func(data []byte) []byte { return data[:len(data)-1] },
		"empty":   func([]byte) []byte { return nil },
		"flipped": func(data []byte) []byte { data[len(data)/4] ^= 1; return data },
		"garbage": func(data []byte) []byte { return bytes.Repeat([]byte("x"), len(data)) },
	}
	for name, change := range damages {
		for _, part := range []string{"/lookup/", "/tile/"} {
			t.Run(name+part, func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				r.db.grow(t, 0, 600)
				want := maps.Collect(func(yield func(int, []byte) bool) {
					for _, i := range []int{1, 300, 599} {
						yield(i, r.lookup(i))
					}
				})
				if r.storage.damage(part, change) == 0 {
					t.Fatal("nothing to damage")
				}
				r.restart()
				r.db.grow(t, 600, 700)
				r.lookup(650)
				for i, want := range want {
					got := r.lookup(i)
					if text, _, _ := bytes.Cut(got, []byte("\n\n")); !bytes.HasPrefix(want, text) {
						t.Errorf("Lookup = %q, want %q", got, want)
					}
				}
			})
		}
	}
}

func TestDamagedHead(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.lookup(1)
	r.heads.msgs[dbName] = []byte("garbage")
	r.restart()
	r.lookup(2)
}

func TestCancelledFirstCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		gate := make(chan struct{})
		r.remote.set(func(_ string, data []byte, err error) ([]byte, error) { <-gate; return data, err })
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() {
			if _, err := r.Lookup(ctx, mod(1)); !errors.Is(err, context.Canceled) {
				t.Errorf("first caller: %v, want %v", err, context.Canceled)
			}
		})
		synctest.Wait()
		for range 5 {
			group.Go(func() {
				if _, err := r.Lookup(t.Context(), mod(1)); err != nil {
					t.Errorf("another caller: %v", err)
				}
			})
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(gate)
		group.Wait()
		if got := r.remote.requests("lookup/"); got != 1 {
			t.Errorf("%d lookups at the remote, want 1", got)
		}
	})
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.db.grow(t, 0, 1000)
	var group sync.WaitGroup
	for i := range 120 {
		group.Go(func() {
			r.lookup(i / 2 * 20)
			if _, err := r.Latest(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := r.tile(fmt.Sprintf("tile/8/0/00%d", i%3)); err != nil {
				t.Error(err)
			}
			if _, err := r.tile(fmt.Sprintf("tile/8/data/000.p/%d", i+1)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	r.checkStored()
	for rest, n := range r.remote.counts {
		if n > 1 {
			t.Errorf("%s was asked for %d times, want once", rest, n)
		}
	}
}
