package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func keepHot(d *Disk, name, data string) error {
	p, err := d.Hot().Create(name)
	if err != nil {
		return err
	}
	defer p.Abort()
	if err := p.Reserve(int64(len(data))); err != nil {
		return err
	}
	if _, err := io.WriteString(p, data); err != nil {
		return err
	}
	_, err = p.Commit(Proof{H1: "h1:x", Verified: true})
	return err
}

func readHot(t testing.TB, d *Disk, name string) (string, error) {
	t.Helper()
	o, err := d.Hot().Open(t.Context(), name)
	if err != nil {
		return "", err
	}
	defer o.File.Close()
	if o.H1 != "h1:x" || !o.Verified || o.Name != name {
		t.Errorf("entry %+v", o.Entry)
	}
	b, err := io.ReadAll(o.File)
	if int64(len(b)) != o.Size {
		t.Errorf("%d bytes, %d in the entry", len(b), o.Size)
	}
	return string(b), err
}

func checkHotFiles(t testing.TB, d *Disk, want int) {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(d.dir, "hot"))
	if err != nil || len(files) != want {
		t.Errorf("%d files in the hot area, %v, want %d", len(files), err, want)
	}
}

// A hot copy is no object of the store, but counts.
func TestHotCopiesAreApart(t *testing.T) {
	t.Parallel()
	d := openLimited(t, t.TempDir(), 8<<20)
	before := d.Usage()
	if err := keepHot(d, "a/@v/v1.zip", "hello"); err != nil {
		t.Fatal(err)
	}
	if got, err := readHot(t, d, "a/@v/v1.zip"); got != "hello" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := d.Open(t.Context(), "a/@v/v1.zip"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the store has it, too: %v", err)
	}
	u := d.Usage()
	if u.Objects != 0 || u.Hot != charge(5) || u.Taken-before.Taken != charge(5) || u.Reserved != 0 {
		t.Errorf("usage %+v, want %d bytes more and no object", u, charge(5))
	}
	if err := d.Remove("a/@v/v1.zip"); err != nil {
		t.Fatal(err)
	}
	if _, err := readHot(t, d, "a/@v/v1.zip"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
	checkHotFiles(t, d, 0)
}

func TestHotAreaIsEmptyAfterAStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openTest(t, dir)
	if err := keepHot(d, "a/@v/v1.zip", "hello"); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = openTest(t, dir)
	checkHotFiles(t, d, 0)
	if u := d.Usage(); u.Hot != 0 {
		t.Errorf("%d bytes are still counted", u.Hot)
	}
}

// The area takes an eighth of the limit, whatever is put there; what was used longest
// ago goes.
func TestHotAreaIsBounded(t *testing.T) {
	t.Parallel()
	d := openLimited(t, t.TempDir(), 8<<20)
	most, size := int64(1<<20), 200<<10
	for i := range 20 {
		if err := keepHot(d, fmt.Sprintf("m/@v/v%d.zip", i), strings.Repeat("x", size)); err != nil {
			t.Fatal(err)
		}
		if _, err := readHot(t, d, "m/@v/v0.zip"); err != nil {
			t.Fatalf("after %d more the one that is always used is gone: %v", i, err)
		}
		if u := d.Usage(); u.Hot > most || u.Reserved != 0 {
			t.Fatalf("after %d: %d bytes of %d, %d reserved", i, u.Hot, most, u.Reserved)
		}
	}
	if _, err := readHot(t, d, "m/@v/v1.zip"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the one that was never used is still there: %v", err)
	}
	checkHotFiles(t, d, 5)
	if err := keepHot(d, "m/@v/huge.zip", strings.Repeat("x", 2<<20)); !errors.Is(err, ErrFull) {
		t.Errorf("more than an eighth: %v, want %v", err, ErrFull)
	}
	checkHotFiles(t, d, 5) // and nothing made way for it
}

// Objects that are this node's own never make way for hot copies; these do for them.
func TestOwnObjectsGoFirstIn(t *testing.T) {
	t.Parallel()
	d := openLimited(t, t.TempDir(), 8<<20)
	if err := keepHot(d, "hot/@v/v1.zip", strings.Repeat("x", 900<<10)); err != nil {
		t.Fatal(err)
	}
	for i := range 12 {
		mustCommit(t, d, fmt.Sprintf("own/@v/v%d.zip", i), strings.Repeat("x", 600<<10))
	}
	eventually(t, "the hot copy to go", func() bool { return d.Usage().Hot == 0 })
	for i := range 12 {
		if _, err := d.Stat(fmt.Sprintf("own/@v/v%d.zip", i)); err != nil {
			t.Errorf("own object %d was evicted while there were hot copies: %v", i, err)
		}
	}
	if err := keepHot(d, "hot/@v/v1.zip", strings.Repeat("x", 900<<10)); !errors.Is(err, ErrFull) {
		t.Errorf("a hot copy on a full disk: %v, want %v", err, ErrFull)
	}
}

// What somebody has changed is not handed out.
func TestHotCopiesAreChecked(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	for name, change := range map[string]func(path string) error{
		"flipped": func(path string) error { return os.WriteFile(path, []byte("hellp"), 0o666) },
		"longer":  func(path string) error { return os.WriteFile(path, []byte("hello, world"), 0o666) },
		"removed": os.Remove,
	} {
		if err := keepHot(d, name, "hello"); err != nil {
			t.Fatal(err)
		}
		files, _ := filepath.Glob(filepath.Join(d.dir, "hot", "*"))
		if err := change(files[0]); err != nil {
			t.Fatal(err)
		}
		if got, err := readHot(t, d, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %q, %v, want none", name, got, err)
		}
		checkHotFiles(t, d, 0)
	}
	if u := d.Usage(); u.Hot != 0 || u.Reserved != 0 {
		t.Errorf("%+v, want nothing taken", u)
	}
}

// What is purged leaves the hot area too, and stays away.
func TestHotCopiesArePurged(t *testing.T) {
	t.Parallel()
	var b banned
	d := openBanned(t, t.TempDir(), &b)
	for _, name := range []string{"a/@v/v1.zip", "a/@v/v2.zip", "b/@v/v1.zip"} {
		if err := keepHot(d, name, "hello"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.PurgeObject(t.Context(), "b/@v/v1.zip"); err != nil {
		t.Error(err)
	}
	b.ban("a/")
	if _, err := readHot(t, d, "a/@v/v1.zip"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before it is removed: %v", err)
	}
	if _, err := d.Purge(t.Context(), "a/", all); err != nil {
		t.Error(err)
	}
	checkHotFiles(t, d, 0)
	if err := keepHot(d, "a/@v/v1.zip", "hello"); !errors.Is(err, ErrPurged) {
		t.Errorf("keeping it again: %v, want %v", err, ErrPurged)
	}
	checkHotFiles(t, d, 0)
}
