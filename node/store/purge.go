package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	bolt "go.etcd.io/bbolt"
)

// ErrPurged says that what was to be stored is in DiskConfig.Purged.
var ErrPurged = errors.New("purged by an operator")

// Purged is what was removed.
type Purged struct {
	Objects int
	Bytes   int64
}

// purgeBatch is how many names share the fsyncs of their removal.
const purgeBatch = 256

// Purge removes the objects and documents whose names begin with prefix and that match
// names, also files that the index does not know, and bad copies of them. To keep them
// away, they must be in DiskConfig.Purged before. When it has returned nil, the removal
// is durable.
func (d *Disk) Purge(ctx context.Context, prefix string, match func(name string) bool) (Purged, error) {
	dir := prefix[:strings.LastIndexByte(prefix, '/')+1]
	path := d.dirs.root
	if dir != "" {
		var err error
		if path, err = d.path("purge", strings.TrimSuffix(dir, "/")); err != nil {
			return Purged{}, err
		}
	}
	p := purging{disk: d, wanted: func(name string) bool { return strings.HasPrefix(name, prefix) && match(name) }}
	d.hot.purge(p.wanted)
	err := p.files(ctx, path)
	if err == nil {
		err = p.index(ctx, prefix)
	}
	if err == nil {
		err = d.quarantine.remove(p.wanted)
	}
	return p.removed, err
}

// PurgeObject is Purge of one name, without looking for others.
func (d *Disk) PurgeObject(ctx context.Context, name string) (Purged, error) {
	path, err := d.path("purge", name)
	if err != nil {
		return Purged{}, err
	}
	p := purging{disk: d, wanted: func(other string) bool { return other == name }}
	d.hot.Remove(name)
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
		p.removed = Purged{1, info.Size()}
	}
	if err := p.remove(ctx, []string{name}); err != nil {
		return Purged{}, err
	}
	return p.removed, d.quarantine.remove(p.wanted)
}

// purging is one Purge.
type purging struct {
	disk    *Disk
	wanted  func(name string) bool
	removed Purged
}

// files removes what is below path, with the entries of it.
func (p *purging) files(ctx context.Context, path string) error {
	var batch []string
	err := filepath.WalkDir(path, func(path string, e fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case absent(err):
			return nil
		case err != nil:
			return err
		case !e.Type().IsRegular():
			return nil
		}
		local, err := filepath.Rel(p.disk.dirs.root, path)
		name := filepath.ToSlash(local)
		if err != nil || !p.wanted(name) {
			return err
		}
		if info, err := e.Info(); err == nil && !derived(name) {
			p.removed.Objects, p.removed.Bytes = p.removed.Objects+1, p.removed.Bytes+info.Size()
		}
		if batch = append(batch, name); len(batch) < purgeBatch {
			return nil
		}
		err = p.remove(ctx, batch)
		batch = batch[:0]
		return err
	})
	if err == nil {
		err = p.remove(ctx, batch)
	}
	return err
}

// index removes entries without files, and documents.
func (p *purging) index(ctx context.Context, prefix string) error {
	for _, bucket := range []string{bucketObjects, bucketDocuments, bucketLost, bucketFindings} {
		for from := []byte(prefix); from != nil; {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			names, next, err := p.disk.index.names(bucket, from, prefix, purgeBatch)
			if err != nil {
				return fmt.Errorf("reading the index: %w", err)
			}
			names = slices.DeleteFunc(names, func(name string) bool { return !p.wanted(name) })
			if err := p.remove(ctx, names); err != nil {
				return err
			}
			from = next
		}
	}
	return nil
}

// remove removes files first, as Disk.Remove does, then all that is known of them.
func (p *purging) remove(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	dirs := map[string]bool{}
	var writes []*indexWrite
	for _, name := range names {
		if err := p.disk.unlink(ctx, name, dirs); err != nil {
			return err
		}
		writes = append(writes, &indexWrite{bucket: bucketObjects, name: name}, &indexWrite{bucket: bucketDocuments, name: name},
			&indexWrite{bucket: bucketUses, name: versionOf(name)}, &indexWrite{bucket: bucketLost, name: name},
			&indexWrite{bucket: bucketFindings, name: name})
	}
	for dir := range dirs {
		if err := syncDir(dir); err != nil && !absent(err) {
			return err
		}
	}
	if err := p.disk.index.submit(writes...); err != nil {
		return fmt.Errorf("removing entries: %w", err)
	}
	return nil
}

// unlink removes the file of name. The entry is left, and the folder in dirs.
func (d *Disk) unlink(ctx context.Context, name string, dirs map[string]bool) error {
	path, release, err := d.lockPath(ctx, "purge", name)
	if err != nil {
		return err
	}
	defer release()
	d.verified.forget(name)
	err = os.Remove(path)
	if absent(err) {
		return nil
	}
	dirs[filepath.Dir(path)] = true
	return err
}

// refuse is for what came to name while it was purged, or before its files could be
// removed: neither file nor entry stays. The caller holds the name.
func (d *Disk) refuse(name, path string) error {
	d.verified.forget(name)
	err := os.Remove(path)
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if absent(err) {
		err = nil
	}
	return errors.Join(ErrPurged, err, d.index.submit(
		&indexWrite{bucket: bucketObjects, name: name}, &indexWrite{bucket: bucketDocuments, name: name}))
}

// names returns at most most names of a bucket that begin with prefix, from one on, and
// the one to go on from, nil at the end.
func (ix *index) names(bucket string, from []byte, prefix string, most int) (names []string, next []byte, err error) {
	err = ix.view(func(f *indexFile, tx *bolt.Tx) error {
		names, next = nil, nil
		b, err := f.bucket(tx, bucket, string(from))
		if err != nil {
			return err
		}
		if err := f.tree(b).checkAll(); err != nil {
			return err
		}
		c := b.Cursor()
		for k, _ := c.Seek(from); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, _ = c.Next() {
			if len(names) == most {
				next = bytes.Clone(k)
				return nil
			}
			names = append(names, string(k))
		}
		return nil
	})
	return names, next, err
}

// remove removes bad copies of what is wanted. One whose name was too long to be kept
// whole stays until it makes room.
func (q *quarantine) remove(wanted func(name string) bool) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	entries, err := os.ReadDir(q.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		_, flat, _ := strings.Cut(e.Name(), "-")
		if !wanted(strings.ReplaceAll(flat, "%2f", "/")) {
			continue
		}
		if err := os.Remove(filepath.Join(q.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return q.trimLocked()
}
