package store

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Class is what an object is worth: those of a class are evicted only where none of
// a lower one is left.
type Class uint8

// The classes. What belongs to no module version, such as the records of a checksum
// database, is Lasting.
const (
	Orphaned Class = iota // it should be elsewhere by now
	Public
	Private // nobody else may have it
	Lasting // small, and the proof for all the rest
	classes
)

func (c Class) String() string { return [classes]string{"orphaned", "public", "private", "lasting"}[c] }

// evictionCheck is how often the disk is looked at though nobody writes: others may
// take what is our share.
const evictionCheck = 15 * time.Second

// evictBatch is how many versions are removed in one transaction, and how long their
// readers may have to wait for it.
const evictBatch = 64

// version is what is evicted at once.
type version struct {
	name    string // of versionOf
	objects []Entry
	class   Class
	heat    float64
	bytes   int64 // charged
}

func (v *version) compare(w *version) int {
	return cmp.Or(cmp.Compare(v.class, w.class), cmp.Compare(v.heat, w.heat))
}

// coldest are the versions of least worth that make room together; the one that
// is worth most is at the top.
type coldest struct {
	heap  []*version
	bytes int64
	need  int64
}

func (c *coldest) Len() int           { return len(c.heap) }
func (c *coldest) Less(i, j int) bool { return c.heap[i].compare(c.heap[j]) > 0 }
func (c *coldest) Swap(i, j int)      { c.heap[i], c.heap[j] = c.heap[j], c.heap[i] }
func (c *coldest) Push(v any)         { c.heap = append(c.heap, v.(*version)) } //nolint:errcheck // see offer

// Pop implements heap.Interface.
func (c *coldest) Pop() any {
	last := c.heap[len(c.heap)-1]
	c.heap = c.heap[:len(c.heap)-1]
	return last
}

// offer takes v unless there is room enough without it.
func (c *coldest) offer(v *version) {
	if c.bytes >= c.need && v.compare(c.heap[0]) >= 0 {
		return
	}
	heap.Push(c, v)
	for c.bytes += v.bytes; c.bytes-c.heap[0].bytes >= c.need; {
		c.bytes -= heap.Pop(c).(*version).bytes //nolint:errcheck // as above
	}
}

// evictions runs until ctx ends: it keeps the disk within its budget, and what was
// used in the index.
func (d *Disk) evictions(ctx context.Context) {
	check, flush := time.NewTicker(evictionCheck), time.NewTicker(flushUses)
	defer check.Stop()
	defer flush.Stop()
	for {
		d.evict(ctx)
		select {
		case <-d.crowded:
		case <-check.C:
		case <-d.flush:
			d.keepUses(ctx)
		case <-flush.C:
			d.keepUses(ctx)
		case <-ctx.Done():
			d.keepUses(ctx)
			return
		}
	}
}

func (d *Disk) keepUses(ctx context.Context) {
	if d.ReadOnly() != nil {
		return
	}
	if err := d.flushUses(); err != nil {
		d.logger.WarnContext(ctx, "uses not indexed", "err", d.trouble(err))
	}
}

// evict makes room until there is enough.
func (d *Disk) evict(ctx context.Context) {
	for ctx.Err() == nil {
		need := d.budget.excess()
		if need == 0 {
			return
		}
		if need -= d.hot.shed(need); need <= 0 {
			d.budget.evicted(true)
			continue
		}
		bytes, err := d.evictSome(ctx, need)
		if ctx.Err() != nil {
			return
		}
		d.budget.evicted(bytes > 0)
		if err != nil {
			d.logger.ErrorContext(ctx, "not evicted", "err", d.trouble(err))
			return
		}
		if bytes == 0 {
			return
		}
		d.logger.DebugContext(ctx, "evicted", "bytes", bytes)
	}
}

// evictSome removes the versions that are worth least, need bytes of them if there are
// as many.
func (d *Disk) evictSome(ctx context.Context, need int64) (bytes int64, err error) {
	began := time.Now()
	all, err := d.coldest(ctx, need)
	if err != nil {
		return 0, err
	}
	for some := range slices.Chunk(all, evictBatch) {
		n, err := d.evictVersions(ctx, some, began)
		if bytes += n; err != nil || ctx.Err() != nil {
			return bytes, err
		}
	}
	return bytes, nil
}

// coldest returns versions to evict, the one that is worth least first. It reads the
// index, in pages, and remembers no more than it returns.
func (d *Disk) coldest(ctx context.Context, need int64) ([]*version, error) {
	c := &coldest{need: need}
	var last *version // more of it may be on the next page
	for from := []byte{}; from != nil; {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		page, next, err := d.versions(from)
		if err != nil {
			return nil, err
		}
		for _, v := range page {
			if last != nil && last.name == v.name {
				last.add(v)
				continue
			}
			d.consider(c, last)
			last = v
		}
		from = next
	}
	d.consider(c, last)
	slices.SortFunc(c.heap, (*version).compare)
	return c.heap, nil
}

func (v *version) add(more *version) {
	v.objects = append(v.objects, more.objects...)
	v.bytes += more.bytes
	v.heat = max(v.heat, more.heat)
}

// consider offers v with what only the memory knows of it.
func (d *Disk) consider(c *coldest, v *version) {
	if v == nil {
		return
	}
	fresh, busy := d.uses.look(v.name)
	if busy {
		return
	}
	// A clock that was ahead for a while must not make anything last for ever.
	v.heat = min(use{heat: v.heat}.and(fresh).heat, heatAt(time.Now())+maxHeat)
	if v.class = Lasting; v.name != v.objects[0].Name {
		v.class = d.class(v.objects[0].Name)
	}
	c.offer(v)
}

// maxHeat is that of a million uses at this moment.
const maxHeat = 20

// versionPage is how many objects are read in one transaction.
const versionPage = 2048

// versions returns what the index has from a name on, each object for itself, and the
// name to go on from, nil at the end.
func (d *Disk) versions(from []byte) (page []*version, next []byte, err error) {
	err = d.index.view(func(f *indexFile, tx *bolt.Tx) error {
		page, next = nil, nil
		objects, uses := tx.Bucket([]byte(bucketObjects)), tx.Bucket([]byte(bucketUses))
		if objects == nil || uses == nil {
			return &brokenError{errTree}
		}
		if err := errors.Join(f.tree(objects).checkAll(), f.tree(uses).checkAll()); err != nil {
			return err
		}
		var entries []Entry
		entries, next = readEntries(objects.Cursor(), from, "", versionPage)
		for _, e := range entries {
			v := &version{name: versionOf(e.Name), objects: []Entry{e}, bytes: charge(e.Size)}
			v.heat = f.kept(tx, v.name).and(usedAt(e.Stored)).heat
			page = append(page, v)
		}
		return nil
	})
	return page, next, err
}

// evictVersions removes those that were not used since they were chosen. The files go
// before their entries, as in Remove.
func (d *Disk) evictVersions(ctx context.Context, all []*version, chosen time.Time) (int64, error) {
	var writes []*indexWrite
	var gone []*version
	dirs := map[string]bool{}
	for _, v := range all {
		if used, busy := d.uses.look(v.name); busy || used.last.After(chosen) {
			continue
		}
		release, err := d.removeFiles(ctx, v, dirs)
		defer release() // when the entries are gone, too
		if err != nil {
			return 0, err
		}
		gone = append(gone, v)
		writes = append(writes, &indexWrite{bucket: bucketUses, name: v.name})
		for _, e := range v.objects {
			writes = append(writes, &indexWrite{bucket: bucketObjects, name: e.Name})
		}
	}
	for dir := range dirs {
		if err := syncDir(dir); err != nil && !absent(err) {
			return 0, err
		}
	}
	if err := d.index.submit(writes...); err != nil {
		return 0, err
	}
	return d.count(gone), nil
}

// removeFiles takes the names of v and removes what they lead to. The caller releases
// the names.
func (d *Disk) removeFiles(ctx context.Context, v *version, dirs map[string]bool) (release func(), err error) {
	var held []func()
	release = func() {
		for _, each := range held {
			each()
		}
	}
	for _, e := range v.objects {
		path, err := d.path("remove", e.Name)
		if err != nil {
			return release, err
		}
		unlock, err := d.names.lock(ctx, e.Name)
		if err != nil {
			return release, err
		}
		held = append(held, unlock)
		d.verified.forget(e.Name)
		if err := os.Remove(path); err != nil && !absent(err) {
			return release, err
		}
		dirs[filepath.Dir(path)] = true
	}
	return release, nil
}

// evictedCount is of one class.
type evictedCount struct{ objects, bytes atomic.Int64 }

func (d *Disk) count(gone []*version) (bytes int64) {
	for _, v := range gone {
		c := &d.evicted[v.class]
		c.objects.Add(int64(len(v.objects)))
		c.bytes.Add(v.bytes)
		bytes += v.bytes
		for _, e := range v.objects {
			d.gone.add(e.Name)
		}
	}
	return bytes
}

// readEntries returns at most most entries from a name on, and the name to go on from.
func readEntries(c *bolt.Cursor, from []byte, prefix string, most int) (entries []Entry, next []byte) {
	k, v := c.Seek(from)
	for n := 0; k != nil && bytes.HasPrefix(k, []byte(prefix)); k, v = c.Next() {
		if n++; n > most {
			return entries, bytes.Clone(k)
		}
		name := string(k)
		payload, err := unseal(bucketObjects, name, v)
		if err != nil {
			continue // adopted again when it is asked for
		}
		if r, err := decodeRecord(name, payload); err == nil {
			entries = append(entries, r.Entry)
		}
	}
	return entries, nil
}
