package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// banned is what DiskConfig.Purged asks in tests.
type banned struct{ prefix atomic.Pointer[string] }

func (b *banned) ban(prefix string) { b.prefix.Store(&prefix) }

func (b *banned) purged(name string) bool {
	p := b.prefix.Load()
	return p != nil && strings.HasPrefix(name, *p)
}

func openBanned(t testing.TB, dir string, b *banned) *Disk {
	t.Helper()
	d, err := OpenDisk(DiskConfig{Dir: dir, Inspect: inspectContent, Purged: b.purged})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func all(string) bool { return true }

func TestPurgeRemovesEverythingBelow(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	names := []string{"a.b/c/@v/v1.0.0.mod", "a.b/c/@v/v1.0.0.zip", "a.b/c/@v/v2.0.0.zip", "a.b/cc/@v/v1.0.0.zip"}
	for _, name := range names {
		mustCommit(t, d, name, content(name, 100))
	}
	for _, name := range []string{"a.b/c/@v/list", "a.b/c/@v/master.info", "a.b/c/@latest"} {
		if err := d.PutDocument(name, Document{Body: []byte("v1.0.0\n"), Fetched: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	unindexed := file(d, "a.b/c/@v/v3.0.0.zip")
	if err := os.WriteFile(unindexed, []byte(content("x", 10)), 0o600); err != nil {
		t.Fatal(err)
	}
	flip(t, file(d, names[1]), 3, 1)
	d.verified.forget(names[1])
	wantCorrupt(t, d, names[1]) // it is in quarantine
	got, err := d.Purge(t.Context(), "a.b/c/@v/", all)
	if err != nil || got.Objects != 3 {
		t.Fatalf("Purge() = %+v, %v, want 3 objects", got, err)
	}
	if left := walkNames(t, d); !slices.Equal(left, names[3:]) {
		t.Errorf("objects left: %v, want %v", left, names[3:])
	}
	for _, name := range []string{"a.b/c/@v/list", "a.b/c/@v/master.info"} {
		if _, err := d.Document(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Document(%q): %v, want fs.ErrNotExist", name, err)
		}
	}
	if _, err := d.Document("a.b/c/@latest"); err != nil {
		t.Error(err)
	}
	if left := files(t, filepath.Dir(unindexed)); len(left) != 0 {
		t.Errorf("files left: %v", left)
	}
	if left := files(t, filepath.Join(d.dir, "quarantine")); len(left) != 0 {
		t.Errorf("left in quarantine: %v", left)
	}
	if u := d.Usage(); u.Objects != 1 {
		t.Errorf("%d objects are counted, want 1", u.Objects)
	}
}

func TestPurgeObjectLeavesItsNeighbours(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	names := []string{"a.b/c/@v/v1.0.0-rc.1.zip", "a.b/c/@v/v1.0.0-rc.info", "a.b/c/@v/v1.0.0-rc.zip"}
	for _, name := range names {
		mustCommit(t, d, name, content(name, 100))
	}
	got, err := d.PurgeObject(t.Context(), names[2])
	if err != nil || got.Objects != 1 {
		t.Fatalf("PurgeObject() = %+v, %v, want 1 object", got, err)
	}
	if got, err = d.PurgeObject(t.Context(), names[2]); err != nil || got.Objects != 0 {
		t.Fatalf("PurgeObject() again = %+v, %v, want nothing", got, err)
	}
	if left := walkNames(t, d); !slices.Equal(left, names[:2]) {
		t.Errorf("objects left: %v, want %v", left, names[:2])
	}
}

func TestPurgeRefusesNamesThatLeadOut(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	for _, prefix := range []string{"../x/", "/", "a/../../x/", "a//b"} {
		if _, err := d.Purge(t.Context(), prefix, all); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Purge(%q): %v, want fs.ErrInvalid", prefix, err)
		}
	}
}

func TestPurgedIsAbsentAndRefused(t *testing.T) {
	t.Parallel()
	var b banned
	disk, mem := openBanned(t, t.TempDir(), &b), NewMem()
	mem.Refuse(b.purged)
	for _, d := range []purgeable{disk, mem} {
		b.ban("none")
		testPurged(t, d, &b)
	}
	if disk.ReadOnly() != nil {
		t.Errorf("the disk is said to be in trouble: %v", disk.ReadOnly())
	}
}

// purgeable is Disk or Mem.
type purgeable interface {
	Store
	Documents
	PurgeObject(ctx context.Context, name string) (Purged, error)
	Purge(ctx context.Context, prefix string, match func(string) bool) (Purged, error)
}

func testPurged(t *testing.T, d purgeable, b *banned) {
	t.Helper()
	const name, list = "a.b/c/@v/v1.0.0.zip", "a.b/c/@v/list"
	put := func() {
		p, err := d.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Commit(Proof{}); err != nil {
			t.Fatal(err)
		}
	}
	put()
	if err := d.PutDocument(list, Document{Body: []byte("v1.0.0\n")}); err != nil {
		t.Fatal(err)
	}
	begun, err := d.Create("a.b/c/@v/v2.0.0.zip")
	if err != nil {
		t.Fatal(err)
	}
	b.ban("a.b/c/")
	if _, err := d.Open(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open: %v, want fs.ErrNotExist", err)
	}
	if _, err := d.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat: %v, want fs.ErrNotExist", err)
	}
	if _, err := d.Document(list); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Document: %v, want fs.ErrNotExist", err)
	}
	if _, err := d.Create(name); !errors.Is(err, ErrPurged) {
		t.Errorf("Create: %v, want ErrPurged", err)
	}
	if err := d.PutDocument(list, Document{}); !errors.Is(err, ErrPurged) {
		t.Errorf("PutDocument: %v, want ErrPurged", err)
	}
	if _, err := begun.Commit(Proof{}); !errors.Is(err, ErrPurged) {
		t.Errorf("Commit of what was begun before: %v, want ErrPurged", err)
	}
	if got, err := d.PurgeObject(t.Context(), name); err != nil || got.Objects != 1 {
		t.Errorf("PurgeObject: %+v, %v, want 1 object", got, err)
	}
	if got, err := d.Purge(t.Context(), "a.b/", all); err != nil || got.Objects != 0 {
		t.Errorf("Purge: %+v, %v, want no object", got, err)
	}
	b.ban("none")
	_, err = d.Document(list)
	if _, open := d.Open(t.Context(), name); !errors.Is(err, fs.ErrNotExist) || !errors.Is(open, fs.ErrNotExist) {
		t.Errorf("they come back: %v, %v", err, open)
	}
	put()
}

// A purge that comes when a commit has looked already, and whose removal has looked
// before the file was there, leaves nothing all the same.
func TestPurgeDuringCommit(t *testing.T) {
	t.Parallel()
	const name = "a.b/c/@v/v1.0.0.zip"
	for _, at := range []string{"indexed", "renamed"} {
		var b banned
		d := openBanned(t, t.TempDir(), &b)
		d.setStep(func(step string) error {
			if step == at {
				b.ban("a.b/")
			}
			return nil
		})
		if err := commit(t, d, name, content(name, 100)); !errors.Is(err, ErrPurged) {
			t.Errorf("commit purged when %s: %v, want ErrPurged", at, err)
		}
		if _, err := os.Lstat(file(d, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("purged when %s: the file is there: %v", at, err)
		}
		if left := walkNames(t, d); len(left) != 0 {
			t.Errorf("purged when %s: entries left: %v", at, left)
		}
	}
}

// An index that is lost is rebuilt without what was purged, and the files go.
func TestRebuildRemovesPurged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const gone, stays = "a.b/c/@v/v1.0.0.zip", "a.b/d/@v/v1.0.0.zip"
	d := openTest(t, dir)
	mustCommit(t, d, gone, content(gone, 100))
	mustCommit(t, d, stays, content(stays, 100))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "index.db")); err != nil {
		t.Fatal(err)
	}
	var b banned
	b.ban("a.b/c/")
	d = openBanned(t, dir, &b)
	eventually(t, "the index is rebuilt", d.complete)
	if left := walkNames(t, d); !slices.Equal(left, []string{stays}) {
		t.Errorf("objects after a rebuild: %v, want %v", left, stays)
	}
	if _, err := os.Lstat(file(d, gone)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the purged file is still there: %v", err)
	}
	if left := files(t, filepath.Join(dir, "quarantine")); len(left) != 0 {
		t.Errorf("purged objects are in quarantine: %v", left)
	}
}

func TestPurgeManyAtOnce(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	for i := range purgeBatch + 10 {
		name := "a.b/c/@v/v1.0." + string(rune('a'+i%26)) + strings.Repeat("x", i/26) + ".info"
		if err := d.index.put(bucketObjects, name, newSummer().record(name, Proof{}).encode()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Purge(ctx, "a.b/", all); !errors.Is(err, context.Canceled) {
		t.Errorf("Purge() with a context that has ended: %v", err)
	}
	if _, err := d.Purge(t.Context(), "a.b/", all); err != nil {
		t.Fatal(err)
	}
	if left := walkNames(t, d); len(left) != 0 {
		t.Errorf("%d entries without files are left", len(left))
	}
}

// Hot copies of others are purged as well.
func TestPurgeHot(t *testing.T) {
	t.Parallel()
	const name = "a.b/c/@v/v1.0.0.zip"
	put := func(d *Disk, when func()) error {
		p, err := d.Hot().Create(name)
		if err != nil {
			return err
		}
		if _, err := p.Write([]byte("bytes")); err != nil {
			t.Fatal(err)
		}
		when()
		_, err = p.Commit(Proof{})
		return err
	}
	open := func(d *Disk) error {
		o, err := d.Hot().Open(t.Context(), name)
		if err == nil {
			o.File.Close()
		}
		return err
	}
	var b banned
	d, err := OpenDisk(DiskConfig{Dir: t.TempDir(), Purged: b.purged, Limit: Limit{Bytes: 1 << 30}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := errors.Join(put(d, func() {}), open(d)); err != nil {
		t.Fatal(err)
	}
	b.ban("a.b/")
	if err := open(d); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open: %v, want fs.ErrNotExist", err)
	}
	if err := put(d, func() {}); !errors.Is(err, ErrPurged) {
		t.Errorf("Create: %v, want ErrPurged", err)
	}
	for _, purge := range []func() (Purged, error){
		func() (Purged, error) { return d.PurgeObject(t.Context(), name) },
		func() (Purged, error) { return d.Purge(t.Context(), "a.b/", all) },
	} {
		b.ban("none")
		if err := put(d, func() {}); err != nil {
			t.Fatal(err)
		}
		b.ban("a.b/")
		if _, err := purge(); err != nil {
			t.Fatal(err)
		}
		if n, _ := d.Hot().Usage(); n != 0 {
			t.Errorf("%d hot copies are left", n)
		}
	}
	b.ban("none")
	if err := put(d, func() { b.ban("a.b/") }); err != nil {
		t.Fatal(err)
	}
	if n, _ := d.Hot().Usage(); n != 0 {
		t.Error("a copy stays that was purged while it was written")
	}
}
