//go:build unix

package store

import (
	"syscall"
	"testing"
)

// TestCloseUnlocks closes while a copy of the lock's descriptor is open, as a
// child process has one between fork and exec.
func TestCloseUnlocks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openTest(t, dir)
	inherited, err := syscall.Dup(int(d.lock.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(inherited)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := OpenDisk(DiskConfig{Dir: dir})
	if err != nil {
		t.Fatalf("opening again: %v", err)
	}
	again.Close()
}
