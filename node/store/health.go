package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	probeEvery = 15 * time.Second // while the disk takes nothing
	probeLimit = 10 * time.Second
	probeSize  = 64 << 10
)

// health is whether the disk takes anything new.
type health struct {
	mu      sync.Mutex
	cause   error         // nil: it does
	changed chan struct{} // closed and replaced when cause appears or disappears
}

func (h *health) set(cause error) (news bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	news = (h.cause == nil) != (cause == nil)
	if cause == nil || h.cause == nil {
		h.cause = cause
	}
	if news {
		close(h.changed)
		h.changed = make(chan struct{})
	}
	return news
}

func (h *health) look() (changed <-chan struct{}, cause error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed, h.cause
}

// ReadOnly returns why the disk takes nothing new, an ErrReadOnly; nil when it does.
// It is so from the first write that fails because the disk is full or failing
// until a file can be written and read again, which is tried every 15 s.
func (d *Disk) ReadOnly() error {
	_, cause := d.health.look()
	if cause == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrReadOnly, cause)
}

// WatchReadOnly calls tell with what ReadOnly returns, at once and after each change,
// until ctx ends.
func (d *Disk) WatchReadOnly(ctx context.Context, tell func(cause error)) {
	for {
		changed, _ := d.health.look()
		tell(d.ReadOnly())
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// isTrouble reports whether err is the disk's and not that of one object.
func isTrouble(err error) bool {
	if errors.Is(err, fs.ErrPermission) {
		return true
	}
	errno, ok := errors.AsType[syscall.Errno](err)
	switch {
	case !ok:
		return false
	case errno == syscall.ENOSPC, errno == syscall.EDQUOT, errno == syscall.EIO, errno == syscall.EROFS, errno == syscall.ENODEV, errno == syscall.ENXIO:
		return true
	default:
		return false
	}
}

// trouble makes the disk take nothing more if err says that it cannot, and returns
// err.
func (d *Disk) trouble(err error) error {
	if isTrouble(err) && d.health.set(err) {
		d.logger.Error("the disk takes nothing new: fetched objects are passed on without being stored", "path", d.dir, "err", err)
	}
	return err
}

// crowdedOut is the trouble of a disk of which others have taken our share.
func (d *Disk) crowdedOut() error {
	return fmt.Errorf("others use more of the file system than the limit of %v%% allows: %w", d.budget.limit.Percent, syscall.ENOSPC)
}

// probes tries from time to time whether a disk that took nothing does again, until
// ctx ends.
func (d *Disk) probes(ctx context.Context) {
	for {
		changed, cause := d.health.look()
		if cause == nil {
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			continue
		}
		if rest(ctx, probeEvery) != nil {
			return
		}
		d.recover(ctx)
	}
}

// recover ends the state of taking nothing if a probe succeeds in time. One that
// hangs is waited for, but not by Close.
func (d *Disk) recover(ctx context.Context) {
	done := make(chan error, 1)
	go func() { done <- d.probe() }()
	timer := time.NewTimer(probeLimit)
	defer timer.Stop()
	late := false
	for {
		select {
		case err := <-done:
			if err == nil && !late && d.health.set(nil) {
				d.logger.InfoContext(ctx, "the disk takes new objects again", "path", d.dir)
			}
			return
		case <-timer.C:
			late = true
			d.logger.WarnContext(ctx, "the disk does not answer", "path", d.dir, "duration_ms", probeLimit.Milliseconds())
		case <-ctx.Done():
			return
		}
	}
}

// probe writes a file and an entry and reads them again.
func (d *Disk) probe() error {
	if err := d.hasRoom(); err != nil {
		return err
	}
	if err := d.step("probe"); err != nil {
		return err
	}
	data := make([]byte, probeSize)
	rand.Read(data)
	path := filepath.Join(d.dir, "tmp", "probe")
	defer os.Remove(path) //nolint:errcheck // else the next start does it
	if err := writeSynced(path, data); err != nil {
		return err
	}
	got, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, data) {
		return errSum
	}
	return d.index.put(bucketState, "probe", nil)
}

// hasRoom returns an error while so little is free that a disk that was full would be
// so again at once.
func (d *Disk) hasRoom() error {
	_, cause := d.health.look()
	if !errors.Is(cause, syscall.ENOSPC) && !errors.Is(cause, syscall.EDQUOT) {
		return nil
	}
	s, err := spaceOf(d.dir)
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
