package store

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// indexed tells whether the index has an entry, whatever the disk has.
func indexed(d *Disk, name string) bool {
	_, err := d.record(name)
	return err == nil
}

// TestEntryWithoutAFile has a file vanish between entry and rename, as a crash, a failing
// disk or somebody's hand leaves it. Its entry must not outlive the next start, the
// recovery of the disk, or the next check.
func TestEntryWithoutAFile(t *testing.T) {
	t.Parallel()
	const name, other = "example.com/a/@v/v1.0.0.info", "example.com/a/@v/v1.0.0.mod"
	vanish := func(t *testing.T, d *Disk) {
		t.Helper()
		mustCommit(t, d, name, "x")
		mustCommit(t, d, other, "x")
		path, err := d.path("open", name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	check := func(t *testing.T, d *Disk) {
		t.Helper()
		if indexed(d, name) || !indexed(d, other) {
			t.Errorf("there is an entry without a file: %v, and one with a file: %v, want only the latter", indexed(d, name), indexed(d, other))
		}
	}
	t.Run("start", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			d := openTest(t, dir)
			vanish(t, d)
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			d = openTest(t, dir)
			defer d.Close()
			synctest.Wait()
			check(t, d)
		})
	})
	t.Run("failing disk", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			d := newIll(t)
			defer d.Close()
			fails := func() error { return &syscallError{syscall.EIO} }
			d.at("indexed", fails)
			if err := commit(t, d.Disk, "example.com/b/@v/v1.0.0.info", "x"); err == nil || indexed(d.Disk, "example.com/b/@v/v1.0.0.info") {
				t.Errorf("a commit that failed after its entry was written: %v, has it: %v", err, indexed(d.Disk, "example.com/b/@v/v1.0.0.info"))
			}
			d.at("indexed", nil)
			time.Sleep(2 * probeEvery)
			vanish(t, d.Disk)
			d.doubts.add(name, other) // as restore does where it fails, too
			d.at("probe", fails)
			time.Sleep(2 * probeEvery)
			d.wantState(t, true, false)
			d.at("probe", nil)
			time.Sleep(2 * probeEvery)
			d.wantState(t, false, false)
			check(t, d.Disk)
		})
	})
	t.Run("check", func(t *testing.T) {
		t.Parallel()
		d := openTest(t, t.TempDir())
		vanish(t, d)
		if err := d.Check(t.Context(), name, noPace); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Check: %v, want %v", err, fs.ErrNotExist)
		}
		check(t, d)
	})
}
