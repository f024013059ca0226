package store

import (
	"fmt"
	"testing"
)

// A small file comes from memory only while the one on the disk is the same.
func TestKeptSmallFiles(t *testing.T) {
	t.Parallel()
	d := openShares(t, t.TempDir())
	const name = "a/1"
	mustCommit(t, d, name, content(name, 100))
	data := content(name, 100)
	eventually(t, "the file is kept", func() bool {
		want(t, d, name, data)
		return d.kept.order.Len() == 1
	})
	want(t, d, name, data)
	if d.kept.bytes != len(data) || d.kept.order.Len() != 1 {
		t.Fatalf("%d bytes of %d files are kept, want %d of 1", d.kept.bytes, d.kept.order.Len(), len(data))
	}
	flip(t, file(d, name), 3, 1)
	wantCorrupt(t, d, name)
}

// Bytes that changed without a trace in the file's identity are not handed out.
func TestKeptIsTheEntrys(t *testing.T) {
	t.Parallel()
	d := openShares(t, t.TempDir())
	mustCommit(t, d, "a/1", content("a/1", 100))
	var c checkedFile
	eventually(t, "the check counts", func() (ok bool) {
		want(t, d, "a/1", content("a/1", 100))
		c, ok = d.verified.get("a/1")
		return ok
	})
	d.kept = newKept()
	c.entry.SHA256[0]++
	if o := d.openKept(c, file(d, "a/1")); o != nil {
		t.Error("bytes with another digest than the entry's are served")
	}
}

func TestKeptIsBounded(t *testing.T) {
	t.Parallel()
	k := newKept()
	k.add(keptFile{"first", identity{inode: 1}, make([]byte, maxKept)})
	for i := range 2 * maxKeptBytes / maxKept {
		k.add(keptFile{fmt.Sprint(i % (maxKeptBytes / maxKept)), identity{inode: 2}, make([]byte, maxKept)})
		if k.get("0", identity{inode: 2}) == nil {
			t.Fatal("what was read last is not kept")
		}
	}
	if k.bytes > maxKeptBytes || k.bytes != k.order.Len()*maxKept || len(k.byName) != k.order.Len() {
		t.Errorf("%d bytes, %d files, %d names", k.bytes, k.order.Len(), len(k.byName))
	}
	if k.get("first", identity{inode: 1}) != nil {
		t.Error("what was read longest ago is kept")
	}
	if k.get("0", identity{inode: 3}) != nil {
		t.Error("bytes of another file are handed out")
	}
}
