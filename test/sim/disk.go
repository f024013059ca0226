package sim

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/ringmod/ringmod/node/antientropy"
	"github.com/ringmod/ringmod/node/store"
)

// disk is what outlives the processes of a node.
type disk struct {
	*store.Mem

	mu   sync.Mutex // guards what follows
	held map[string]time.Time
}

func newDisk() *disk {
	d := &disk{Mem: store.NewMem(), held: make(map[string]time.Time)}
	d.Place = antientropy.Place
	return d
}

// heldSince returns when an object was first committed, false if it was not.
func (d *disk) heldSince(name string) (time.Time, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at, ok := d.held[name]
	return at, ok
}

func (d *disk) note(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.held[name]; !known {
		d.held[name] = time.Now()
	}
}

// put stores a copy without anybody's doing.
func (d *disk) put(name string, data []byte, h1 string) error {
	p, err := d.Create(name)
	if err != nil {
		return err
	}
	defer p.Abort()
	if _, err := p.Write(data); err != nil {
		return err
	}
	if _, err := p.Commit(store.Proof{H1: h1, Verified: h1 != ""}); err != nil {
		return err
	}
	d.note(name)
	return nil
}

var errKilled = errors.New("the process was killed")

// handle is a disk as one process has it open: once that is killed, nothing it
// still does changes anything. It counts what is open.
type handle struct {
	disk *disk

	mu      sync.Mutex // guards what follows, held while something is stored
	killed  bool
	files   int
	pending int
}

func (h *handle) kill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.killed = true
}

// leaks tells what was left open.
func (h *handle) leaks() (files, pending int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.files, h.pending
}

// change runs a change of the disk, unless the process was killed.
func (h *handle) change(f func() error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.killed {
		return errKilled
	}
	return f()
}

func (h *handle) count(files, pending int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.files += files
	h.pending += pending
}

// Open implements store.Store.
func (h *handle) Open(ctx context.Context, name string) (*store.Object, error) {
	obj, err := h.disk.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	counted := *obj
	counted.File = h.open(obj.File)
	return &counted, nil
}

func (h *handle) open(f store.File) store.File {
	h.count(1, 0)
	return &openFile{File: f, close: sync.OnceFunc(func() { h.count(-1, 0) })}
}

type openFile struct {
	store.File

	close func()
}

func (f *openFile) Close() error {
	f.close()
	return f.File.Close()
}

// Stat implements store.Store.
func (h *handle) Stat(name string) (store.Entry, error) { return h.disk.Stat(name) }

// Sums implements antientropy.Store.
func (h *handle) Sums(ctx context.Context) ([]store.Sum, error) { return h.disk.Sums(ctx) }

// Keys implements antientropy.Store.
func (h *handle) Keys(ctx context.Context, partition int, after store.Key, most int) ([]store.Key, error) {
	return h.disk.Keys(ctx, partition, after, most)
}

// HasRoom implements antientropy.Store.
func (h *handle) HasRoom() bool { return h.disk.HasRoom() }

// Backdate implements antientropy.Store.
func (h *handle) Backdate(name string, used time.Time) error {
	return h.change(func() error { return h.disk.Backdate(name, used) })
}

// Walk implements store.Store.
func (h *handle) Walk(ctx context.Context, prefix string, visit func(store.Entry) bool) error {
	return h.disk.Walk(ctx, prefix, visit)
}

// Remove implements store.Store.
func (h *handle) Remove(name string) error {
	return h.change(func() error { return h.disk.Remove(name) })
}

// Document implements store.Documents.
func (h *handle) Document(name string) (store.Document, error) { return h.disk.Document(name) }

// PutDocument implements store.Documents.
func (h *handle) PutDocument(name string, doc store.Document) error {
	return h.change(func() error { return h.disk.PutDocument(name, doc) })
}

// Create implements store.Store.
func (h *handle) Create(name string) (store.Pending, error) {
	p, err := h.disk.Create(name)
	if err != nil {
		return nil, err
	}
	h.count(0, 1)
	return &pending{Pending: p, handle: h, name: name, end: sync.OnceFunc(func() { h.count(0, -1) })}, nil
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

func (p *pending) Commit(proof store.Proof) (entry store.Entry, err error) {
	defer p.end()
	err = p.handle.change(func() error {
		if entry, err = p.Pending.Commit(proof); err == nil {
			p.handle.disk.note(p.name)
		}
		return err
	})
	if errors.Is(err, errKilled) {
		p.Pending.Abort()
		err = fs.ErrClosed
	}
	return entry, err
}

func (p *pending) Abort() {
	p.Pending.Abort()
	p.end()
}
