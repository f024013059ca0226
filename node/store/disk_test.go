package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestOpenDiskRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		prepare func(dir string) error
		below   string // what is opened below dir
		want    string
	}{
		{"a file", func(dir string) error { return os.WriteFile(dir+"/f", nil, 0o666) }, "f", "not a directory"},
		{"below a file", func(dir string) error { return os.WriteFile(dir+"/f", nil, 0o666) }, "f/x", "not a directory"},
		{"objects is a file", func(dir string) error { return os.WriteFile(dir+"/objects", nil, 0o666) }, "", "not a directory"},
		{"newer format", func(dir string) error { return os.WriteFile(dir+"/format", []byte("2\n"), 0o666) }, "", "newer version (format 2, this one knows 1)"},
		{"no format", func(dir string) error { return os.WriteFile(dir+"/format", []byte("x"), 0o666) }, "", `holds "x" and not a number`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := test.prepare(dir); err != nil {
				t.Fatal(err)
			}
			dir = filepath.Join(dir, test.below)
			d, err := OpenDisk(DiskConfig{Dir: dir})
			if err == nil {
				d.Close()
				t.Fatal("OpenDisk succeeds")
			}
			if text := err.Error(); !strings.Contains(text, test.want) || !strings.Contains(text, dir) || strings.Contains(text, "\n") {
				t.Errorf("OpenDisk: %v, want %s and %s in one line", err, test.want, dir)
			}
		})
	}
}

func TestOpenDiskTwice(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	mustCommit(t, d, "a/1", "x")
	if _, err := OpenDisk(DiskConfig{Dir: d.dir}); !errors.Is(err, errInUse) {
		t.Errorf("second OpenDisk: %v, want %v", err, errInUse)
	}
	want(t, d, "a/1", "x")
	d.Close()
	again := openTest(t, d.dir)
	want(t, again, "a/1", "x")
}

func TestClosed(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	mustCommit(t, d, "a/1", "x")
	d.Close()
	if err := d.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	_, docErr := d.Document("a/@latest")
	for op, err := range map[string]error{
		"Commit": commit(t, d, "a/2", "x"), "Remove": d.Remove("a/1"), "Document": docErr,
		"PutDocument": d.PutDocument("a/@latest", Document{}),
		"Walk":        d.Walk(t.Context(), "", func(Entry) bool { return true }),
	} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s: %v, want fs.ErrClosed", op, err)
		}
	}
}

func TestLeftoversAreSwept(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	p, err := d.Create("a/1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	d.Close()
	tmp := filepath.Join(d.dir, "tmp")
	if err := os.MkdirAll(filepath.Join(tmp, "x/y"), 0o777); err != nil {
		t.Fatal(err)
	}
	d = openTest(t, d.dir)
	if got := files(t, tmp); len(got) != 0 {
		t.Errorf("tmp holds %q", got)
	}
	wantAbsent(t, d, "a/1")
}

func TestFileRemovedByHand(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	mustCommit(t, d, "a/b/1", "x")
	want(t, d, "a/b/1", "x")
	if err := os.RemoveAll(file(d, "a")); err != nil {
		t.Fatal(err)
	}
	wantAbsent(t, d, "a/b/1")
	if got := walkNames(t, d); len(got) != 0 {
		t.Errorf("Walk visits %q", got)
	}
	mustCommit(t, d, "a/b/1", "y")
	want(t, d, "a/b/1", "y")
}

func TestListFile(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	const name = "example.com/a/@v/list"
	for _, body := range []string{"v1.0.0\n", "v1.0.0\nv1.1.0\n", ""} {
		if err := d.PutDocument(name, Document{Body: []byte(body)}); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(file(d, name)); string(b) != body || err != nil {
			t.Errorf("file = %q, %v, want %q", b, err, body)
		}
	}
	if err := os.WriteFile(file(d, name), []byte("by hand"), 0o666); err != nil {
		t.Fatal(err)
	}
	if doc, err := d.Document(name); len(doc.Body) != 0 || err != nil {
		t.Errorf("Document = %q, %v, want what was put", doc.Body, err)
	}
	if err := d.PutDocument("example.com/a/@latest", Document{Body: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file(d, "example.com/a/@latest")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file for @latest: %v, want none", err)
	}
}

func TestQuarantineIsBounded(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	bad := filepath.Join(d.dir, "bad")
	take := func(name string, size int64) {
		t.Helper()
		if err := os.WriteFile(bad, nil, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(bad, size); err != nil { // sparse
			t.Fatal(err)
		}
		if err := d.quarantine.take(bad, name); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		take(fmt.Sprintf("big/%d", i), maxQuarantineBytes/2)
	}
	if got := files(t, d.quarantine.dir); len(got) != 2 || !strings.HasSuffix(got[0], "-big%2f1") {
		t.Errorf("quarantine holds %q, want the two newest", got)
	}
	for i := range maxQuarantineFiles + 2 {
		take(fmt.Sprintf("%s/%d", strings.Repeat("long/", 100), i), 1)
	}
	if got := files(t, d.quarantine.dir); len(got) != maxQuarantineFiles || !strings.HasSuffix(got[0], "%2f2") {
		t.Errorf("quarantine holds %d files from %q on, want %d", len(got), got[0], maxQuarantineFiles)
	}
}

func TestKeyLock(t *testing.T) {
	t.Parallel()
	var l keyLock
	release, err := l.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.lock(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("lock of a held key: %v, want context.Canceled", err)
	}
	other, err := l.lock(ctx, "b")
	if err != nil {
		t.Errorf("lock of a free key: %v", err)
	}
	other()
	n := 0
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			release, err := l.lock(t.Context(), "a")
			if err != nil {
				t.Error(err)
				return
			}
			defer release()
			n++
		})
	}
	release()
	wg.Wait()
	if n != 50 || len(l.held) != 0 {
		t.Errorf("%d goroutines had the lock, %d keys held, want 50 and 0", n, len(l.held))
	}
}

func TestVerifiedIsBounded(t *testing.T) {
	t.Parallel()
	v := newVerified()
	var c checkedFile
	for i := range maxVerified + 5 {
		c.entry.Name = fmt.Sprint(i)
		c.at = c.id.changed.Add(settle)
		v.add(c)
	}
	if len(v.byName) != maxVerified || v.order.Len() != maxVerified {
		t.Errorf("%d names, %d in order, want %d", len(v.byName), v.order.Len(), maxVerified)
	}
	if _, ok := v.byName["4"]; ok {
		t.Error("the oldest is still there")
	}
}

func BenchmarkOpenHit(b *testing.B) {
	d := openTest(b, b.TempDir())
	mustCommit(b, d, "a/1", content("x", 200))
	eventually(b, "the check counts", func() bool {
		want(b, d, "a/1", content("x", 200))
		_, ok := d.verified.get("a/1")
		return ok
	})
	benchmarkOpen(b, d, func() {})
}

// BenchmarkOpenUnchecked reads entry and file each time.
func BenchmarkOpenUnchecked(b *testing.B) {
	d := openTest(b, b.TempDir())
	fill(b, d, 500)
	mustCommit(b, d, "a/1", content("x", 200))
	benchmarkOpen(b, d, func() { d.verified.forget("a/1") })
}

func benchmarkOpen(b *testing.B, d *Disk, before func()) {
	b.Helper()
	b.ReportAllocs()
	for b.Loop() {
		before()
		o, err := d.Open(b.Context(), "a/1")
		if err != nil {
			b.Fatal(err)
		}
		o.File.Close()
	}
}

func BenchmarkOpenAbsent(b *testing.B) {
	d := openTest(b, b.TempDir())
	fill(b, d, 500)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Open(b.Context(), "a/1"); !errors.Is(err, fs.ErrNotExist) {
			b.Fatal(err)
		}
	}
}

func BenchmarkCommit(b *testing.B) {
	for _, writers := range []int{1, 16} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			d := openTest(b, b.TempDir())
			names := slices.Collect(func(yield func(string) bool) {
				for i := 0; yield(fmt.Sprintf("a/%d", i)); i++ {
					if i == b.N {
						return
					}
				}
			})
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					for i := w; i < b.N; i += writers {
						if err := commit(b, d, names[i], "x"); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
