package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// placeTest puts names into 8 partitions by their last digit.
func placeTest(name string) (int, bool) {
	last := name[len(name)-1]
	if last < '0' || last > '7' {
		return -1, false
	}
	return int(last - '0'), true
}

func openShares(t testing.TB, dir string) *Disk {
	t.Helper()
	d, err := OpenDisk(DiskConfig{Dir: dir, Inspect: inspectContent, Place: placeTest, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func mustSums(t testing.TB, d *Disk) []Sum {
	t.Helper()
	sums, err := d.Sums(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

func mustKeys(t testing.TB, d *Disk, p int) []Key {
	t.Helper()
	keys, err := d.Keys(t.Context(), p, Key{}, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// Sums and keys are the same after a start, with an index made without keys, and with
// one that was lost.
func TestSharesOutlive(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, index string)
	}{
		{"a start", func(*testing.T, string) {}},
		{"an older index", func(t *testing.T, index string) {
			t.Helper()
			changeIndex(t, index, func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte(bucketKeys)) })
		}},
		{"half of the keys", func(t *testing.T, index string) {
			t.Helper()
			changeIndex(t, index, func(tx *bolt.Tx) error {
				b := tx.Bucket([]byte(bucketKeys))
				n := 0
				return b.ForEach(func(k, _ []byte) error {
					if n++; n%2 == 0 {
						return nil
					}
					return b.Delete(slices.Clone(k))
				})
			})
		}},
		{"a lost index", func(t *testing.T, index string) {
			t.Helper()
			if err := os.Remove(index); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			d := openShares(t, dir)
			for i := range 16 {
				name := fmt.Sprintf("a/%d", i)
				mustCommit(t, d, name, content(name, 10+i))
			}
			if err := d.Remove("a/3"); err != nil {
				t.Fatal(err)
			}
			want, keys := mustSums(t, d), mustKeys(t, d, 1)
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			test.spoil(t, filepath.Join(dir, "index.db"))
			d = openShares(t, dir)
			eventually(t, "the sums are as before", func() bool { return slices.Equal(mustSums(t, d), want) })
			got := mustKeys(t, d, 1)
			if !slices.EqualFunc(got, keys, func(a, b Key) bool { return a.compare(b) == 0 && a.Digest == b.Digest && a.Size == b.Size }) {
				t.Errorf("keys %+v, want %+v", got, keys)
			}
		})
	}
}

func changeIndex(t *testing.T, path string, change func(*bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o666, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(change); err != nil {
		t.Fatal(err)
	}
}

// An older ringmod that has removed an object has left its key.
func TestKeyWithoutObject(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openShares(t, dir)
	mustCommit(t, d, "a/1", "x")
	mustCommit(t, d, "b/1", "x")
	want := mustSums(t, d)[1].Objects - 1
	d.Close()
	changeIndex(t, filepath.Join(dir, "index.db"), func(tx *bolt.Tx) error {
		return tx.Bucket([]byte(bucketObjects)).Delete([]byte("a/1"))
	})
	d = openShares(t, dir)
	if keys := mustKeys(t, d, 1); len(keys) != 1 || keys[0].Name != "b/1" || mustSums(t, d)[1].Objects != want {
		t.Errorf("%+v, %+v", keys, mustSums(t, d))
	}
}

// What is written while the first call counts is counted once.
func TestCountBesideWrites(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openShares(t, dir)
	fillIndex(t, d, 3*versionPage)
	d.Close()
	d = openShares(t, dir)
	done := make(chan struct{})
	go func() {
		defer close(done)
		random := rand.New(rand.NewPCG(1, 1))
		for range 25 {
			name := fmt.Sprintf("m%06d/0", random.IntN(3*versionPage))
			if random.IntN(2) == 0 {
				if err := d.Remove(name); err != nil {
					t.Error(err)
				}
			} else if err := commit(t, d, name, content(name, random.IntN(50))); err != nil {
				t.Error(err)
			}
		}
	}()
	mustSums(t, d)
	<-done
	got := mustSums(t, d)
	d.Close()
	d = openShares(t, dir)
	if want := mustSums(t, d); !slices.Equal(got, want) || len(mustKeys(t, d, 0)) != int(want[0].Objects) {
		t.Errorf("%+v, counted anew %+v, %d keys", got, want, len(mustKeys(t, d, 0)))
	}
}

// fillIndex puts n objects into the index that have no files, and one that has: the others
// were not stored just before it, or the next start would look for them.
func fillIndex(t testing.TB, d *Disk, n int) {
	t.Helper()
	mustCommit(t, d, fmt.Sprintf("m%06d/0", n), "x")
	var writes []*indexWrite
	for i := range n {
		name := fmt.Sprintf("m%06d/%d", i, i%8)
		r := &record{Entry: Entry{Name: name, SHA256: sha256.Sum256([]byte(name)), Size: 300_000, Stored: time.Now().Add(-time.Hour)}, sums: make([]uint32, 3)}
		writes = append(writes, &indexWrite{bucket: bucketObjects, name: name, value: seal(bucketObjects, name, r.encode())})
	}
	if err := d.index.submit(writes...); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkCount is the first Sums of a disk with 100,000 objects.
func BenchmarkCount(b *testing.B) {
	dir := b.TempDir()
	d := openShares(b, dir)
	fillIndex(b, d, 100_000)
	d.Close()
	for b.Loop() {
		b.StopTimer()
		d = openShares(b, dir)
		b.StartTimer()
		mustSums(b, d)
		b.StopTimer()
		d.Close()
		b.StartTimer()
	}
}

// What was evicted lately is known until it is stored again, for a day or two.
func TestEvictedLately(t *testing.T) {
	t.Parallel()
	var names evictedNames
	names.add("a")
	if names.when("a").IsZero() || !names.when("b").IsZero() {
		t.Error("not known, or known without reason")
	}
	names.forget("a")
	if !names.when("a").IsZero() {
		t.Error("not forgotten")
	}
	for i := range 3 * mostEvicted {
		names.add(fmt.Sprint(i))
	}
	if len(names.young)+len(names.old) > 2*mostEvicted || names.when(fmt.Sprint(3*mostEvicted-1)).IsZero() || !names.when("0").IsZero() {
		t.Errorf("%d and %d are remembered", len(names.young), len(names.old))
	}
}

// A key tells when its object was last opened, but for looks that are no use.
func TestUsedKeys(t *testing.T) {
	t.Parallel()
	d := openShares(t, t.TempDir())
	mustCommit(t, d, "a/1", content("a/1", 10))
	long := time.Now().Add(-50 * 24 * time.Hour)
	if err := d.Backdate("a/1", long); err != nil {
		t.Fatal(err)
	}
	sums := mustSums(t, d)
	open := func(ctx context.Context) {
		o, err := d.Open(ctx, "a/1")
		if err != nil {
			t.Fatal(err)
		}
		o.File.Close()
	}
	open(Unused(t.Context()))
	if used := mustKeys(t, d, 1)[0].Used; !used.Equal(long) {
		t.Errorf("used at %v, want %v", used, long)
	}
	open(t.Context())
	if used := mustKeys(t, d, 1)[0].Used; time.Since(used) > time.Minute {
		t.Errorf("used at %v, want now", used)
	}
	if err := d.flushUses(); err != nil {
		t.Fatal(err)
	}
	if used := mustKeys(t, d, 1)[0].Used; time.Since(used) > time.Minute {
		t.Errorf("with uses in the index, used at %v, want now", used)
	}
	if got := mustSums(t, d); !slices.Equal(got, sums) {
		t.Error("the sums depend on uses")
	}
	if err := d.Backdate("a/2", long); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of what is not there: %v", err)
	}
}

// A disk that is as full as eviction leaves it has no room for what is not needed,
// and knows what it has evicted.
func TestHasRoom(t *testing.T) {
	t.Parallel()
	d := openLimited(t, t.TempDir(), 2<<20)
	if !d.HasRoom() {
		t.Error("an empty disk has no room")
	}
	for i := range 40 {
		commitVersion(t, d, fmt.Sprintf("example.com/m%d/@v/v1.0.0", i), 100_000)
	}
	settled(t, d)
	for i := 40; d.HasRoom(); i++ { // eviction may have gone a little below
		commitVersion(t, d, fmt.Sprintf("example.com/m%d/@v/v1.0.0", i), 100_000)
	}
	settled(t, d)
	gone := 0
	for i := range 40 {
		name := fmt.Sprintf("example.com/m%d/@v/v1.0.0.zip", i)
		_, err := d.Stat(name)
		if at := d.Evicted(name); at.IsZero() != (err == nil) {
			t.Errorf("%s: evicted at %v, %v", name, at, err)
		}
		if err != nil {
			gone++
		}
	}
	if gone == 0 {
		t.Error("nothing was evicted")
	}
	mustCommit(t, d, "example.com/m0/@v/v1.0.0.zip", "x")
	if at := d.Evicted("example.com/m0/@v/v1.0.0.zip"); !at.IsZero() {
		t.Errorf("evicted at %v though it was stored since", at)
	}
	_ = d.trouble(syscall.ENOSPC)
	if d.HasRoom() {
		t.Error("a read-only disk has room")
	}
}
