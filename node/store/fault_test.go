package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
)

// TestFaultAtEachStep lets the disk fail at each step of writing: what is there is
// served, nothing stays reserved or half-written, and a probe ends it.
func TestFaultAtEachStep(t *testing.T) {
	t.Parallel()
	const name, other = "example.com/a/@v/v1.0.0.zip", "example.com/b/@v/v1.0.0.zip"
	older := content("old", 1000)
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EIO, syscall.EROFS, syscall.EDQUOT} {
		for _, failing := range []string{"create", "write", "written", "synced", "folders"} {
			t.Run(fmt.Sprintf("%s %v", failing, errno), func(t *testing.T) {
				t.Parallel()
				d := openLimited(t, t.TempDir(), 2<<20) // less than what a full disk must have free
				mustCommit(t, d, name, older)
				var broken atomic.Bool
				broken.Store(true)
				d.step = func(step string) error {
					if broken.Load() && (step == failing || step == "probe") {
						return &syscallError{errno}
					}
					return nil
				}
				if err := commit(t, d, name, content("new", 300_000)); !errors.Is(err, errno) {
					t.Errorf("Commit: %v, want %v", err, errno)
				}
				if err := commit(t, d, other, "x"); !errors.Is(err, ErrReadOnly) || !errors.Is(err, errno) {
					t.Errorf("the next one: %v, want %v for %v", err, ErrReadOnly, errno)
				}
				if err := d.PutDocument("example.com/a/@latest", Document{}); !errors.Is(err, ErrReadOnly) {
					t.Errorf("PutDocument: %v, want %v", err, ErrReadOnly)
				}
				d.recover(t.Context())
				if u := d.Usage(); !u.ReadOnly || u.Reserved != 0 {
					t.Errorf("%+v, want it read-only and nothing reserved", u)
				}
				want(t, d, name, older)
				wantAbsent(t, d, other)
				if got := files(t, filepath.Join(d.dir, "tmp")); len(got) != 0 {
					t.Errorf("tmp holds %q", got)
				}
				broken.Store(false)
				d.recover(t.Context())
				if err := d.ReadOnly(); err != nil {
					t.Errorf("after the disk has recovered: %v", err)
				}
				mustCommit(t, d, other, "x")
			})
		}
	}
}

// syscallError is how package os wraps an errno.
type syscallError struct{ errno syscall.Errno }

func (e *syscallError) Error() string { return "write: " + e.errno.Error() }
func (e *syscallError) Unwrap() error { return e.errno }

// What is wrong with one object says nothing about the disk.
func TestTroubleOfOneObject(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	mustCommit(t, d, "a/b", "x")
	for _, name := range []string{"a/b/c", "a"} { // a file and a folder are in the way
		if err := commit(t, d, name, "x"); err == nil {
			t.Errorf("%s was committed", name)
		}
	}
	if err := d.ReadOnly(); err != nil {
		t.Error(err)
	}
}

func TestWatchReadOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &Disk{health: health{changed: make(chan struct{})}}
		ctx, cancel := context.WithCancel(t.Context())
		var told []bool
		go d.WatchReadOnly(ctx, func(cause error) { told = append(told, cause != nil) })
		synctest.Wait()
		for _, cause := range []error{syscall.EIO, syscall.ENOSPC, nil, nil} {
			d.health.set(cause)
			synctest.Wait()
		}
		cancel()
		synctest.Wait()
		if fmt.Sprint(told) != "[false true false]" {
			t.Errorf("told %v", told)
		}
	})
}

// TestOthersTakeOurShare lets others have more than the limit allows: what is there
// stays and is served.
func TestOthersTakeOurShare(t *testing.T) {
	t.Parallel()
	d, err := OpenDisk(DiskConfig{Dir: t.TempDir(), Limit: Limit{Percent: 100}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	mustCommit(t, d, "a/1", "x")
	var others atomic.Int64
	d.budget.mu.Lock()
	d.budget.space = func() (space, error) { return space{used: others.Load(), free: 1 << 40}, nil }
	d.budget.limit.Percent = 50
	d.budget.mu.Unlock()
	others.Store(3 << 40)
	if err := commit(t, d, "a/2", "x"); !errors.Is(err, ErrFull) {
		t.Errorf("Commit: %v, want %v", err, ErrFull)
	}
	if err := commit(t, d, "a/2", "x"); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Commit: %v, want %v", err, ErrReadOnly)
	}
	d.recover(t.Context())
	if d.ReadOnly() == nil {
		t.Error("it takes new objects though there is no room")
	}
	want(t, d, "a/1", "x")
	others.Store(1 << 30)
	d.recover(t.Context())
	mustCommit(t, d, "a/2", "x")
}
