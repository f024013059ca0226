package store

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
)

func wantUsage(t *testing.T, d *Disk, what string, want Usage) {
	t.Helper()
	got := d.Usage()
	if got.Free <= 0 {
		t.Errorf("%s: %d bytes free", what, got.Free)
	}
	if got.Taken < got.Bytes {
		t.Errorf("%s: %d bytes taken by %d bytes of objects", what, got.Taken, got.Bytes)
	}
	want.Free, want.Taken = got.Free, got.Taken
	if got != want {
		t.Errorf("%s: got %+v, want %+v", what, got, want)
	}
}

// TestUsageOutlivesTheProcess also takes away what an index of an earlier version
// does not have.
func TestUsageOutlivesTheProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openTest(t, dir)
	want := Usage{Objects: 40}
	for i := range 40 {
		data := content(fmt.Sprint(i), 10+i)
		mustCommit(t, d, fmt.Sprintf("example.com/m/@v/v1.0.%d.mod", i), data)
		want.Bytes += int64(len(data))
	}
	wantUsage(t, d, "as committed", want)
	d.Close()

	d = openTest(t, dir)
	wantUsage(t, d, "opened again", want)
	d.Close()

	db, err := bolt.Open(filepath.Join(dir, "index.db"), 0o666, nil)
	if err == nil {
		err = db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucketState)).Delete([]byte(keyTally)) })
	}
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	d = openTest(t, dir)
	wantUsage(t, d, "without a tally", want)
}

func TestUsageOfAdoptedAndBad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openTest(t, dir)
	const good, bad = "example.com/good/@v/v1.0.0.mod", "example.com/bad/@v/v1.0.0.mod"
	data := content(good, 1000)
	mustCommit(t, d, good, data)
	mustCommit(t, d, bad, content(bad, 2000))
	d.Close()
	if err := os.Remove(filepath.Join(dir, "index.db")); err != nil {
		t.Fatal(err)
	}
	flip(t, file(d, bad), 5, 1)

	d = openTest(t, dir)
	eventually(t, "index rebuilt", d.complete)
	want := Usage{Objects: 1, Bytes: int64(len(data)), Quarantined: 1}
	wantUsage(t, d, "rebuilt", want)
	mustCommit(t, d, bad, "x")
	flip(t, file(d, bad), 0, 1)
	wantCorrupt(t, d, bad)
	want.Quarantined++
	wantUsage(t, d, "set aside", want)
	d.Close()
	wantUsage(t, openTest(t, dir), "opened again", want)
}
