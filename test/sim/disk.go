package sim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ringmod/ringmod/node/store"
)

// disk is what outlives the processes of a node: a folder, and what ails it.
type disk struct {
	dir   string
	limit int64 // bytes; 0 = none

	noWrites, noReads atomic.Bool // they fail

	mu     sync.Mutex // guards what follows
	opened *store.Disk
	held   map[string]time.Time // since when objects are here
	lost   map[string]int       // how often one was here and is not any more
	over   []string             // what I12 has to say
}

func newDisk(dir string) *disk {
	return &disk{dir: dir, held: make(map[string]time.Time), lost: make(map[string]int)}
}

// scratch makes a folder for the disks of a world, in memory where there is one for
// that: nobody needs what is synced to last.
func scratch() (string, error) {
	const memory = "/dev/shm"
	base := ""
	if info, err := os.Stat(memory); err == nil && info.IsDir() {
		base = memory
	}
	return os.MkdirTemp(base, "ringmod-sim-")
}

// open opens the folder for a process.
func (d *disk) open(cfg store.DiskConfig) (*handle, error) {
	if err := d.recall(); err != nil {
		return nil, err
	}
	cfg.Dir, cfg.Limit.Bytes, cfg.Fault = d.dir, d.limit, d.fault
	opened, err := store.OpenDisk(cfg)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.opened = opened
	return &handle{Disk: opened, disk: d}, nil
}

// hints is where a node keeps what others are still to be told.
func (d *disk) hints() string { return filepath.Join(d.dir, "hints") }

// seal keeps from a process that is killed what it would still write as it ends.
func (d *disk) seal() { _ = os.Rename(d.hints(), d.hints()+".sealed") }

// recall undoes seal.
func (d *disk) recall() error {
	if _, err := os.Stat(d.hints() + ".sealed"); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(os.RemoveAll(d.hints()), os.Rename(d.hints()+".sealed", d.hints()))
}

// fault is store.DiskConfig.Fault.
func (d *disk) fault(step string) error {
	reads := step == "check" || step == "pulse"
	if reads && d.noReads.Load() || !reads && d.noWrites.Load() {
		return &fs.PathError{Op: step, Path: d.dir, Err: syscall.EIO}
	}
	return nil
}

// wipe empties the folder.
func (d *disk) wipe() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.held {
		d.lost[name]++
	}
	clear(d.held)
	return os.RemoveAll(d.dir)
}

// rot flips a bit of each object that is drawn, and returns how many there were.
func (d *disk) rot(drawn func() bool) (n int, err error) {
	root := filepath.Join(d.dir, "objects")
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || strings.HasSuffix(path, "/@v/list") || !drawn() {
			return nil //nolint:nilerr // it was evicted meanwhile
		}
		if err := d.flip(path); err != nil {
			return err
		}
		n++
		local, err := filepath.Rel(root, path)
		d.forget(filepath.ToSlash(local))
		return err
	})
	return n, err
}

// flip puts a file in the place of another one that differs by a bit: a bit that is
// flipped in place would not be seen where the clock of the file system ticks less
// often than ours.
func (d *disk) flip(path string) error {
	data, err := os.ReadFile(path)
	if err != nil || len(data) == 0 {
		return err
	}
	data[len(data)/3] ^= 1
	bad := filepath.Join(d.dir, "rotten")
	return errors.Join(os.WriteFile(bad, data, 0o600), os.Rename(bad, path))
}

// has tells whether there is a file for an object, whatever is known of it.
func (d *disk) has(name string) bool {
	_, err := os.Lstat(filepath.Join(d.dir, "objects", filepath.FromSlash(name)))
	return err == nil
}

// forget notes that an object is not here any more.
func (d *disk) forget(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forgetLocked(name)
}

func (d *disk) forgetLocked(name string) {
	if _, held := d.held[name]; held {
		delete(d.held, name)
		d.lost[name]++
	}
}

// heldSince returns since when the process that runs has held an object, and how
// often one was lost here.
func (d *disk) heldSince(name string) (at time.Time, held bool, lost int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.opened == nil {
		return at, false, d.lost[name]
	}
	if _, err := d.opened.Stat(name); errors.Is(err, fs.ErrNotExist) {
		d.forgetLocked(name)
	}
	at, held = d.held[name]
	return at, held, d.lost[name]
}

func (d *disk) note(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.held[name]; !known {
		d.held[name] = time.Now()
	}
	d.weighLocked()
}

// weighLocked is I12: more than an object above the limit there never is.
func (d *disk) weighLocked() {
	if d.limit == 0 || len(d.over) > 0 || d.opened == nil {
		return
	}
	if taken := usage(d.dir); taken > d.limit+largest {
		d.over = append(d.over, fmt.Sprintf("I12 the disk takes %d bytes, its limit is %d", taken, d.limit))
	}
}

// largest is more than any object takes.
const largest = 1 << 20

// usage is what files take below dir, in bytes.
func usage(dir string) (bytes int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if info, err := e.Info(); err == nil {
				bytes += info.Size()
			}
		}
		return nil
	})
	return bytes
}

// put stores a copy without anybody's doing. One that has no room is left out.
func (d *disk) put(name string, data []byte, h1 string) error {
	d.mu.Lock()
	opened := d.opened
	d.mu.Unlock()
	p, err := opened.Create(name)
	if err != nil {
		return err
	}
	defer p.Abort()
	if _, err = p.Write(data); err == nil {
		_, err = p.Commit(store.Proof{H1: h1, Verified: h1 != ""})
	}
	if errors.Is(err, store.ErrFull) {
		return nil
	}
	if err == nil {
		d.note(name)
	}
	return err
}

// handle is a disk as one process has it open. It counts what is open.
type handle struct {
	*store.Disk

	disk    *disk
	files   atomic.Int64
	pending atomic.Int64
}

// close lets the folder go: nothing that the process still does changes it.
func (h *handle) close() {
	h.disk.mu.Lock()
	if h.disk.opened == h.Disk {
		h.disk.opened = nil
	}
	h.disk.mu.Unlock()
	_ = h.Disk.Close()
}

// names returns what is held, by the index.
func (h *handle) names() []string {
	var names []string
	_ = h.Walk(context.Background(), "", func(e store.Entry) bool {
		names = append(names, e.Name)
		return true
	})
	slices.Sort(names)
	return names
}

// Open implements store.Store.
func (h *handle) Open(ctx context.Context, name string) (*store.Object, error) {
	if err := h.disk.fault("check"); err != nil {
		return nil, err
	}
	obj, err := h.Disk.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	counted := *obj
	counted.File = h.open(obj.File)
	return &counted, nil
}

func (h *handle) open(f store.File) store.File {
	h.files.Add(1)
	return &openFile{File: f, disk: h.disk, close: sync.OnceFunc(func() { h.files.Add(-1) })}
}

type openFile struct {
	store.File

	disk  *disk
	close func()
}

// Read implements io.Reader.
func (f *openFile) Read(p []byte) (int, error) {
	if err := f.disk.fault("check"); err != nil {
		return 0, err
	}
	return f.File.Read(p)
}

// ReadAt implements io.ReaderAt.
func (f *openFile) ReadAt(p []byte, at int64) (int, error) {
	if err := f.disk.fault("check"); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, at)
}

func (f *openFile) Close() error {
	f.close()
	return f.File.Close()
}

// Create implements store.Store.
func (h *handle) Create(name string) (store.Pending, error) {
	p, err := h.Disk.Create(name)
	if err != nil {
		return nil, err
	}
	h.pending.Add(1)
	return &pending{Pending: p, handle: h, name: name, end: sync.OnceFunc(func() { h.pending.Add(-1) })}, nil
}

type pending struct {
	store.Pending

	handle *handle
	name   string
	end    func()
}

func (p *pending) Open() (store.File, error) {
	f, err := p.Pending.Open()
	if err != nil {
		return nil, err
	}
	return p.handle.open(f), nil
}

func (p *pending) Commit(proof store.Proof) (store.Entry, error) {
	defer p.end()
	entry, err := p.Pending.Commit(proof)
	if err == nil {
		p.handle.disk.note(p.name)
	}
	return entry, err
}

func (p *pending) Abort() {
	p.Pending.Abort()
	p.end()
}
