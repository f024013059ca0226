package store

import (
	"context"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Mem keeps everything in memory, without bound, for tests and simulations.
type Mem struct {
	Place Place // as DiskConfig.Place; not to be changed once Mem is in use

	mu        sync.RWMutex
	objects   map[string]memObject
	documents map[string]Document
	purged    func(name string) bool // nil: nothing
}

type memObject struct {
	entry Entry
	data  *memData
}

// NewMem returns an empty Mem.
func NewMem() *Mem {
	return &Mem{objects: make(map[string]memObject), documents: make(map[string]Document)}
}

// Open implements Store.
func (m *Mem) Open(ctx context.Context, name string) (*Object, error) {
	if err := checkName("open", name); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	o, ok := m.objects[name]
	if !ok || m.refuses(name) {
		return nil, notExist(name)
	}
	return &Object{Entry: o.entry, File: o.data.open()}, nil
}

// Create implements Store.
func (m *Mem) Create(name string) (Pending, error) {
	if err := checkName("create", name); err != nil {
		return nil, err
	}
	if derived(name) {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrInvalid}
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.refuses(name) {
		return nil, ErrPurged
	}
	return &memPending{mem: m, name: name, sum: newSummer(), data: new(memData)}, nil
}

// Remove implements Store.
func (m *Mem) Remove(name string) error {
	if err := checkName("remove", name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
	return nil
}

// Walk implements Store.
func (m *Mem) Walk(ctx context.Context, prefix string, visit func(Entry) bool) error {
	m.mu.RLock()
	objects := maps.Clone(m.objects)
	m.mu.RUnlock()
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if strings.HasPrefix(name, prefix) && !visit(objects[name].entry) {
			return nil
		}
	}
	return ctx.Err()
}

// Sums is as that of Disk.
func (m *Mem) Sums(ctx context.Context) ([]Sum, error) {
	var s shares
	m.mu.RLock()
	defer m.mu.RUnlock()
	for name, o := range m.objects {
		if p, fixed := m.placeOf(name); p >= 0 {
			_, sum := weigh(o.entry, fixed)
			*s.sum(p) = s.sum(p).plus(sum)
		}
	}
	return s.sums, ctx.Err()
}

func (m *Mem) placeOf(name string) (partition int, fixed bool) {
	if m.Place == nil {
		return -1, false
	}
	return m.Place(name)
}

// Keys is as that of Disk. Being opened is no use.
func (m *Mem) Keys(ctx context.Context, partition int, after Key, most int) ([]Key, error) {
	var keys []Key
	m.mu.RLock()
	defer m.mu.RUnlock()
	for name, o := range m.objects {
		if p, fixed := m.placeOf(name); p == partition {
			if key, _ := weigh(o.entry, fixed); key.compare(after) > 0 {
				keys = append(keys, key)
			}
		}
	}
	slices.SortFunc(keys, Key.compare)
	return keys[:min(most, len(keys))], ctx.Err()
}

// Backdate is as that of Disk.
func (m *Mem) Backdate(name string, used time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[name]
	if !ok {
		return notExist(name)
	}
	if used.Before(o.entry.Stored) {
		o.entry.Stored = used.UTC()
		m.objects[name] = o
	}
	return nil
}

// HasRoom is as that of Disk: memory has no limit.
func (m *Mem) HasRoom() bool { return true }

// Document implements Documents.
func (m *Mem) Document(name string) (Document, error) {
	if err := checkName("open", name); err != nil {
		return Document{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	doc, ok := m.documents[name]
	if !ok || m.refuses(name) {
		return Document{}, notExist(name)
	}
	doc.Body = slices.Clone(doc.Body)
	return doc, nil
}

// PutDocument implements Documents.
func (m *Mem) PutDocument(name string, doc Document) error {
	if err := checkName("create", name); err != nil {
		return err
	}
	doc.Body = append([]byte{}, doc.Body...)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuses(name) {
		return ErrPurged
	}
	m.documents[name] = doc
	return nil
}
