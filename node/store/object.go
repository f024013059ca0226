package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
)

var errNoEntry = errors.New("no index entry, and nothing that could check the content")

// Open implements Store. A file that was checked lately costs an open and a stat, a
// small one that was read lately the stat; any other is read once, whoever asks meanwhile waits for that. Errors of the
// disk are *CorruptError where only the copy cannot be read.
func (d *Disk) Open(ctx context.Context, name string) (*Object, error) {
	path, err := d.path("open", name)
	if err != nil {
		return nil, err
	}
	if derived(name) || d.purged(name) {
		return nil, notExist(name)
	}
	if err := d.Dead(); err != nil {
		return nil, err
	}
	o, err := d.openGood(ctx, name, path)
	if err == nil && !isUnused(ctx) {
		d.uses.mark(name)
	}
	return o, err
}

// openGood opens a file that was checked lately or is good.
func (d *Disk) openGood(ctx context.Context, name, path string) (*Object, error) {
	if o := d.openChecked(name, path); o != nil {
		return o, nil
	}
	release, err := d.lockToOpen(ctx, name)
	if err != nil {
		return nil, err
	}
	defer release()
	if o := d.openChecked(name, path); o != nil {
		return o, nil
	}
	return d.openUnchecked(ctx, name, path)
}

// busySign is between two signs that a name is waited for: much less than anybody's patience
// with a disk.
const busySign = 500 * time.Millisecond

// lockToOpen waits for who has the name, and tells so as progress: a commit may take its
// time over fsync. Where that hangs with the disk, the wait ends when the disk is found dead.
func (d *Disk) lockToOpen(ctx context.Context, name string) (release func(), err error) {
	return d.names.lockWhile(ctx, name, busySign, func() error {
		Progress(ctx)()
		return d.Dead()
	})
}

// lockPath is names.lock, for who wants the path of name, too.
func (d *Disk) lockPath(ctx context.Context, op, name string) (path string, release func(), err error) {
	if path, err = d.path(op, name); err == nil {
		release, err = d.names.lock(ctx, name)
	}
	return path, release, err
}

// openChecked opens a file whose check still counts. It takes no lock: entry
// and identity were remembered together, so a commit or removal under way can
// only make it return nil or what was there before.
func (d *Disk) openChecked(name, path string) *Object {
	c, ok := d.verified.get(name)
	if !ok {
		return nil
	}
	if c.id.size <= maxKept {
		return d.openKept(c, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	if info, err := f.Stat(); err != nil || identityOf(info) != c.id {
		f.Close() //nolint:errcheck // only read
		return nil
	}
	return &Object{Entry: c.entry, File: f}
}

// openUnchecked reads the file and compares it with its entry, or adopts it. The
// caller holds the name.
func (d *Disk) openUnchecked(ctx context.Context, name, path string) (*Object, error) {
	if d.purged(name) { // found by a walk
		return nil, errors.Join(notExist(name), d.refuse(name, path))
	}
	f, err := os.Open(path)
	if absent(err) {
		return nil, d.dropEntry(name)
	}
	if err != nil {
		return nil, d.unreadable(err)
	}
	entry, err := d.judge(ctx, name, f)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err == nil {
		return &Object{Entry: entry, File: f}, nil
	}
	defer f.Close() //nolint:errcheck // only read
	return nil, d.judged(ctx, name, path, err)
}

// judged sets a copy aside that is bad, unless the disk is to blame for all.
func (d *Disk) judged(ctx context.Context, name, path string, err error) error {
	bad, ok := errors.AsType[*badCopyError](err)
	if !ok {
		return err
	}
	if err := d.unreadable(bad.err); err != bad.err { //nolint:errorlint // the same one
		return err
	}
	return d.setAside(ctx, name, path, bad.err)
}

// absent reports whether err says that there is no such file.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ENAMETOOLONG)
}

// dropEntry forgets an entry that has no file. The file was removed by hand, or a
// commit ended between entry and rename.
func (d *Disk) dropEntry(name string) error {
	d.verified.forget(name)
	if _, err := d.record(name); err == nil {
		if err := d.index.remove(name); err != nil {
			return fmt.Errorf("dropping the entry of %s: %w", name, err)
		}
	}
	return notExist(name)
}

// record reads the entry of an object; fs.ErrNotExist when it has none.
func (d *Disk) record(name string) (r *record, err error) {
	err = d.index.get(bucketObjects, name, func(payload []byte) (err error) {
		r, err = decodeRecord(name, payload)
		return err
	})
	return r, err
}

// judge returns the entry of what f holds, or an error. It tries again when
// somebody touches the file meanwhile.
func (d *Disk) judge(ctx context.Context, name string, f *os.File) (Entry, error) {
	for range 3 {
		began := time.Now()
		before, err := stat(f)
		if err != nil {
			return Entry{}, err
		}
		entry, err := d.judgeOnce(ctx, name, f, before)
		after, statErr := stat(f)
		if statErr != nil {
			return Entry{}, statErr
		}
		if after != before {
			continue
		}
		if err == nil {
			d.verified.add(checkedFile{entry: entry, id: before, at: began})
		}
		return entry, err
	}
	return Entry{}, fmt.Errorf("checking %s: %w", name, errChanging)
}

func stat(f *os.File) (identity, error) {
	info, err := f.Stat()
	if err != nil {
		return identity{}, err
	}
	if info.IsDir() {
		return identity{}, notExist(f.Name())
	}
	return identityOf(info), nil
}

func (d *Disk) judgeOnce(ctx context.Context, name string, f *os.File, id identity) (Entry, error) {
	if err := d.step("check"); err != nil {
		return Entry{}, err
	}
	r, err := d.record(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d.adopt(ctx, name, f, id)
	case err != nil && (d.inspect == nil || errors.Is(err, fs.ErrClosed)):
		return Entry{}, fmt.Errorf("reading the entry of %s: %w", name, err)
	case err != nil: // no index to be had: the content has to speak for itself
		return d.adopt(ctx, name, f, id)
	}
	if r.Size != id.size {
		return Entry{}, &badCopyError{fmt.Errorf("%w: %d bytes, want %d", errSize, id.size, r.Size)}
	}
	return r.Entry, d.buffers.check(ctx, f, r)
}

// adopt makes an entry for a file that has none.
func (d *Disk) adopt(ctx context.Context, name string, f *os.File, id identity) (Entry, error) {
	if d.inspect == nil {
		return Entry{}, &badCopyError{errNoEntry}
	}
	sum := newSummer()
	err := d.buffers.read(ctx, f, id.size, func(_ int, chunk []byte) error {
		sum.add(chunk)
		return nil
	})
	if err != nil {
		return Entry{}, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return Entry{}, err
	}
	proof, err := d.inspect(name, f)
	if err != nil {
		return Entry{}, &badCopyError{err}
	}
	if now, err := stat(f); err != nil || now != id {
		return Entry{}, errChanging // judge sees it too and begins again
	}
	r := sum.record(name, proof)
	// Whoever put the file there may not have synced it.
	err = errors.Join(f.Sync(), syncDir(filepath.Dir(f.Name())))
	if err == nil {
		err = d.index.put(bucketObjects, name, r.encode())
	}
	if err != nil {
		// The content is right, so a full disk is no reason to withhold it.
		d.logger.WarnContext(ctx, "object not indexed", "key", name, "err", err)
	}
	return r.Entry, nil
}

// setAside moves a bad copy to the quarantine. The caller holds the name, so
// that the file at path is the one that was read, unless somebody outside
// replaces it.
func (d *Disk) setAside(ctx context.Context, name, path string, cause error) error {
	d.verified.forget(name)
	d.logger.ErrorContext(ctx, "bad copy set aside", "key", name, "err", cause)
	writes := []*indexWrite{{bucket: bucketObjects, name: name}}
	if r, err := d.record(name); err == nil {
		writes = append(writes, lose(r))
		defer ask(d.lossNews)
	}
	err := d.quarantine.take(path, name)
	if err == nil {
		err = d.index.submit(writes...)
	}
	if err != nil {
		// It is not served either way: each Open checks it again.
		d.logger.ErrorContext(ctx, "bad copy not set aside completely", "key", name, "err", err)
	}
	return &CorruptError{Name: name, Err: cause}
}

// Remove implements Store. The file goes before its entry: the other way round
// a crash in between would bring the object back.
func (d *Disk) Remove(name string) error {
	path, err := d.path("remove", name)
	if err != nil || derived(name) {
		return err
	}
	release, err := d.names.lock(context.Background(), name)
	if err != nil {
		return err
	}
	defer release()
	d.hot.Remove(name)
	d.verified.forget(name)
	err = os.Remove(path)
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil && !absent(err) {
		return err
	}
	err = d.index.submit(&indexWrite{bucket: bucketObjects, name: name}, &indexWrite{bucket: bucketLost, name: name})
	if err != nil {
		return fmt.Errorf("removing the entry of %s: %w", name, err)
	}
	return nil
}

// walkPage is how many entries Walk reads in one transaction.
const walkPage = 256

// Walk implements Store.
func (d *Disk) Walk(ctx context.Context, prefix string, visit func(Entry) bool) error {
	for from := []byte(prefix); from != nil; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		entries, next, err := d.walkPage(from, prefix)
		if err != nil {
			return fmt.Errorf("reading the index: %w", err)
		}
		for _, e := range entries {
			if !visit(e) {
				return nil
			}
		}
		from = next
	}
	return nil
}

// walkPage returns the entries from a name on and the name to go on from, nil at
// the end.
func (d *Disk) walkPage(from []byte, prefix string) (entries []Entry, next []byte, err error) {
	err = d.index.view(func(f *indexFile, tx *bolt.Tx) error {
		entries, next = nil, nil
		b, err := f.bucket(tx, bucketObjects, string(from))
		if err != nil {
			return err
		}
		if err := f.tree(b).checkAll(); err != nil {
			return err
		}
		entries, next = readEntries(b.Cursor(), from, prefix, walkPage)
		return nil
	})
	return entries, next, err
}
