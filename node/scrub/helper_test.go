package scrub_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
)

func name(i int) string { return fmt.Sprintf("example.com/m%03d/@v/v1.0.0.zip", i) }

func parse(t *testing.T, name string) target.Target {
	t.Helper()
	parsed, err := target.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// disk is a store whose bytes can be harmed. It reads a MiB in readTime.
type disk struct {
	t    *testing.T
	news chan struct{}

	mu       sync.Mutex
	readTime time.Duration
	entries  map[string]store.Entry
	bytes    map[string][]byte
	checked  map[string]time.Time
	lost     map[string]store.Loss
	aside    map[string][]byte
	readOnly error
	reads    []string        // names in the order of their checks
	checks   int             // that run
	atOnce   int             // how many may
	worked   time.Duration   // by checks
	failing  map[string]bool // cannot be opened
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	return &disk{
		t: t, news: make(chan struct{}, 1), readTime: 10 * time.Millisecond, atOnce: 1, entries: map[string]store.Entry{}, bytes: map[string][]byte{},
		checked: map[string]time.Time{}, lost: map[string]store.Loss{}, aside: map[string][]byte{}, failing: map[string]bool{},
	}
}

const chunk = 1 << 20

// put stores what nobody may have seen before under that name, unless it was lost.
func (d *disk) put(name string, data []byte, p store.Proof) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if old, ok := d.bytes[name]; ok && !bytes.Equal(old, data) {
		d.aside[name] = old
	}
	sum := sha256.Sum256(data)
	if l, ok := d.lost[name]; ok && l.SHA256 != sum {
		return store.ErrDiffers
	}
	if d.readOnly != nil {
		return store.ErrReadOnly
	}
	delete(d.lost, name)
	d.bytes[name] = data
	d.entries[name] = store.Entry{Name: name, Size: int64(len(data)), SHA256: sum, Proof: p, Stored: time.Now()}
	return nil
}

// rot flips a byte.
func (d *disk) rot(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bytes[name] = bytes.Clone(d.bytes[name])
	d.bytes[name][len(d.bytes[name])/2] ^= 1
}

// fails makes writing fail, nil = not, and the opening of these objects.
func (d *disk) fails(readOnly error, names ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readOnly = readOnly
	for _, name := range names {
		d.failing[name] = true
	}
}

// read returns what was checked so far.
func (d *disk) read() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.reads)
}

// work is how long checks have read so far.
func (d *disk) work() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.worked
}

func (d *disk) Unchecked(_ context.Context, before time.Time, most int) (b store.Backlog, _ error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, e := range d.entries {
		s := store.Stale{Entry: e, Checked: e.Stored}
		if at := d.checked[name]; at.After(s.Checked) {
			s.Checked = at
		}
		if s.Checked.Before(before) {
			b.Objects, b.Bytes, b.Oldest = b.Objects+1, b.Bytes+e.Size, append(b.Oldest, s)
		}
	}
	slices.SortFunc(b.Oldest, func(x, y store.Stale) int { return cmp.Or(x.Checked.Compare(y.Checked), cmp.Compare(x.Name, y.Name)) })
	b.Oldest = b.Oldest[:min(len(b.Oldest), most)]
	return b, nil
}

func (d *disk) Check(ctx context.Context, name string, pace func(int, time.Duration) error) error {
	d.mu.Lock()
	data, entry, failing := d.bytes[name], d.entries[name], d.failing[name]
	if d.checks++; d.checks > d.atOnce {
		d.t.Errorf("%d checks at once, want at most %d", d.checks, d.atOnce)
	}
	d.reads = append(d.reads, name)
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.checks--
	}()
	if failing {
		return errors.New("too many open files")
	}
	if data == nil {
		return fs.ErrNotExist
	}
	for part := range slices.Chunk(data, chunk) {
		took := d.readTime * time.Duration(len(part)) / (1 << 20)
		time.Sleep(took)
		d.mu.Lock()
		d.worked += took
		d.mu.Unlock()
		if err := pace(len(part), took); err != nil {
			return err
		}
	}
	if sha256.Sum256(data) != entry.SHA256 {
		d.lose(name, true)
		return &store.CorruptError{Name: name, Err: errors.New("wrong checksum")}
	}
	return ctx.Err()
}

func (d *disk) lose(name string, known bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.aside[name] = d.bytes[name]
	if known {
		d.lost[name] = store.Loss{Entry: d.entries[name], Found: time.Now()}
		select {
		case d.news <- struct{}{}:
		default:
		}
	}
	delete(d.entries, name)
	delete(d.bytes, name)
}

func (d *disk) Checked(at time.Time, names ...string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range names {
		if d.readOnly == nil {
			d.checked[name] = at
		}
	}
	return nil
}

func (d *disk) Lost(name string) (store.Loss, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l, ok := d.lost[name]; ok {
		return l, nil
	}
	return store.Loss{}, fs.ErrNotExist
}

func (d *disk) Losses(from string, most int) (all []store.Loss, next string, _ error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, l := range d.lost {
		if name >= from {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b store.Loss) int { return cmp.Compare(a.Name, b.Name) })
	if len(all) > most {
		return all[:most], all[most].Name, nil
	}
	return all, "", nil
}

func (d *disk) LossNews() <-chan struct{} { return d.news }

func (d *disk) Forget(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.lost, name)
	return nil
}

func (d *disk) Stat(name string) (store.Entry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e, ok := d.entries[name]; ok {
		return e, nil
	}
	return store.Entry{}, fs.ErrNotExist
}

func (d *disk) ReadOnly() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.readOnly
}

func (d *disk) SetAside(_ context.Context, name string, _ error) error {
	d.lose(name, false)
	return nil
}
