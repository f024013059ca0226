package store

import (
	"encoding/binary"
	"sync/atomic"

	bolt "go.etcd.io/bbolt"
)

// Usage is how full a store is.
type Usage struct {
	Objects     int64 // that have an entry
	Bytes       int64 // of these objects together
	Free        int64 // bytes that the file system has left for us; 0 where the system does not tell
	Quarantined int64 // bad copies that are kept
	Limit       int64 // bytes that may be taken as things are; 0 = any
	Taken       int64 // bytes that count against Limit, with the index and what is reserved
	Reserved    int64 // bytes for objects that are being written
	Evicted     [classes]Eviction
	ReadOnly    bool   // nothing new is taken
	Hot         int64  // of Taken, copies of what others own, while many ask for them
	Dead        bool   // it cannot be read
	Trouble     string // what is wrong with the disk and what to do about it; "" = nothing
}

// Eviction counts what was evicted of a class.
type Eviction struct{ Objects, Bytes int64 }

// Usage returns how full the disk is. It costs a few system calls.
func (d *Disk) Usage() Usage {
	u := Usage{Quarantined: d.quarantine.files.Load(), ReadOnly: d.ReadOnly() != nil, Dead: d.Dead() != nil, Trouble: d.Trouble()}
	if s, err := d.space(); err == nil {
		u.Free = s.free
	}
	if f, err := d.index.current(); err == nil {
		u.Objects, u.Bytes = f.tally.objects.Load(), f.tally.bytes.Load()
	}
	if d.budget.limit != (Limit{}) && d.Dead() == nil {
		u.Limit = max(1, d.budget.capacity()) // 0 would look like no limit
	}
	u.Taken, u.Reserved = d.budget.taken()
	_, u.Hot = d.hot.Usage()
	for class := range u.Evicted {
		u.Evicted[class] = Eviction{d.evicted[class].objects.Load(), d.evicted[class].bytes.Load()}
	}
	return u
}

// space returns the space of the file system, unless asking may hang.
func (d *Disk) space() (space, error) {
	if err := d.Dead(); err != nil {
		return space{}, err
	}
	return spaceOf(d.dir)
}

// held returns what the disk has to count against its limit.
func (d *Disk) held() int64 {
	_, hot := d.hot.Usage()
	held := d.quarantine.bytes.Load() + d.unindexed.Load() + hot
	if f, err := d.index.current(); err == nil {
		held += f.tally.bytes.Load() + overhead*f.tally.objects.Load()
		held += f.size.Load()
	}
	return held
}

// Usage returns how much is kept. It looks at each object.
func (m *Mem) Usage() Usage {
	m.mu.RLock()
	defer m.mu.RUnlock()
	u := Usage{Objects: int64(len(m.objects))}
	for _, o := range m.objects {
		u.Bytes += o.entry.Size
	}
	u.Taken = u.Bytes
	return u
}

// tally counts the entries of objects. It is kept in the index too, in the same
// transactions as they, so that a start need not read them all.
//
//	tally = objects(uvarint) bytes(uvarint)
type tally struct{ objects, bytes atomic.Int64 }

const keyTally = "tally" // in bucketState

// load reads the tally, or counts where there is none.
func (t *tally) load(tx *bolt.Tx) (found bool) {
	value := tx.Bucket([]byte(bucketState)).Get([]byte(keyTally))
	if payload, err := unseal(bucketState, keyTally, value); err == nil {
		d := decoder{rest: payload}
		objects, bytes := int64(d.uvarint()), int64(d.uvarint())
		if !d.bad {
			t.objects.Store(objects)
			t.bytes.Store(bytes)
			return true
		}
	}
	objects, bytes := int64(0), int64(0)
	c := tx.Bucket([]byte(bucketObjects)).Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		objects, bytes = objects+1, bytes+sizeIn(v)
	}
	t.objects.Store(objects)
	t.bytes.Store(bytes)
	return false
}

// change is what writes do to a tally.
type change struct {
	objects, bytes int64
	moves          []move
}

// note counts a write that replaces old; nil is none, on either side.
func (c *change) note(old, value []byte) {
	if old != nil {
		c.objects, c.bytes = c.objects-1, c.bytes-sizeIn(old)
	}
	if value != nil {
		c.objects, c.bytes = c.objects+1, c.bytes+sizeIn(value)
	}
}

// count writes the tally as it is after c; then makes that true once the
// transaction has ended well.
func (f *indexFile) count(tx *bolt.Tx, c change) (then func(), err error) {
	objects, bytes := max(0, f.tally.objects.Load()+c.objects), max(0, f.tally.bytes.Load()+c.bytes)
	b, err := f.bucket(tx, bucketState, keyTally)
	if err != nil {
		return nil, err
	}
	payload := binary.AppendUvarint(binary.AppendUvarint(nil, uint64(objects)), uint64(bytes))
	return func() {
		f.tally.objects.Store(objects)
		f.tally.bytes.Store(bytes)
		f.shares.apply(c.moves)
	}, b.Put([]byte(keyTally), seal(bucketState, keyTally, payload))
}

// sizeIn returns the size in the value of an object. It does not check the value:
// what was counted must be taken off again when the value has been damaged.
func sizeIn(value []byte) int64 {
	d := decoder{rest: value}
	d.version(objectVersion)
	return max(0, int64(d.uvarint()))
}
