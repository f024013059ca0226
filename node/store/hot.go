package store

import (
	"container/list"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// Bounds of the hot area: an eighth of the limit, and what is remembered of each.
const (
	hotShare = 8
	maxHot   = 4096 // objects
)

// HotArea keeps copies of objects that other nodes own, while many ask for them. They
// count against the limit of the Disk, take an eighth of it at most, and make room for
// each other and for anything else: what was used longest ago goes first. A new one
// has its place only where nothing else has to be evicted for it.
//
// They are files in <dir>/hot and nothing else: no entry, no sync, gone at the next
// start. Their bytes are checked as those of other objects are.
type HotArea struct {
	disk *Disk
	dir  string
	temp func() uint64 // numbers files

	mu     sync.Mutex
	byName map[string]*list.Element // of *hotObject
	order  *list.List               // most recently used first
	bytes  int64                    // charged for them
}

// hotObject is one of them.
type hotObject struct {
	record *record
	path   string
	id     identity
	at     time.Time // of the last check, or of the writing
}

func newHotArea(d *Disk) *HotArea {
	return &HotArea{
		disk: d, dir: filepath.Join(d.dir, "hot"), temp: func() uint64 { return d.temps.Add(1) },
		byName: make(map[string]*list.Element), order: list.New(),
	}
}

// Hot returns the hot area of the disk.
func (d *Disk) Hot() *HotArea { return d.hot }

// open empties the folder.
func (h *HotArea) open() error {
	if err := os.RemoveAll(h.dir); err != nil {
		return err
	}
	return os.Mkdir(h.dir, 0o777)
}

// limit is how many bytes may be taken.
func (h *HotArea) limit() int64 { return max(0, h.disk.budget.capacity()) / hotShare }

// Usage returns how many objects there are, and what they take.
func (h *HotArea) Usage() (objects, bytes int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return int64(h.order.Len()), h.bytes
}

// Open is Store.Open for this area.
func (h *HotArea) Open(ctx context.Context, name string) (*Object, error) {
	o := h.find(name)
	if o == nil || h.disk.purged(name) || h.disk.Dead() != nil {
		return nil, notExist(name)
	}
	f, err := os.Open(o.path)
	if err != nil {
		h.remove(name, o)
		return nil, notExist(name)
	}
	if err := h.check(ctx, f, o); err != nil {
		f.Close() //nolint:errcheck // only read
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		h.disk.logger.WarnContext(ctx, "bad hot copy dropped", "key", name, "err", err)
		h.remove(name, o)
		return nil, &CorruptError{Name: name, Err: err}
	}
	return &Object{Entry: o.record.Entry, File: f}, nil
}

// find returns the object of that name as used now, or nil.
func (h *HotArea) find(name string) *hotObject {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.byName[name]
	if e == nil {
		return nil
	}
	h.order.MoveToFront(e)
	return e.Value.(*hotObject) //nolint:errcheck // the list holds nothing else
}

// check compares the file with its checksums, unless it is as it was.
func (h *HotArea) check(ctx context.Context, f *os.File, o *hotObject) error {
	id, err := stat(f)
	if err != nil || id == o.id && time.Since(o.at) < checkLife {
		return err
	}
	if id.size != o.record.Size {
		return errSize
	}
	// Not remembered: nobody writes to these files, and they do not last for a day.
	return h.disk.buffers.check(ctx, f, o.record)
}

// Remove drops the copy of an object, if there is one.
func (h *HotArea) Remove(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.byName[name]; e != nil {
		h.removeLocked(e)
	}
}

// remove drops o, if it is still the copy of that name.
func (h *HotArea) remove(name string, o *hotObject) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.byName[name]; e != nil && e.Value == o {
		h.removeLocked(e)
	}
}

func (h *HotArea) removeLocked(e *list.Element) {
	o := h.order.Remove(e).(*hotObject) //nolint:errcheck // the list holds nothing else
	delete(h.byName, o.record.Name)
	h.bytes -= charge(o.record.Size)
	os.Remove(o.path) //nolint:errcheck // else the next start does it
}

// shed drops what was used longest ago until that many bytes are free.
func (h *HotArea) shed(need int64) (freed int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.bytes
	for before-h.bytes < need && h.order.Len() > 0 {
		h.removeLocked(h.order.Back())
	}
	return before - h.bytes
}

// Create begins a copy. It is a Pending whose room is an eighth of the limit, and that
// waits for none.
func (h *HotArea) Create(name string) (Pending, error) {
	if err := checkName("create", name); err != nil {
		return nil, err
	}
	if h.disk.purged(name) {
		return nil, fmt.Errorf("creating %s: %w", name, ErrPurged)
	}
	if err := h.disk.ReadOnly(); err != nil {
		return nil, fmt.Errorf("creating %s: %w", name, err)
	}
	path := filepath.Join(h.dir, strconv.FormatUint(h.temp(), 10))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, fmt.Errorf("creating %s: %w", name, err)
	}
	return &hotPending{area: h, name: name, path: path, file: f, sum: newSummer()}, nil
}

// put makes o the copy of its name.
func (h *HotArea) put(o *hotObject) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.byName[o.record.Name]; e != nil {
		h.removeLocked(e)
	}
	h.byName[o.record.Name] = h.order.PushFront(o)
	h.bytes += charge(o.record.Size)
	if h.disk.purged(o.record.Name) { // meanwhile
		h.removeLocked(h.byName[o.record.Name])
	}
	if h.order.Len() > maxHot {
		h.removeLocked(h.order.Back())
	}
}

// purge drops the copies of what is wanted.
func (h *HotArea) purge(wanted func(name string) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, e := range h.byName {
		if wanted(name) {
			h.removeLocked(e)
		}
	}
}

// makeRoom drops others until size more bytes fit, and tells whether they do.
func (h *HotArea) makeRoom(size int64) bool {
	limit := h.limit()
	_, bytes := h.Usage()
	if over := bytes + size - limit; over > 0 && size <= limit {
		h.shed(over)
	}
	_, bytes = h.Usage()
	return bytes+size <= limit
}
