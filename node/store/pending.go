package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// diskPending is an object being written to a temporary file.
type diskPending struct {
	disk *Disk
	name string
	path string // of the object

	// The writer's.
	sum    *summer
	failed error // what the first bad Write met

	mu        sync.Mutex
	file      *os.File // nil after the end
	committed fs.FileInfo
	reserved  int64 // bytes of the budget; 0 after the end
	written   int64 // of these
}

// Create implements Store.
func (d *Disk) Create(name string) (Pending, error) {
	path, err := d.path("create", name)
	if err != nil {
		return nil, err
	}
	if derived(name) {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrInvalid}
	}
	if d.purged(name) {
		return nil, fmt.Errorf("creating %s: %w", name, ErrPurged)
	}
	if err := d.ReadOnly(); err != nil {
		return nil, fmt.Errorf("creating %s: %w", name, err)
	}
	f, err := d.createTemp()
	if err != nil {
		return nil, fmt.Errorf("creating %s: %w", name, d.trouble(err))
	}
	d.uses.begin(name)
	return &diskPending{disk: d, name: name, path: path, sum: newSummer(), file: f}, nil
}

func (p *diskPending) Reserve(size int64) error {
	if p.current() == nil {
		return fs.ErrClosed
	}
	if p.failed == nil {
		p.failed = p.reserve(charge(size))
	}
	return p.failed
}

// reserve sees to it that total bytes are.
func (p *diskPending) reserve(total int64) error {
	if total <= p.reserved {
		return nil
	}
	if err := p.disk.budget.reserve(total - p.reserved); err != nil {
		if p.disk.budget.capacity() <= 0 {
			_ = p.disk.trouble(p.disk.crowdedOut())
		}
		return fmt.Errorf("writing %s: %w", p.name, err)
	}
	p.setReserved(total)
	return nil
}

// reserveAhead reserves total bytes if there is plenty.
func (p *diskPending) reserveAhead(total int64) bool {
	plenty := p.disk.budget.reserveSpare(total - p.reserved)
	if plenty {
		p.setReserved(total)
	}
	return plenty
}

func (p *diskPending) setReserved(total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reserved = total
}

func (p *diskPending) Write(b []byte) (int, error) {
	f := p.current()
	if f == nil {
		return 0, fs.ErrClosed
	}
	if p.failed != nil {
		return 0, p.failed
	}
	total := charge(p.sum.size + int64(len(b)))
	if total > p.reserved && !p.reserveAhead(total+reserveStep) {
		if p.failed = p.reserve(total); p.failed != nil {
			return 0, p.failed
		}
	}
	n, err := p.write(f, b)
	p.sum.add(b[:n])
	if err != nil {
		p.failed = fmt.Errorf("writing %s: %w", p.name, p.disk.trouble(err))
	}
	return n, p.failed
}

func (p *diskPending) write(f *os.File, b []byte) (int, error) {
	if err := p.disk.step("write"); err != nil {
		return 0, err
	}
	n, err := f.Write(b)
	p.mu.Lock()
	p.written += int64(n)
	p.mu.Unlock()
	p.disk.budget.wrote(int64(n))
	return n, err
}

// giveBack ends what was reserved.
func (p *diskPending) giveBack() {
	p.mu.Lock()
	reserved, written := p.reserved, p.written
	p.reserved, p.written = 0, 0
	p.mu.Unlock()
	p.disk.budget.release(reserved, written)
}

// release is for a file that is an object or gone.
func (p *diskPending) release() {
	p.giveBack()
	p.disk.uses.end(p.name)
}

func (p *diskPending) current() *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.file
}

func (p *diskPending) Open() (File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file != nil {
		return openAs(p.file.Name(), nil)
	}
	if p.committed == nil {
		return nil, fs.ErrClosed
	}
	return openAs(p.path, p.committed)
}

// openAs opens a file that must be want, where want is not nil.
func openAs(path string, want fs.FileInfo) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if want == nil {
		return f, nil
	}
	if info, err := f.Stat(); err != nil || !os.SameFile(info, want) {
		f.Close() //nolint:errcheck // only read
		return nil, notExist(path)
	}
	return f, nil
}

func (p *diskPending) Abort() {
	if p.drop() {
		p.release()
	}
}

// drop removes the file unless it is an object or was removed before.
func (p *diskPending) drop() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return false
	}
	p.file.Close()           //nolint:errcheck // nobody wants the bytes
	os.Remove(p.file.Name()) //nolint:errcheck // else the next start does it
	p.file = nil
	return true
}

// Commit makes the object durable, in this order:
//
//	fsync(temporary file)
//	mkdir and fsync(parent) for each new folder
//	put entry, with a transaction's fsync, shared by commits at the same time
//	rename(temporary file, object)
//	fsync(folder)
//
// A crash leaves, up to the second fsync, a temporary file, which the next start
// removes; then an entry without a file, which counts as absent; and after the
// rename an object. When it replaces another one, a crash between entry and
// rename leaves a file that does not fit its entry: it is set aside.
func (p *diskPending) Commit(proof Proof) (Entry, error) {
	f := p.current()
	if f == nil {
		return Entry{}, fs.ErrClosed
	}
	if p.failed != nil {
		p.Abort()
		return Entry{}, p.failed
	}
	r := p.sum.record(p.name, proof)
	if err := p.commit(f, r); err != nil {
		if _, crashed := errors.AsType[*crash](err); !crashed {
			p.drop()
		}
		p.release()
		return Entry{}, fmt.Errorf("committing %s: %w", p.name, p.disk.trouble(err))
	}
	p.release()
	return r.Entry, nil
}

// crash is how tests end a commit without any tidying up.
type crash struct{}

func (*crash) Error() string { return "crash" }

func (p *diskPending) commit(f *os.File, r *record) error {
	if err := p.disk.step("written"); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if info, err := f.Stat(); err != nil || info.Size() != r.Size {
		return fmt.Errorf("temporary file: %w", errSize)
	}
	if err := p.disk.step("synced"); err != nil {
		return err
	}
	if err := p.disk.dirs.ensure(filepath.Dir(p.path)); err != nil {
		return err
	}
	if err := p.disk.step("folders"); err != nil {
		return err
	}
	release, err := p.disk.names.lock(context.Background(), p.name)
	if err != nil {
		return err
	}
	defer release()
	return p.publish(f, r)
}

// publish puts entry and file in place. The caller holds the name.
func (p *diskPending) publish(f *os.File, r *record) error {
	d := p.disk
	if d.purged(p.name) {
		return ErrPurged
	}
	if err := d.mayReplace(r); err != nil {
		return err
	}
	old, _ := d.record(p.name)
	if err := d.index.submit(r.write(), &indexWrite{bucket: bucketLost, name: p.name}); err != nil {
		return fmt.Errorf("indexing: %w", err)
	}
	d.gone.forget(p.name)
	p.giveBack() // the entry counts from now on
	err := d.step("indexed")
	if _, crashed := errors.AsType[*crash](err); crashed {
		return err
	}
	if err == nil {
		err = d.keepOlder(p.path, old, r)
	}
	if err == nil {
		err = p.rename(f)
	}
	if err != nil {
		d.restore(p.name, old)
		return err
	}
	if err := d.step("renamed"); err != nil {
		return err
	}
	if d.purged(p.name) { // since then: whoever removes it may have looked before it was here
		return d.refuse(p.name, p.path)
	}
	if err := syncDir(filepath.Dir(p.path)); err != nil {
		return err
	}
	// Not by the handle that has written: the name must lead to the object.
	if info, err := os.Stat(p.path); err == nil && os.SameFile(info, p.committed) {
		d.verified.add(checkedFile{entry: r.Entry, id: identityOf(info), at: time.Now()})
	}
	return nil
}

// keepOlder puts what has other bytes than r, and is about to be replaced by it, into
// the quarantine.
func (d *Disk) keepOlder(path string, old, r *record) error {
	if old == nil || old.SHA256 == r.SHA256 || versionOf(r.Name) == r.Name {
		return nil
	}
	d.logger.Error("object replaced by other bytes, the older ones are in quarantine", "key", r.Name,
		"older", fmt.Sprintf("%x", old.SHA256), "newer", fmt.Sprintf("%x", r.SHA256))
	if err := d.quarantine.keep(path, r.Name); err != nil && !absent(err) {
		return fmt.Errorf("keeping the older bytes: %w", err)
	}
	return nil
}

// rename ends the writing: from here on Open reads the object.
func (p *diskPending) rename(f *os.File) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), p.path); err != nil {
		return err
	}
	p.committed, p.file = info, nil
	return f.Close()
}

// restore undoes the entry of a commit whose rename has failed. What does not work either
// is tried again when the disk is well; the next Open finds out, too.
func (d *Disk) restore(name string, old *record) {
	var err error
	if old == nil {
		err = d.index.remove(name)
	} else {
		err = d.index.put(bucketObjects, name, old.encode())
	}
	if err != nil {
		d.doubts.add(name)
		d.logger.Warn("entry of a failed commit not undone", "key", name, "err", err)
	}
}
