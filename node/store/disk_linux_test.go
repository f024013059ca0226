package store

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// TestNotWritable opens a read-only folder as somebody who is not root: on Linux
// the user that counts for files belongs to the thread.
func TestNotWritable(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for parent := dir; os.Getuid() == 0 && strings.HasPrefix(parent, os.TempDir()+"/"); parent = filepath.Dir(parent) {
			if err := os.Chmod(parent, 0o555); err != nil {
				t.Error(err)
			}
		}
		if os.Getuid() == 0 {
			syscall.RawSyscall(syscall.SYS_SETFSUID, 65534, 0, 0) //nolint:errcheck // it reports no errors
		}
		var d *Disk
		if d, err = OpenDisk(DiskConfig{Dir: dir}); err == nil {
			d.Close()
		}
	}()
	<-done
	if !errors.Is(err, errNotWritable) || strings.Contains(err.Error(), "\n") {
		t.Errorf("OpenDisk: %v, want %v", err, errNotWritable)
	}
}

// TestDiskFull fills a small file system: writes fail with ENOSPC, what is there is
// served, and after space is freed writes succeed.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mounting a tmpfs needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d := openTest(t, dir)
	data := content("a", 10_000)
	mustCommit(t, d, "a/1", data)
	filler := filepath.Join(dir, "filler")
	fillUp(t, filler)
	for range 3 {
		if err := commit(t, d, "a/2", content("b", 100_000)); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("Commit: %v, want ENOSPC", err)
		}
		want(t, d, "a/1", data)
		wantAbsent(t, d, "a/2")
	}
	if err := d.PutDocument("a/@latest", Document{Body: make([]byte, 200_000)}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("PutDocument: %v, want ENOSPC", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadOnly(); !errors.Is(err, ErrReadOnly) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("ReadOnly: %v, want %v for want of space", err, ErrReadOnly)
	}
	d.recover(t.Context())
	mustCommit(t, d, "a/2", content("b", 100_000))
	want(t, d, "a/2", content("b", 100_000))
	if got := files(t, filepath.Join(dir, "tmp")); len(got) != 0 {
		t.Errorf("tmp holds %q", got)
	}
}

func fillUp(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = io.WriteString(f, strings.Repeat("x", 4096))
	}
}
