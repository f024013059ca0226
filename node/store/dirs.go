package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// maxKnownDirs bounds the memory of dirs; forgetting costs fsyncs only.
const maxKnownDirs = 1 << 16

// dirs makes folders that outlive a power cut.
//
// A folder that exists is not yet a durable one: whoever made it may not have
// synced its parent, or may have been killed before. So each is synced into its
// parent once in the life of the process.
type dirs struct {
	root string // exists and is durable

	making keyLock // by folder; a folder's lock is taken before its parent's

	mu    sync.Mutex
	known map[string]struct{} // durable
}

// ensure makes dir, which is root or below it, and makes it durable.
func (d *dirs) ensure(dir string) error {
	if dir == d.root || d.isKnown(dir) {
		return nil
	}
	release, err := d.making.lock(context.Background(), dir)
	if err != nil {
		return err
	}
	defer release()
	if d.isKnown(dir) {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := d.ensure(parent); err != nil {
		return err
	}
	// All: even root may have been tidied away.
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if err := syncDir(parent); err != nil {
		return fmt.Errorf("syncing %s: %w", parent, err)
	}
	d.setKnown(dir)
	return nil
}

// isKnown looks at the disk too: people tidy up by hand.
func (d *dirs) isKnown(dir string) bool {
	d.mu.Lock()
	_, ok := d.known[dir]
	d.mu.Unlock()
	if !ok {
		return false
	}
	_, err := os.Lstat(dir)
	return err == nil
}

func (d *dirs) setKnown(dir string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil || len(d.known) >= maxKnownDirs {
		d.known = make(map[string]struct{})
	}
	d.known[dir] = struct{}{}
}
