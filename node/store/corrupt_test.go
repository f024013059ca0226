package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// TestFlippedFile flips one byte of an object's file: first byte, around chunks,
// last byte; while the store is open and has just served it, and between two runs.
func TestFlippedFile(t *testing.T) {
	t.Parallel()
	for _, ext := range []string{"zip", "mod", "info"} {
		size := map[string]int{"zip": 3*chunkSize + 5, "mod": 700, "info": 60}[ext]
		for _, reopen := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s reopen=%v", ext, reopen), func(t *testing.T) {
				t.Parallel()
				name := "example.com/a/@v/v1.0.0." + ext
				data := content(name, size)
				d := openTest(t, t.TempDir())
				for _, off := range []int{0, 1, len(data) / 2, chunkSize - 1, chunkSize, 2 * chunkSize, len(data) - 1} {
					if off >= len(data) {
						continue
					}
					mustCommit(t, d, name, data)
					want(t, d, name, data)
					want(t, d, name, data)
					flip(t, file(d, name), int64(off), 0x10)
					if reopen {
						d.Close()
						d = openTest(t, d.dir)
					}
					wantCorrupt(t, d, name)
					wantAbsent(t, d, name)
					if slices.Contains(walkNames(t, d), name) {
						t.Errorf("offset %d: entry still there", off)
					}
				}
				mustCommit(t, d, name, data)
				want(t, d, name, data)
				if len(files(t, d.quarantine.dir)) == 0 {
					t.Error("nothing in quarantine")
				}
			})
		}
	}
}

// TestFlippedWhenSettled flips a byte of a file whose check is being remembered.
func TestFlippedWhenSettled(t *testing.T) {
	t.Parallel()
	const name = "example.com/a/@v/v1.0.0.zip"
	data := content(name, 5000)
	d := openTest(t, t.TempDir())
	mustCommit(t, d, name, data)
	eventually(t, "the check counts", func() bool {
		want(t, d, name, data)
		_, ok := d.verified.get(name)
		return ok
	})
	flip(t, file(d, name), 100, 1)
	wantCorrupt(t, d, name)
}

func TestTruncated(t *testing.T) {
	t.Parallel()
	const name = "example.com/a/@v/v1.0.0.zip"
	data := content(name, 2*chunkSize)
	d := openTest(t, t.TempDir())
	for _, size := range []int64{0, 1, chunkSize - 1, chunkSize, 2 * chunkSize, int64(len(data)) - 1, int64(len(data)) + 1} {
		mustCommit(t, d, name, data)
		if err := os.Truncate(file(d, name), size); err != nil {
			t.Fatal(err)
		}
		wantCorrupt(t, d, name)
	}
}

// TestCheckIsShared opens a file that is not known to be right many times at once.
func TestCheckIsShared(t *testing.T) {
	t.Parallel()
	const name = "example.com/a/@v/v1.0.0.zip"
	data := content(name, 5000)
	d := openTest(t, t.TempDir())
	mustCommit(t, d, name, data)
	eventually(t, "the check counts", func() bool {
		want(t, d, name, data)
		_, ok := d.verified.get(name)
		return ok
	})
	d.verified.forget(name)
	var checks atomic.Int32
	d.setStep(func(string) error { checks.Add(1); return nil })
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { want(t, d, name, data) })
	}
	wg.Wait()
	if got := checks.Load(); got != 1 {
		t.Errorf("%d checks, want 1", got)
	}
}

// fill commits n small objects and returns them by name.
func fill(t testing.TB, d *Disk, n int) map[string]string {
	t.Helper()
	objects := make(map[string]string)
	var wg sync.WaitGroup
	for i := range n {
		name := fmt.Sprintf("example.com/%s/m%d/@v/v1.0.0.mod", strings.Repeat("long", 20), i)
		data := content(name, 200)
		objects[name] = data
		wg.Go(func() {
			if err := commit(t, d, name, data); err != nil {
				t.Error(err)
			}
		})
		if i%32 == 31 {
			wg.Wait()
		}
	}
	wg.Wait()
	return objects
}

func wantAll(t testing.TB, d *Disk, objects map[string]string) {
	t.Helper()
	for name, data := range objects {
		want(t, d, name, data)
	}
}

func TestLostIndex(t *testing.T) {
	t.Parallel()
	breaks := map[string]func(path string) error{
		"missing": os.Remove,
		"empty":   func(path string) error { return os.Truncate(path, 0) },
		"short":   func(path string) error { return os.Truncate(path, 5000) },
		"garbage": func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("garbage"), 10_000), 0o666) },
		"zeros":   func(path string) error { return os.WriteFile(path, make([]byte, 100_000), 0o666) },
	}
	for name, damage := range breaks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := openTest(t, t.TempDir())
			objects := fill(t, d, 60)
			if err := d.PutDocument("example.com/a/@v/list", Document{Body: []byte("x")}); err != nil {
				t.Fatal(err)
			}
			d.Close()
			if err := damage(filepath.Join(d.dir, "index.db")); err != nil {
				t.Fatal(err)
			}
			d = openTest(t, d.dir)
			for name, data := range objects {
				want(t, d, name, data) // at once
				break
			}
			eventually(t, "the walk is complete", func() bool { return len(walkNames(t, d)) == len(objects) && d.complete() })
			wantAll(t, d, objects)
			if _, err := d.Document("example.com/a/@v/list"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Document: %v, want fs.ErrNotExist", err)
			}
			if got := files(t, d.quarantine.dir); len(got) != 0 {
				t.Errorf("quarantine holds %q", got)
			}
			o, err := d.Open(t.Context(), walkNames(t, d)[0])
			if err != nil || !strings.HasPrefix(o.H1, "h1:") {
				t.Errorf("adopted object: %v, %v", o, err)
			}
		})
	}
}

func TestAdoption(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	good, bad := "example.com/a/@v/v1.0.0.mod", "example.com/a/@v/v1.0.1.mod"
	if err := os.MkdirAll(filepath.Dir(file(d, good)), 0o777); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{good: content("a", 10), bad: "bad"} {
		if err := os.WriteFile(file(d, name), []byte(data), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want(t, d, good, content("a", 10))
	wantCorrupt(t, d, bad)
	if got := walkNames(t, d); !slices.Equal(got, []string{good}) {
		t.Errorf("Walk visits %q, want %q", got, good)
	}
	d.inspect = nil
	if err := os.WriteFile(file(d, bad), []byte(content("a", 10)), 0o666); err != nil {
		t.Fatal(err)
	}
	wantCorrupt(t, d, bad)
}

// TestFlippedIndex flips bytes all over the index, with the store closed and with
// it open. Whatever it hits, right bytes come back and new objects can be stored.
func TestFlippedIndex(t *testing.T) {
	t.Parallel()
	seed, err := OpenDisk(DiskConfig{Dir: t.TempDir(), Inspect: inspectContent, Place: placeAll})
	if err != nil {
		t.Fatal(err)
	}
	objects := fill(t, seed, 40)
	seed.Close()
	size := indexSize(t, seed.dir)
	step := int64(211)
	if testing.Short() {
		step = 4001
	}
	for _, open := range []bool{false, true} {
		t.Run(fmt.Sprintf("open=%v", open), func(t *testing.T) {
			t.Parallel()
			n := 0
			for off := int64(0); off < size; off += step {
				n++
				flipIndex(t, seed.dir, open, off, byte(1)<<(n%8), objects)
			}
		})
	}
}

func indexSize(t *testing.T, dir string) int64 {
	t.Helper()
	info, err := os.Stat(filepath.Join(dir, "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// placeAll puts everything into one partition.
func placeAll(string) (partition int, fixed bool) { return 0, true }

func flipIndex(t *testing.T, from string, open bool, off int64, mask byte, objects map[string]string) {
	t.Helper()
	dir := t.TempDir()
	defer os.RemoveAll(dir)
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	index := filepath.Join(dir, "index.db")
	if !open {
		flip(t, index, off, mask)
	}
	d, err := OpenDisk(DiskConfig{Dir: dir, Inspect: inspectContent, Place: placeAll})
	if err != nil {
		t.Fatalf("offset %d: %v", off, err)
	}
	defer d.Close()
	if open {
		flip(t, index, off, mask)
	}
	walkNames(t, d)
	mustSums(t, d)
	wantAll(t, d, objects)
	mustKeys(t, d, 0)
	mustCommit(t, d, "example.com/new/@v/v1.0.0.mod", content("new", 10))
	want(t, d, "example.com/new/@v/v1.0.0.mod", content("new", 10))
	if err := d.Remove("example.com/new/@v/v1.0.0.mod"); err != nil {
		t.Errorf("offset %d: Remove: %v", off, err)
	}
	wantAll(t, d, objects)
	if got := files(t, d.quarantine.dir); len(got) != 0 {
		t.Errorf("offset %d: quarantine holds %q", off, got)
	}
	if t.Failed() {
		t.Fatalf("offset %d mask %#x", off, mask)
	}
}

// TestIndexCutWhileOpen takes the mapped file away under bbolt, so that reading it
// is a memory fault.
func TestIndexCutWhileOpen(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	objects := fill(t, d, 60)
	if err := os.Truncate(filepath.Join(d.dir, "index.db"), 0); err != nil {
		t.Fatal(err)
	}
	wantAll(t, d, objects)
	if err := d.PutDocument("a/@latest", Document{Body: []byte("x")}); err != nil {
		t.Error(err)
	}
	eventually(t, "the index is rebuilt", func() bool { return len(walkNames(t, d)) == len(objects) })
	if _, err := os.Stat(filepath.Join(d.dir, "index.db.broken")); err != nil {
		t.Errorf("broken index not kept: %v", err)
	}
}

// TestCycleInIndex points a branch page at itself, which would end the process.
func TestCycleInIndex(t *testing.T) {
	t.Parallel()
	for _, open := range []bool{false, true} {
		t.Run(fmt.Sprintf("open=%v", open), func(t *testing.T) {
			t.Parallel()
			d := openTest(t, t.TempDir())
			objects := fill(t, d, 150)
			root, pageSize := objectsRoot(t, d)
			if !open {
				d.Close()
			}
			pointToSelf(t, filepath.Join(d.dir, "index.db"), root, pageSize)
			if !open {
				d = openTest(t, d.dir)
			}
			d.verified = newVerified()
			wantAll(t, d, objects)
			eventually(t, "the index is rebuilt", func() bool { return len(walkNames(t, d)) == len(objects) })
		})
	}
}

func objectsRoot(t *testing.T, d *Disk) (root uint64, pageSize int) {
	t.Helper()
	err := d.index.view(func(f *indexFile, tx *bolt.Tx) error {
		tree := f.tree(tx.Bucket([]byte(bucketObjects)))
		root, pageSize = tree.root, tree.pageSize
		p, err := tree.branch(root)
		if p == nil {
			t.Fatal("the root is no branch page; store more objects")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return root, pageSize
}

func pointToSelf(t *testing.T, path string, page uint64, pageSize int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make(branchPage, pageSize)
	at := int64(page) * int64(pageSize)
	if _, err := f.ReadAt(p, at); err != nil {
		t.Fatal(err)
	}
	for i := range p.count() {
		copy(p.element(i)[8:16], p[:8])
	}
	if _, err := f.WriteAt(p, at); err != nil {
		t.Fatal(err)
	}
}
