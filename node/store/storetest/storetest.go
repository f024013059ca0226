// Package storetest holds the tests that every implementation of package
// store passes.
package storetest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/store"
)

// Test runs the suite. open returns a new, empty pair on each call and
// cleans up by t.
func Test(t *testing.T, open func(t *testing.T) (store.Store, store.Documents)) {
	tests := []struct {
		name string
		run  func(*testing.T, store.Store)
	}{
		{"commit then open", testCommit},
		{"what is known of the content", testProof},
		{"sizes around the chunk", testSizes},
		{"absent", testAbsent},
		{"bad names", testBadNames},
		{"readers follow the writer", testFollow},
		{"reserve", testReserve},
		{"abort", testAbort},
		{"calls after the end", testEnded},
		{"replace", testReplace},
		{"remove", testRemove},
		{"stat", testStat},
		{"usage", testUsage},
		{"shares", testShares},
		{"pages of keys", testKeyPages},
		{"walk", testWalk},
		{"walk stops", testWalkStops},
		{"cancelled", testCancelled},
		{"many at once", testConcurrent},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, _ := open(t)
			test.run(t, s)
		})
	}
	t.Run("documents", func(t *testing.T) {
		t.Parallel()
		s, docs := open(t)
		testDocuments(t, s, docs)
	})
}

// Put commits data.
func Put(t testing.TB, s store.Store, name, data, h1 string) store.Entry {
	t.Helper()
	p, err := s.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Abort()
	if _, err := io.WriteString(p, data); err != nil {
		t.Fatal(err)
	}
	e, err := p.Commit(store.Proof{H1: h1})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// Get returns the entry and content of an object, having checked that they fit.
func Get(t testing.TB, s store.Store, name string) (store.Entry, string, error) {
	t.Helper()
	o, err := s.Open(t.Context(), name)
	if err != nil {
		return store.Entry{}, "", err
	}
	defer o.File.Close()
	b, err := io.ReadAll(o.File)
	if err != nil {
		t.Fatal(err)
	}
	if o.Name != name || o.Size != int64(len(b)) || o.SHA256 != sha256.Sum256(b) {
		t.Errorf("Open(%q): entry %+v does not fit its %d bytes", name, o.Entry, len(b))
	}
	return o.Entry, string(b), nil
}

// Want checks that name holds data.
func Want(t testing.TB, s store.Store, name, data string) {
	t.Helper()
	_, got, err := Get(t, s, name)
	if err != nil || got != data {
		t.Errorf("Open(%q) = %.40q (%d bytes), %v, want %.40q (%d bytes)", name, got, len(got), err, data, len(data))
	}
}

// WantAbsent checks that there is no object of that name.
func WantAbsent(t testing.TB, s store.Store, name string) {
	t.Helper()
	if _, got, err := Get(t, s, name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open(%q) = %.40q, %v, want fs.ErrNotExist", name, got, err)
	}
}

func testProof(t *testing.T, s store.Store) {
	for _, want := range []store.Proof{{}, {H1: "h1:x"}, {H1: "h1:x", Verified: true}} {
		p, err := s.Create("a/proven")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Commit(want); err != nil {
			t.Fatal(err)
		}
		obj, err := s.Open(t.Context(), "a/proven")
		if err != nil {
			t.Fatal(err)
		}
		obj.File.Close()
		if entry, err := s.Stat("a/proven"); err != nil || entry.Proof != want || obj.Proof != want {
			t.Errorf("Stat: %+v, %v, Open: %+v, want %+v", entry.Proof, err, obj.Proof, want)
		}
	}
}

func testCommit(t *testing.T, s store.Store) {
	const name, data = "golang.org/x/mod/@v/v0.20.0.mod", "module golang.org/x/mod\n"
	before := time.Now().Add(-time.Second)
	e := Put(t, s, name, data, "h1:abc=")
	if e.Name != name || e.Size != int64(len(data)) || e.SHA256 != sha256.Sum256([]byte(data)) || e.H1 != "h1:abc=" {
		t.Errorf("Commit = %+v", e)
	}
	if e.Stored.Before(before) || e.Stored.After(time.Now().Add(time.Second)) {
		t.Errorf("Stored = %v, want about now", e.Stored)
	}
	for range 2 {
		got, body, err := Get(t, s, name)
		if err != nil || body != data || !sameEntry(got, e) {
			t.Errorf("Open = %+v %q %v, want %+v", got, body, err, e)
		}
	}
}

func sameEntry(a, b store.Entry) bool {
	sameTime := a.Stored.Equal(b.Stored)
	a.Stored, b.Stored = time.Time{}, time.Time{}
	return a == b && sameTime
}

func testSizes(t *testing.T, s store.Store) {
	const chunk = 128 << 10
	for _, size := range []int{0, 1, chunk - 1, chunk, chunk + 1, 3*chunk + 17} {
		name := fmt.Sprintf("example.com/size/@v/v1.0.%d.zip", size)
		data := bytes.Repeat([]byte("0123456789abcdefg"), size/17+1)[:size]
		p, err := s.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		for piece := range slices.Chunk(data, 50_001) { // pieces that fit no chunk
			if _, err := p.Write(piece); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := p.Commit(store.Proof{}); err != nil {
			t.Fatal(err)
		}
		Want(t, s, name, string(data))
	}
}

func testAbsent(t *testing.T, s store.Store) {
	Put(t, s, "example.com/a/@v/v1.0.0.mod", "x", "")
	for _, name := range []string{
		"example.com/b/@v/v1.0.0.mod", "example.com/a/@v", "example.com/a/@v/v1.0.0.mod/x", "example.com/a/@v/list",
		"example.com/" + strings.Repeat("a", 300),
	} {
		WantAbsent(t, s, name)
	}
}

func testBadNames(t *testing.T, s store.Store) {
	for _, name := range []string{
		"", ".", "..", "/", "/etc/passwd", "a/../b", "../a", "a/..", "a//b", "a/", "./a", "a/./b", "a\x00b", `a\b`,
		strings.Repeat("a/", 3000) + "b",
	} {
		_, openErr := s.Open(t.Context(), name)
		_, createErr := s.Create(name)
		_, statErr := s.Stat(name)
		for op, err := range map[string]error{"Open": openErr, "Stat": statErr, "Create": createErr, "Remove": s.Remove(name)} {
			if !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%s(%.40q): %v, want fs.ErrInvalid", op, name, err)
			}
		}
	}
	if _, err := s.Create("example.com/a/@v/list"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("Create of a list: %v, want fs.ErrInvalid", err)
	}
}

func testFollow(t *testing.T, s store.Store) {
	const name = "example.com/a/@v/v1.0.0.zip"
	p, err := s.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	early, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	if b, err := io.ReadAll(early); len(b) != 0 || err != nil {
		t.Errorf("read %q, %v before the first write", b, err)
	}
	write(t, p, "one ")
	wantRest(t, early, "one ")
	WantAbsent(t, s, name)
	write(t, p, "two")
	middle, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer middle.Close()
	if _, err := p.Commit(store.Proof{}); err != nil {
		t.Fatal(err)
	}
	wantRest(t, early, "two")
	wantRest(t, middle, "one two")
	late, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	wantRest(t, late, "one two")
	if n, err := late.Seek(-3, io.SeekEnd); n != 4 || err != nil {
		t.Errorf("Seek(-3, end) = %d, %v, want 4", n, err)
	}
	wantRest(t, late, "two")
	b := make([]byte, 3)
	if n, err := late.ReadAt(b, 1); n != 3 || err != nil || string(b) != "ne " {
		t.Errorf("ReadAt = %d, %v, %q", n, err, b)
	}
}

func write(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}

func wantRest(t *testing.T, r io.Reader, want string) {
	t.Helper()
	if b, err := io.ReadAll(r); string(b) != want || err != nil {
		t.Errorf("read %q, %v, want %q", b, err, want)
	}
}

func testAbort(t *testing.T, s store.Store) {
	const name = "example.com/a/@v/v1.0.0.zip"
	Put(t, s, name, "old", "")
	p, err := s.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	write(t, p, "new")
	r, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p.Abort()
	p.Abort()
	wantRest(t, r, "new")
	Want(t, s, name, "old")
	if _, err := p.Open(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Open after Abort: %v, want fs.ErrClosed", err)
	}
}

// testReserve announces lengths, right and wrong ones.
func testReserve(t *testing.T, s store.Store) {
	const data = "some content"
	for i, size := range []int{len(data), 0, 1, 1 << 20} {
		name := fmt.Sprintf("example.com/a/@v/v1.0.%d.zip", i)
		p, err := s.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := p.Reserve(int64(size)); err != nil {
				t.Errorf("Reserve(%d): %v", size, err)
			}
		}
		write(t, p, data)
		if _, err := p.Commit(store.Proof{}); err != nil {
			t.Fatal(err)
		}
		if err := p.Reserve(1); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("Reserve after Commit: %v, want fs.ErrClosed", err)
		}
		Want(t, s, name, data)
	}
	if u, ok := s.(interface{ Usage() store.Usage }); !ok || u.Usage().Reserved != 0 {
		t.Error("something stays reserved")
	}
}

func testEnded(t *testing.T, s store.Store) {
	const name = "example.com/a/@v/v1.0.0.zip"
	for _, end := range []string{"commit", "abort"} {
		p, err := s.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if end == "commit" {
			_, err = p.Commit(store.Proof{})
		} else {
			p.Abort()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Write([]byte("x")); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("Write after %s: %v, want fs.ErrClosed", end, err)
		}
		if _, err := p.Commit(store.Proof{}); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("Commit after %s: %v, want fs.ErrClosed", end, err)
		}
		p.Abort()
		Want(t, s, name, "")
	}
}

func testReplace(t *testing.T, s store.Store) {
	const name = "example.com/a/@v/v1.0.0.info"
	p, err := s.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	write(t, p, "one")
	if _, err := p.Commit(store.Proof{}); err != nil {
		t.Fatal(err)
	}
	o, err := s.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer o.File.Close()
	for _, data := range []string{"two", "three", ""} {
		Put(t, s, name, data, "h1:"+data)
		Want(t, s, name, data)
	}
	wantRest(t, o.File, "one")
	if _, err := p.Open(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Pending.Open after another Commit: %v, want fs.ErrNotExist", err)
	}
}

func testRemove(t *testing.T, s store.Store) {
	const name = "example.com/a/@v/v1.0.0.info"
	Put(t, s, name, "one", "")
	o, err := s.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer o.File.Close()
	for range 2 {
		if err := s.Remove(name); err != nil {
			t.Errorf("Remove: %v", err)
		}
		WantAbsent(t, s, name)
	}
	wantRest(t, o.File, "one")
	if got := walk(t, s, ""); len(got) != 0 {
		t.Errorf("Walk after Remove visits %q", got)
	}
	Put(t, s, name, "again", "")
	Want(t, s, name, "again")
}
