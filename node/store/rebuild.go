package store

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"
)

// maxPause bounds the pause after each adopted object.
const maxPause = time.Second

// complete reports whether the index knows every object.
func (d *Disk) complete() bool {
	return d.index.get(bucketState, keyComplete, func([]byte) error { return nil }) == nil
}

// rebuilds brings objects back into an index that was lost, until ctx ends.
func (d *Disk) rebuilds(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.rebuild:
		}
		adopted, err := d.adoptAll(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil && len(d.rebuild) == 0 { // else the index was lost again
			err = d.index.put(bucketState, keyComplete, nil)
		}
		if err != nil {
			d.logger.ErrorContext(ctx, "index not rebuilt", "objects", adopted, "err", err)
		} else if adopted > 0 {
			d.logger.InfoContext(ctx, "index rebuilt", "objects", adopted)
		}
	}
}

// adoptAll opens each object that has no entry, which adopts it or sets it aside.
// It rests as long as it works, for the sake of those who wait for the disk. What is
// still to come counts against the limit.
func (d *Disk) adoptAll(ctx context.Context) (adopted int, err error) {
	defer d.unindexed.Store(0)
	var left int64
	err = d.walkUnindexed(ctx, func(_, _ string, size int64) error {
		left += charge(size)
		return nil
	})
	if err != nil {
		return 0, err
	}
	d.unindexed.Store(left)
	err = d.walkUnindexed(ctx, func(name, path string, size int64) error {
		began := time.Now()
		if d.adoptOne(ctx, name, path) {
			adopted++
		}
		d.unindexed.Store(max(0, d.unindexed.Load()-charge(size)))
		return rest(ctx, min(time.Since(began), maxPause))
	})
	return adopted, err
}

// walkUnindexed visits the files below objects that have no entry.
func (d *Disk) walkUnindexed(ctx context.Context, visit func(name, path string, size int64) error) error {
	return filepath.WalkDir(d.dirs.root, func(path string, e fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed meanwhile
			return nil
		case err != nil:
			return err
		case !e.Type().IsRegular():
			return nil
		}
		local, err := filepath.Rel(d.dirs.root, path)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(local)
		if _, err := d.record(name); err == nil || derived(name) {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return nil //nolint:nilerr // removed meanwhile
		}
		return visit(name, path, info.Size())
	})
}

// adoptOne does what Open does, but never contents itself with an earlier check:
// that would leave the object without an entry.
func (d *Disk) adoptOne(ctx context.Context, name, path string) bool {
	release, err := d.names.lock(ctx, name)
	if err != nil {
		return false
	}
	defer release()
	o, err := d.openUnchecked(ctx, name, path)
	if err == nil {
		o.File.Close()
	} else if !errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil {
		d.logger.WarnContext(ctx, "object not indexed", "key", name, "err", err)
	}
	return err == nil
}

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
