package store

import (
	"bytes"
	"container/list"
	"crypto/sha256"
	"os"
	"sync"
)

// Bounds of the memory of small files.
const (
	maxKept      = 16 << 10 // of one file: nearly every .info and .mod
	maxKeptBytes = 32 << 20 // of all, beside about 300 bytes for each
)

// kept holds the bytes of small files, those read last: reading one again costs a
// stat. Bytes count for the very file that they were read from, so that nobody has
// to tell of changes and removals.
type kept struct {
	mu     sync.Mutex
	byName map[string]*list.Element // of *keptFile
	order  *list.List               // read last first
	bytes  int
}

type keptFile struct {
	name string
	id   identity
	data []byte
}

func newKept() *kept { return &kept{byName: make(map[string]*list.Element), order: list.New()} }

// get returns the bytes of that file, nil when they are not held.
func (k *kept) get(name string, id identity) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	e, ok := k.byName[name]
	if !ok {
		return nil
	}
	f := e.Value.(*keptFile) //nolint:errcheck // the list holds nothing else
	if f.id != id {
		return nil
	}
	k.order.MoveToFront(e)
	return f.data
}

func (k *kept) add(f keptFile) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e, ok := k.byName[f.name]; ok {
		k.removeLocked(e)
	}
	k.byName[f.name] = k.order.PushFront(&f)
	k.bytes += len(f.data)
	for k.bytes > maxKeptBytes {
		k.removeLocked(k.order.Back())
	}
}

func (k *kept) removeLocked(e *list.Element) {
	f := k.order.Remove(e).(*keptFile) //nolint:errcheck // as above
	k.bytes -= len(f.data)
	delete(k.byName, f.name)
}

// openKept is openChecked for a small file: it comes from memory while the one on
// the disk is the same. Bytes that are not the entry's are nobody's.
func (d *Disk) openKept(c checkedFile, path string) *Object {
	info, err := os.Stat(path)
	if err != nil || identityOf(info) != c.id {
		return nil
	}
	data := d.kept.get(c.entry.Name, c.id)
	if data == nil {
		data, err = os.ReadFile(path)
		if err != nil || sha256.Sum256(data) != c.entry.SHA256 {
			return nil
		}
		d.kept.add(keptFile{c.entry.Name, c.id, data})
	}
	return &Object{Entry: c.entry, File: keptReader{bytes.NewReader(data)}}
}

type keptReader struct{ *bytes.Reader }

func (keptReader) Close() error { return nil }
