package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	bolt "go.etcd.io/bbolt"
)

// Place tells where the object of that name belongs: in a partition from 0 to 65535,
// or nowhere (-1). fixed says that all copies of it must have the same bytes.
type Place func(name string) (partition int, fixed bool)

// Sum sums up what a store holds of a partition. Two stores hold the same if their
// sums are equal.
type Sum struct {
	Objects int64
	Bytes   int64 // of those that are fixed
	// High and Low are the halves of a sum modulo 2^128: of the first 16 bytes, big
	// endian, of SHA-256(name | 0 | SHA-256 of the object) for each object. One that is
	// not fixed counts with 32 zero bytes for its hash.
	High, Low uint64
}

func (s Sum) plus(o Sum) Sum {
	low, carry := bits.Add64(s.Low, o.Low, 0)
	high, _ := bits.Add64(s.High, o.High, carry)
	return Sum{s.Objects + o.Objects, s.Bytes + o.Bytes, high, low}
}

func (s Sum) minus(o Sum) Sum {
	low, borrow := bits.Sub64(s.Low, o.Low, 0)
	high, _ := bits.Sub64(s.High, o.High, borrow)
	return Sum{s.Objects - o.Objects, s.Bytes - o.Bytes, high, low}
}

// Key is an object in short, for comparison.
type Key struct {
	Hash   uint64 // xxHash64 of the name
	Name   string
	Digest uint64    // first 8 bytes of the SHA-256, big endian; 0 where the bytes are not fixed
	Size   int64     // bytes; 0 likewise
	Used   time.Time // when it was last opened, or else stored
}

func (k Key) compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Hash, o.Hash), cmp.Compare(k.Name, o.Name))
}

// weigh returns the key of an object and what it adds to the sum of its partition.
func weigh(e Entry, fixed bool) (Key, Sum) {
	if !fixed {
		e.Size, e.SHA256 = 0, [32]byte{}
	}
	text := append(append([]byte(e.Name), 0), e.SHA256[:]...)
	hash := sha256.Sum256(text)
	key := Key{Hash: xxhash.Sum64String(e.Name), Name: e.Name, Digest: binary.BigEndian.Uint64(e.SHA256[:]), Size: e.Size, Used: e.Stored}
	return key, Sum{1, e.Size, binary.BigEndian.Uint64(hash[:]), binary.BigEndian.Uint64(hash[8:])}
}

// shares are the sums of all partitions. They are not kept in the index but counted
// when somebody first asks: that costs 0.2 s of a processor for 100,000 objects, in
// the background, and cannot be wrong for longer than the process lives; kept, each
// commit would write one page more.
//
// The keys, which have to be found by partition, do stand in the index, in a bucket of
// their own that is written with that of the objects. One made by an older ringmod has
// none; what is missing is put there while counting.
type shares struct {
	place   Place       // nil = objects belong nowhere
	counted atomic.Bool // all are

	// order is held over each transaction that writes and over each page that is
	// counted, until all are.
	order sync.Mutex
	next  []byte // names from here on are to be counted

	mu   sync.Mutex // may be taken under order
	sums []Sum
}

// move is what a write does to a partition.
type move struct {
	name      string
	partition int
	add, take Sum
}

// note puts or removes the key of an object that is written, and tells what that
// does to its partition. old and value are sealed; nil is none.
func (s *shares) note(f *indexFile, tx *bolt.Tx, name string, old, value []byte) (m move, err error) {
	if s.place == nil {
		return move{partition: -1}, nil
	}
	p, fixed := s.place(name)
	if m = (move{name: name, partition: p}); p < 0 {
		return m, nil
	}
	if e, err := briefly(name, old); err == nil {
		_, m.take = weigh(e, fixed)
	}
	var key Key
	e, bad := briefly(name, value)
	if key, _ = weigh(Entry{Name: name}, false); bad == nil {
		key, m.add = weigh(e, fixed)
	}
	at := keyAt(p, key)
	b, err := f.bucket(tx, bucketKeys, string(at))
	switch {
	case err != nil:
		return m, err
	case bad != nil:
		return m, b.Delete(at)
	default:
		return m, b.Put(at, seal(bucketKeys, string(at), key.encode()))
	}
}

// apply makes moves that are durable count. s.order is held unless all are counted.
func (s *shares) apply(moves []move) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range moves {
		if m.partition < 0 || !s.counted.Load() && m.name >= string(s.next) {
			continue
		}
		*s.sum(m.partition) = s.sum(m.partition).minus(m.take).plus(m.add)
	}
}

func (s *shares) sum(p int) *Sum {
	if p >= len(s.sums) {
		s.sums = append(s.sums, make([]Sum, p+1-len(s.sums))...)
	}
	return &s.sums[p]
}

// briefly reads the entry of an object without its sums and what vouches for it.
func briefly(name string, value []byte) (Entry, error) {
	if value == nil {
		return Entry{}, errCodec
	}
	payload, err := unseal(bucketObjects, name, value)
	if err != nil {
		return Entry{}, err
	}
	d := decoder{rest: payload}
	version := d.version(objectVersion)
	e := Entry{Name: name, Size: int64(d.uvarint()), Stored: d.time()}
	d.bytes(int(min(d.uvarint(), maxName)))
	if version > 1 {
		d.bool()
	}
	copy(e.SHA256[:], d.bytes(len(e.SHA256)))
	if d.bad || e.Size < 0 {
		return Entry{}, errCodec
	}
	return e, nil
}

// keyAt is where a key lies in its bucket: partition, hash, name.
func keyAt(partition int, k Key) []byte {
	at := binary.BigEndian.AppendUint16(nil, uint16(partition))
	return append(binary.BigEndian.AppendUint64(at, k.Hash), k.Name...)
}

const keyHead = 2 + 8 // bytes before the name

func (k Key) encode() []byte {
	b := binary.LittleEndian.AppendUint64([]byte{keyVersion}, k.Digest)
	return appendTime(binary.AppendUvarint(b, uint64(k.Size)), k.Used)
}

func decodeKey(at, value []byte) (Key, error) {
	payload, err := unseal(bucketKeys, string(at), value)
	if err != nil || len(at) < keyHead {
		return Key{}, errCodec
	}
	d := decoder{rest: payload}
	d.version(keyVersion)
	k := Key{Hash: binary.BigEndian.Uint64(at[2:]), Name: string(at[keyHead:])}
	if digest := d.bytes(8); !d.bad {
		k.Digest = binary.LittleEndian.Uint64(digest)
	}
	k.Size, k.Used = int64(d.uvarint()), d.time()
	if d.bad || k.Size < 0 {
		return Key{}, errCodec
	}
	return k, nil
}

// Sums returns the sum of each partition from 0 on; those that are missing at the end
// are empty. The first call counts, which reads the whole index.
func (d *Disk) Sums(ctx context.Context) ([]Sum, error) {
	s, err := d.counted(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sums), nil
}

// counted returns the shares when all objects are counted.
func (d *Disk) counted(ctx context.Context) (s *shares, err error) {
	for ctx.Err() == nil {
		var missing []*indexWrite
		err := d.index.use(func(f *indexFile) (err error) {
			if s = &f.shares; s.counted.Load() {
				return nil
			}
			s.order.Lock()
			defer s.order.Unlock()
			missing, err = f.countPage()
			return err
		})
		if err == nil {
			err = d.index.submit(missing...)
		}
		if err != nil || s.counted.Load() {
			return s, err
		}
	}
	return nil, context.Cause(ctx)
}

// countPage counts some more objects, and returns what puts the keys in place that are
// missing. f.shares.order is held.
func (f *indexFile) countPage() (missing []*indexWrite, err error) {
	s := &f.shares
	if s.place == nil || s.counted.Load() {
		s.counted.Store(true)
		return nil, nil
	}
	err = f.bolt.View(func(tx *bolt.Tx) error {
		objects, keys := tx.Bucket([]byte(bucketObjects)), tx.Bucket([]byte(bucketKeys))
		if objects == nil || keys == nil {
			return &brokenError{errTree}
		}
		if err := errors.Join(f.tree(objects).checkAll(), f.tree(keys).checkAll()); err != nil {
			return err
		}
		n := 0
		c := objects.Cursor()
		for name, value := c.Seek(s.next); name != nil; name, value = c.Next() {
			if n++; n > versionPage {
				s.next = bytes.Clone(name)
				return nil
			}
			if at, ok := s.count(string(name), value); ok && keys.Get(at) == nil {
				missing = append(missing, &indexWrite{bucket: bucketObjects, name: string(name), again: true})
			}
		}
		s.counted.Store(true)
		return nil
	})
	return missing, err
}

// count adds an object to its partition and tells where its key should be.
func (s *shares) count(name string, value []byte) (at []byte, ok bool) {
	p, fixed := s.place(name)
	e, err := briefly(name, value)
	if p < 0 || err != nil {
		return nil, false
	}
	key, sum := weigh(e, fixed)
	s.mu.Lock()
	defer s.mu.Unlock()
	*s.sum(p) = s.sum(p).plus(sum)
	return keyAt(p, key), true
}

// Keys returns keys of a partition, at most most, in the order of hash and name, from
// behind after on; no key is before the zero Key.
func (d *Disk) Keys(ctx context.Context, partition int, after Key, most int) ([]Key, error) {
	if _, err := d.counted(ctx); err != nil {
		return nil, err
	}
	var page []Key
	from, end := keyAt(partition, after), keyAt(partition+1, Key{})
	err := d.index.view(func(f *indexFile, tx *bolt.Tx) error {
		page = nil
		objects, keys, uses := tx.Bucket([]byte(bucketObjects)), tx.Bucket([]byte(bucketKeys)), tx.Bucket([]byte(bucketUses))
		if objects == nil || keys == nil || uses == nil {
			return &brokenError{errTree}
		}
		if err := f.tree(keys).check(from, end); err != nil {
			return err
		}
		c := keys.Cursor()
		for at, value := c.Seek(from); at != nil && len(page) < most && bytes.HasPrefix(at, from[:2]); at, value = c.Next() {
			k, err := decodeKey(at, value)
			if err != nil || bytes.Equal(at, from) {
				continue
			}
			version := versionOf(k.Name)
			if err := errors.Join(f.tree(objects).checkPath([]byte(k.Name)), f.tree(uses).checkPath([]byte(version))); err != nil {
				return err
			}
			if objects.Get([]byte(k.Name)) == nil {
				continue // an older ringmod has removed the object
			}
			k.Used = f.kept(tx, version).and(usedAt(k.Used)).last
			page = append(page, k)
		}
		return nil
	})
	for i := range page {
		if fresh, _ := d.uses.look(versionOf(page[i].Name)); fresh.last.After(page[i].Used) {
			page[i].Used = fresh.last
		}
	}
	return page, err
}

// Backdate says that the object of that name, which was stored just now, has not been
// used since then but elsewhere, at a time before. fs.ErrNotExist: there is none.
func (d *Disk) Backdate(name string, used time.Time) error {
	release, err := d.names.lock(context.Background(), name)
	if err != nil {
		return err
	}
	defer release()
	r, err := d.record(name)
	if err != nil || !used.Before(r.Stored) {
		return err
	}
	r.Stored = used.UTC()
	d.verified.forget(name) // it has the entry, too
	return d.index.put(bucketObjects, name, r.encode())
}

// HasRoom tells whether what is not needed at once may be stored: the disk takes
// things, and what is there is less than eviction leaves.
func (d *Disk) HasRoom() bool {
	if d.ReadOnly() != nil {
		return false
	}
	taken, _ := d.budget.taken()
	_, hot := d.hot.Usage() // goes first
	return float64(taken-hot) < lowMark*float64(d.budget.capacity())
}
