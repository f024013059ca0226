package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Stale is an object and when it was last compared with its entry in full: by Check, or
// as it was stored.
type Stale struct {
	Entry
	Checked time.Time
}

// Backlog is what waits to be checked.
type Backlog struct {
	Oldest         []Stale // those that were checked longest ago, that one first
	Objects, Bytes int64   // of all that wait
}

// Unchecked returns what was not checked since before, at most most objects of it by
// name. It reads the whole index, in pages.
func (d *Disk) Unchecked(ctx context.Context, before time.Time, most int) (Backlog, error) {
	return d.backlog(ctx, bucketChecks, before, most, func(string) bool { return true })
}

// backlog returns what is wanted of that and was not in a bucket of times since before.
func (d *Disk) backlog(ctx context.Context, bucket string, before time.Time, most int, wanted func(name string) bool) (Backlog, error) {
	var b Backlog
	for from := []byte{}; from != nil; {
		if ctx.Err() != nil {
			return Backlog{}, context.Cause(ctx)
		}
		page, orphans, next, err := d.checkedPage(bucket, from)
		if err == nil {
			err = d.index.submit(orphans...)
		}
		if err != nil {
			return Backlog{}, fmt.Errorf("reading the times of %s: %w", bucket, err)
		}
		for _, s := range page {
			if s.Checked.Before(before) && wanted(s.Name) {
				b.Objects, b.Bytes = b.Objects+1, b.Bytes+s.Size
				b.Oldest = append(b.Oldest, s)
			}
		}
		if len(b.Oldest) > most+versionPage {
			b.Oldest = oldest(b.Oldest, most)
		}
		from = next
	}
	b.Oldest = oldest(b.Oldest, most)
	return b, nil
}

func oldest(all []Stale, most int) []Stale {
	slices.SortStableFunc(all, func(a, b Stale) int { return a.Checked.Compare(b.Checked) })
	return all[:min(most, len(all))]
}

// checkedPage returns objects from a name on, the name to go on from, nil at the end, and
// the removal of what is known of objects that are gone.
func (d *Disk) checkedPage(bucket string, from []byte) (page []Stale, orphans []*indexWrite, next []byte, err error) {
	err = d.index.view(func(f *indexFile, tx *bolt.Tx) error {
		page, orphans, next = nil, nil, nil
		objects, checks := tx.Bucket([]byte(bucketObjects)), tx.Bucket([]byte(bucket))
		if objects == nil || checks == nil {
			return &brokenError{errTree}
		}
		if err := errors.Join(f.tree(objects).checkAll(), f.tree(checks).checkAll()); err != nil {
			return err
		}
		var entries []Entry
		entries, next = readEntries(objects.Cursor(), from, "", versionPage)
		at := checkTimes(bucket, checks.Cursor(), from, next)
		for _, e := range entries {
			s := Stale{Entry: e, Checked: e.Stored}
			if t, ok := at[e.Name]; ok && t.After(s.Checked) {
				s.Checked = t
			}
			delete(at, e.Name)
			page = append(page, s)
		}
		for name := range at {
			orphans = append(orphans, &indexWrite{bucket: bucket, name: name})
		}
		return nil
	})
	return page, orphans, next, err
}

// checkTimes reads the times of the names from one to another, nil being the end.
func checkTimes(bucket string, c *bolt.Cursor, from, to []byte) map[string]time.Time {
	at := make(map[string]time.Time)
	for k, v := c.Seek(from); k != nil && (to == nil || bytes.Compare(k, to) < 0); k, v = c.Next() {
		name := string(k)
		at[name] = time.Time{}
		if payload, err := unseal(bucket, name, v); err == nil {
			seconds, _ := binary.Varint(payload)
			at[name] = time.Unix(seconds, 0)
		}
	}
	return at
}

// Checked keeps that Check has found these objects good at a time. A disk that takes
// nothing forgets it.
func (d *Disk) Checked(at time.Time, names ...string) error { return d.mark(bucketChecks, at, names) }

func (d *Disk) mark(bucket string, at time.Time, names []string) error {
	if d.ReadOnly() != nil {
		return nil //nolint:nilerr // as said above
	}
	value := binary.AppendVarint(nil, at.Unix())
	writes := make([]*indexWrite, len(names))
	for i, name := range names {
		writes[i] = &indexWrite{bucket: bucket, name: name, value: seal(bucket, name, bytes.Clone(value))}
	}
	return d.trouble(d.index.submit(writes...))
}

// Check reads an object and compares all of it with its entry: size, the CRC-32C of
// each chunk, SHA-256. After each chunk it calls pace, which tells by an error to stop,
// with the bytes and how long they took. Whoever wants to read, replace or evict the object
// meanwhile can.
//
// A bad copy is looked at a second time, with nobody else at it, and set aside: a
// *CorruptError. What is not there is fs.ErrNotExist, and its entry is dropped; neither says
// anything about when Check ran.
func (d *Disk) Check(ctx context.Context, name string, pace func(n int, took time.Duration) error) error {
	path, err := d.path("check", name)
	if err != nil {
		return err
	}
	if err := d.Dead(); err != nil {
		return err
	}
	err = d.compareFile(ctx, name, path, pace)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, d.dropMissing(ctx, name))
	}
	if _, bad := errors.AsType[*badCopyError](err); !bad {
		return err
	}
	release, err := d.names.lock(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	err = d.compareFile(ctx, name, path, func(int, time.Duration) error { return nil })
	return d.judged(ctx, name, path, err)
}

// compareFile returns a *badCopyError for a file that is not what its entry says.
func (d *Disk) compareFile(ctx context.Context, name, path string, pace func(int, time.Duration) error) error {
	r, err := d.record(name)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if absent(err) {
		return notExist(name)
	}
	if err != nil {
		return d.unreadable(err)
	}
	defer f.Close() //nolint:errcheck // only read
	id, err := stat(f)
	if err != nil {
		return err
	}
	if id.size != r.Size {
		return &badCopyError{fmt.Errorf("%w: %d bytes, want %d", errSize, id.size, r.Size)}
	}
	readOnce(f)
	return d.compareBytes(ctx, f, r, pace)
}

func (d *Disk) compareBytes(ctx context.Context, f *os.File, r *record, pace func(int, time.Duration) error) error {
	sum, began := sha256.New(), time.Now()
	err := d.buffers.read(ctx, f, r.Size, func(i int, chunk []byte) error {
		if crc32.Checksum(chunk, castagnoli()) != r.sums[i] {
			return &badCopyError{fmt.Errorf("chunk %d: %w", i, errSum)}
		}
		sum.Write(chunk)
		err := pace(len(chunk), time.Since(began))
		began = time.Now()
		return err
	})
	if err == nil && [32]byte(sum.Sum(nil)) != r.SHA256 {
		err = &badCopyError{fmt.Errorf("SHA-256: %w", errSum)}
	}
	return err
}

// SetAside puts the copy of an object into the quarantine whose bytes are those of its
// entry, and whose entry has proven wrong. Nothing is remembered of it. An absent one is
// no error.
func (d *Disk) SetAside(ctx context.Context, name string, cause error) error {
	path, release, err := d.lockPath(ctx, "check", name)
	if err != nil {
		return err
	}
	defer release()
	if _, err := os.Lstat(path); absent(err) {
		return nil
	}
	err = d.setAside(ctx, name, path, cause)
	if errors.Is(err, fs.ErrNotExist) { // what a *CorruptError is
		err = nil
	}
	return errors.Join(err, d.Forget(name))
}
