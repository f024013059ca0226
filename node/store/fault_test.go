package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
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
				d.setStep(func(step string) error {
					if broken.Load() && (step == failing || step == "probe") {
						return &syscallError{errno}
					}
					return nil
				})
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

func TestWatchHealth(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &Disk{health: health{changed: make(chan struct{})}}
		ctx, cancel := context.WithCancel(t.Context())
		var told []string
		go d.WatchHealth(ctx, func(readOnly, dead error) { told = append(told, fmt.Sprint(readOnly != nil, dead != nil)) })
		synctest.Wait()
		for _, cause := range []error{syscall.EIO, syscall.ENOSPC, nil, nil} {
			d.health.set(cause)
			synctest.Wait()
		}
		for _, dead := range []error{syscall.EIO, errSilent, nil} {
			d.health.setDead(dead)
			synctest.Wait()
		}
		cancel()
		synctest.Wait()
		if got := strings.Join(told, ", "); got != "false false, true false, false false, true true, false false" {
			t.Errorf("told %s", got)
		}
	})
}

// ill is a disk whose steps can be made to fail or hang.
type ill struct {
	*Disk

	mu   sync.Mutex
	step map[string]func() error
}

func newIll(t *testing.T) *ill {
	t.Helper()
	d := &ill{Disk: openTest(t, t.TempDir()), step: map[string]func() error{}}
	d.Disk.setStep(func(step string) error {
		d.mu.Lock()
		do := d.step[step]
		d.mu.Unlock()
		if do == nil {
			return nil
		}
		return do()
	})
	return d
}

// at makes a step do something, nil nothing.
func (d *ill) at(step string, do func() error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.step[step] = do
}

func (d *ill) wantState(t *testing.T, readOnly, dead bool) {
	t.Helper()
	if got := d.ReadOnly() != nil; got != readOnly {
		t.Errorf("read-only is %v: %v", got, d.ReadOnly())
	}
	if got := d.Dead() != nil; got != dead {
		t.Errorf("dead is %v: %v", got, d.Dead())
	}
	if got := d.Trouble() != ""; got != (readOnly || dead) {
		t.Errorf("trouble: %q", d.Trouble())
	}
}

// TestDeadDisk lets reading and writing fail or hang, one, the other or both, and end.
func TestDeadDisk(t *testing.T) {
	t.Parallel()
	const name = "example.com/a/@v/v1.0.0.zip"
	fails := func() func() error { return func() error { return &syscallError{syscall.EIO} } }
	hangs := func() func() error {
		release := make(chan struct{})
		time.AfterFunc(time.Hour, func() { close(release) })
		return func() error { <-release; return nil }
	}
	for _, tt := range []struct {
		name           string
		write, read    func() func() error
		readOnly, dead bool
	}{
		{"writes fail", fails, nil, true, false},
		{"writes hang", hangs, nil, true, false},
		{"reads fail", nil, fails, true, true},
		{"reads hang", nil, hangs, true, true},
		{"everything fails", fails, fails, true, true},
		{"everything hangs", hangs, hangs, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				d := newIll(t)
				defer d.Close()
				mustCommit(t, d.Disk, name, "x")
				d.wantState(t, false, false)
				for step, does := range map[string]func() func() error{"probe": tt.write, "pulse": tt.read} {
					if does != nil {
						d.at(step, does())
					}
				}
				time.Sleep(probeEvery + probeLimit + time.Second)
				d.wantState(t, tt.readOnly, tt.dead)
				began := time.Now()
				_, err := d.Open(t.Context(), name)
				_, statErr := d.Stat(name)
				if got := errors.Is(err, ErrDead) && errors.Is(statErr, ErrDead); got != tt.dead || time.Since(began) > 0 {
					t.Errorf("Open: %v, Stat: %v after %v, want %v at once: %v", err, statErr, time.Since(began), ErrDead, tt.dead)
				}
				if err := commit(t, d.Disk, "a/b", "x"); !errors.Is(err, ErrReadOnly) {
					t.Errorf("Commit: %v", err)
				}
				time.Sleep(time.Hour)
				d.at("probe", nil)
				d.at("pulse", nil)
				time.Sleep(2*probeEvery + time.Second)
				d.wantState(t, false, false)
				want(t, d.Disk, name, "x")
				mustCommit(t, d.Disk, "a/b", "x")
			})
		})
	}
}

// TestOpenWaitsForACommit has a commit that takes its time: who opens the object meanwhile
// waits and hears that it goes on, until the disk is found dead.
func TestOpenWaitsForACommit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const name = "example.com/a/@v/v1.0.0.zip"
		d := newIll(t)
		defer d.Close()
		mustCommit(t, d.Disk, name, "x")
		signs, longest, last := 0, time.Duration(0), time.Now()
		ctx := WithProgress(t.Context(), func() {
			signs++
			longest = max(longest, time.Since(last))
			last = time.Now()
		})
		open := func(slow time.Duration) error {
			release, err := d.names.lock(ctx, name)
			if err != nil {
				t.Fatal(err)
			}
			last = time.Now()
			time.AfterFunc(slow, release)
			o, err := d.Open(ctx, name)
			if err == nil {
				defer o.File.Close()
			}
			return err
		}
		d.verified.forget(name)
		if err := open(10 * time.Second); err != nil || signs < 10 || longest > time.Second {
			t.Errorf("slow: %v, %d signs of life, at most %v apart", err, signs, longest)
		}
		d.verified.forget(name)
		d.at("pulse", func() error { return &syscallError{syscall.EIO} })
		if err := open(time.Hour); !errors.Is(err, ErrDead) {
			t.Errorf("dead: %v, want %v", err, ErrDead)
		}
		time.Sleep(time.Hour)
	})
}

// TestDeadDiskLosesNothing has a disk die under a reader: its copies are not to blame.
func TestDeadDiskLosesNothing(t *testing.T) {
	t.Parallel()
	const name = "example.com/a/@v/v1.0.0.zip"
	d := newIll(t)
	mustCommit(t, d.Disk, name, "x")
	d.verified.forget(name)
	dead := func() error { return &badCopyError{&syscallError{syscall.EIO}} }
	d.at("check", dead)
	d.at("pulse", dead)
	if _, err := d.Open(t.Context(), name); !errors.Is(err, ErrDead) {
		t.Errorf("Open: %v, want %v", err, ErrDead)
	}
	if got := files(t, d.quarantine.dir); len(got) != 0 {
		t.Errorf("quarantine holds %q", got)
	}
	d.at("pulse", nil) // this file alone cannot be read
	d.revive(t.Context())
	wantCorrupt(t, d.Disk, name)
	d.at("check", nil)
	if _, err := d.Lost(name); err != nil {
		t.Errorf("Lost: %v", err)
	}
}

// TestOthersTakeOurShare lets others fill the file system: what is there is served, and
// some of what they leave is taken.
func TestOthersTakeOurShare(t *testing.T) {
	t.Parallel()
	d, err := OpenDisk(DiskConfig{Dir: t.TempDir(), Limit: Limit{Percent: 50}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	mustCommit(t, d, "a/1", "x")
	const total = 1 << 40
	var free atomic.Int64
	free.Store(total / 2)
	d.budget.mu.Lock()
	d.budget.space = func() (space, error) { return space{used: total - free.Load(), free: free.Load()}, nil }
	d.budget.mu.Unlock()
	if got := d.Trouble(); got != "" {
		t.Errorf("half of the file system is free: %q", got)
	}
	free.Store(total / 50)
	mustCommit(t, d, "a/2", "x")
	if got := d.Trouble(); !strings.Contains(got, "others have taken 98 %") || !strings.Contains(got, "--data-dir") {
		t.Errorf("trouble: %q", got)
	}
	free.Store(-d.held() - 1)
	if err := commit(t, d, "a/3", "x"); !errors.Is(err, ErrFull) {
		t.Errorf("Commit: %v, want %v", err, ErrFull)
	}
	if err := commit(t, d, "a/3", "x"); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Commit: %v, want %v", err, ErrReadOnly)
	}
	d.recover(t.Context())
	if d.ReadOnly() == nil {
		t.Error("it takes new objects though there is no room")
	}
	free.Store(total / 2)
	d.recover(t.Context())
	mustCommit(t, d, "a/3", "x")
}
