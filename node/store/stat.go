package store

import (
	"fmt"
	"os"
)

// Stat implements Store. It compares the entry with the file's size alone.
func (d *Disk) Stat(name string) (Entry, error) {
	path, err := d.path("stat", name)
	if err != nil {
		return Entry{}, err
	}
	if err := d.Dead(); err != nil {
		return Entry{}, err
	}
	info, err := os.Stat(path)
	if d.purged(name) || absent(err) || (err == nil && !info.Mode().IsRegular()) {
		return Entry{}, notExist(name)
	}
	if err != nil {
		return Entry{}, err
	}
	r, err := d.record(name)
	if err != nil {
		return Entry{}, fmt.Errorf("reading the entry of %s: %w", name, err)
	}
	if r.Size != info.Size() {
		return Entry{}, notExist(name)
	}
	return r.Entry, nil
}

// Stat implements Store.
func (m *Mem) Stat(name string) (Entry, error) {
	if err := checkName("stat", name); err != nil {
		return Entry{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	o, ok := m.objects[name]
	if !ok || m.refuses(name) {
		return Entry{}, notExist(name)
	}
	return o.entry, nil
}
