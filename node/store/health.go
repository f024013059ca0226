package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// ErrDead says that the disk cannot be read for now: it fails, or does not answer.
var ErrDead = errors.New("the disk cannot be read")

const (
	probeEvery = 15 * time.Second
	probeLimit = 10 * time.Second
	probeSize  = 64 << 10 // while the disk takes nothing
	pulseSize  = 4 << 10  // else
)

var errSilent = fmt.Errorf("no answer within %v", probeLimit)

// health is what the disk can do.
type health struct {
	mu      sync.Mutex
	cause   error         // why it takes nothing new; nil: it does
	dead    error         // why it cannot be read; nil: it can
	changed chan struct{} // closed and replaced when one of them appears or disappears
}

func (h *health) set(cause error) (news bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changeLocked(&h.cause, cause)
}

func (h *health) setDead(cause error) (news bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changeLocked(&h.dead, cause)
}

func (h *health) changeLocked(what *error, cause error) (news bool) {
	news = (*what == nil) != (cause == nil)
	if cause == nil || *what == nil {
		*what = cause
	}
	if news {
		close(h.changed)
		h.changed = make(chan struct{})
	}
	return news
}

func (h *health) look() (changed <-chan struct{}, cause, dead error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed, h.cause, h.dead
}

// ReadOnly returns why the disk takes nothing new, an ErrReadOnly; nil when it does.
// It is so from the first write that fails because the disk is full or failing, or from a
// probe that was not written within 10 s, until a probe can be written and read again. There
// is one every 15 s.
func (d *Disk) ReadOnly() error {
	_, cause, dead := d.health.look()
	if cause == nil {
		cause = dead
	}
	if cause == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrReadOnly, cause)
}

// Dead returns why the disk cannot be read, an ErrDead; nil when it can. It is so while
// not even a small file of our own can be read from it within 10 s, which is tried every
// 15 s. Meanwhile all methods return that error at once.
func (d *Disk) Dead() error {
	_, _, dead := d.health.look()
	if dead == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrDead, dead)
}

// WatchHealth calls tell with what ReadOnly and Dead return, at once and after each change,
// until ctx ends.
func (d *Disk) WatchHealth(ctx context.Context, tell func(readOnly, dead error)) {
	for ctx.Err() == nil {
		changed, _, _ := d.health.look()
		tell(d.ReadOnly(), d.Dead())
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// Trouble says in words for an operator what is wrong with the disk and what to do about
// it; "" when nothing is.
func (d *Disk) Trouble() string {
	_, cause, dead := d.health.look()
	dir := d.dir
	if absolute, err := filepath.Abs(dir); err == nil {
		dir = absolute
	}
	switch {
	case dead != nil:
		return fmt.Sprintf("the disk of %s cannot be read (%v): look at the system's log; the others do without this node", dir, inShort(dead))
	case isFull(cause):
		return fmt.Sprintf("the disk of %s is full (%v): free space there; until then nothing is stored", dir, inShort(cause))
	case cause != nil:
		return fmt.Sprintf("the disk of %s fails (%v): look at the system's log; until it recovers nothing is stored", dir, inShort(cause))
	}
	s, left, crowded := d.budget.crowded()
	if !crowded {
		return ""
	}
	return fmt.Sprintf("others have taken %.0f %% of the file system of %s and leave the cache %d MiB: free space there, choose another --data-dir or give --disk-limit in bytes",
		100*float64(s.total()-left)/float64(s.total()), dir, left>>20)
}

// inShort leaves out of an error which file it was about.
func inShort(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

// isTrouble reports whether err is the disk's and not that of one object.
func isTrouble(err error) bool {
	if errors.Is(err, fs.ErrPermission) || isFull(err) {
		return true
	}
	errno, ok := errors.AsType[syscall.Errno](err)
	switch {
	case !ok:
		return false
	case errno == syscall.EIO, errno == syscall.EROFS, errno == syscall.ENODEV, errno == syscall.ENXIO:
		return true
	default:
		return false
	}
}

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// trouble makes the disk take nothing more if err says that it cannot, and returns
// err.
func (d *Disk) trouble(err error) error {
	if isTrouble(err) && d.health.set(err) {
		d.logger.Error("the disk takes nothing new: fetched objects are passed on without being stored", "path", d.dir, "err", err)
	}
	return err
}

// unreadable returns err, or that the disk is dead when that is why a file could not be read.
func (d *Disk) unreadable(err error) error {
	if isTrouble(err) {
		if dead := d.pulse(); dead != nil {
			d.dies(dead)
			return d.Dead()
		}
	}
	return err
}

func (d *Disk) dies(cause error) {
	if d.health.setDead(cause) {
		d.logger.Error("the disk cannot be read: nothing on it is served", "path", d.dir, "err", cause)
	}
}

// crowdedOut is the trouble of a disk of which others have taken everything.
func (d *Disk) crowdedOut() error {
	return fmt.Errorf("others leave nothing of the file system: %w", syscall.ENOSPC)
}

// probes tries from time to time what the disk can do, until ctx ends. A probe that hangs
// is waited for, but not by Close.
func (d *Disk) probes(ctx context.Context) {
	for rest(ctx, probeEvery) == nil {
		var both sync.WaitGroup
		both.Go(func() { d.recover(ctx) })
		both.Go(func() { d.revive(ctx) })
		both.Wait()
	}
}

// recover ends the state of taking nothing if a probe succeeds in time, or begins it.
func (d *Disk) recover(ctx context.Context) {
	d.attempt(ctx, d.probe, func(err error) {
		if err != nil {
			_ = d.trouble(err)
		} else if d.health.set(nil) {
			d.logger.InfoContext(ctx, "the disk takes new objects again", "path", d.dir)
			ask(d.recovered)
		}
	}, func() {
		if d.health.set(errSilent) {
			d.logger.ErrorContext(ctx, "the disk does not finish a write: fetched objects are passed on without being stored", "path", d.dir, "err", errSilent)
		}
	})
}

// revive does the same for reading.
func (d *Disk) revive(ctx context.Context) {
	d.attempt(ctx, d.pulse, func(err error) {
		if err != nil {
			d.dies(err)
		} else if d.health.setDead(nil) {
			d.logger.InfoContext(ctx, "the disk can be read again", "path", d.dir)
		}
	}, func() { d.dies(errSilent) })
}

// attempt calls ended with what try returns within probeLimit, or late and waits for
// its end, which then says nothing.
func (d *Disk) attempt(ctx context.Context, try func() error, ended func(error), late func()) {
	done := make(chan error, 1)
	go func() { done <- try() }()
	timer := time.NewTimer(probeLimit)
	defer timer.Stop()
	select {
	case err := <-done:
		ended(err)
		return
	case <-timer.C:
		late()
	case <-ctx.Done():
		return
	}
	select {
	case <-done: //nolint:errcheck // it came too late to count
	case <-ctx.Done():
	}
}

// pulse reads a small file from the disk, not from memory, and returns an error when the
// disk is to blame.
func (d *Disk) pulse() error {
	if err := d.step("pulse"); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(d.dir, "format"))
	if err == nil {
		defer f.Close() //nolint:errcheck // only read
		uncache(f)
		_, err = io.Copy(io.Discard, f)
	}
	if isTrouble(err) {
		return err
	}
	return nil
}

// probe writes a file and reads it again. While the disk takes nothing it also writes an
// entry.
func (d *Disk) probe() error {
	if err := d.step("probe"); err != nil {
		return err
	}
	_, cause, _ := d.health.look()
	if cause == nil {
		return d.probeFile(pulseSize)
	}
	if err := d.hasRoom(cause); err != nil {
		return err
	}
	if err := d.probeFile(probeSize); err != nil {
		return err
	}
	return d.index.put(bucketState, "probe", nil)
}

func (d *Disk) probeFile(size int) error {
	data := make([]byte, size)
	rand.Read(data)
	path := filepath.Join(d.dir, "tmp", "probe")
	defer os.Remove(path) //nolint:errcheck // else the next start does it
	err := writeSynced(path, data)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // somebody has emptied the data directory; createTemp makes it anew
	}
	if err != nil {
		return err
	}
	got, err := os.ReadFile(path)
	if err == nil && !bytes.Equal(got, data) {
		err = errSum
	}
	return err
}

// hasRoom returns an error while so little is free that a disk that was full would be
// so again at once.
func (d *Disk) hasRoom(cause error) error {
	if !isFull(cause) {
		return nil
	}
	s, err := d.space()
	if err != nil {
		return nil //nolint:nilerr // writing will tell
	}
	least := min(64<<20, s.total()/20)
	if s.free < least || d.budget.limit.Percent > 0 && d.budget.capacity() <= least {
		return syscall.ENOSPC
	}
	return nil
}

func writeSynced(path string, data []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}
