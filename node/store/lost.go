package store

import (
	"errors"
	"io/fs"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

// ErrDiffers says that an object is not taken in place of a copy that was bad, as it has
// other bytes than that one had when it was good.
var ErrDiffers = errors.New("other bytes than those of the copy that was set aside")

// Loss is an object whose copy was bad, and which has not come back since.
type Loss struct {
	Entry           // as it was recorded
	Found time.Time // when the copy was set aside
}

// A loss is kept as
//
//	loss = 1 size(uvarint) stored h1(string) verified(1 byte) sha256(32 bytes) found
const lossVersion = 1

func (l *Loss) encode() []byte {
	r := record{Entry: l.Entry}
	b := r.encode()
	b[0] = lossVersion
	return appendTime(b, l.Found)
}

func decodeLoss(name string, b []byte) (Loss, error) {
	d := decoder{rest: b}
	d.version(lossVersion)
	l := Loss{Entry: Entry{Name: name, Size: int64(d.uvarint()), Stored: d.time(), Proof: Proof{H1: d.string(), Verified: d.bool()}}}
	copy(l.SHA256[:], d.bytes(len(l.SHA256)))
	if l.Found = d.time(); d.bad || l.Size < 0 {
		return Loss{}, errCodec
	}
	return l, nil
}

// Lost returns what was recorded of an object whose copy was bad, until it is stored
// again; fs.ErrNotExist of any other, and of what is purged.
func (d *Disk) Lost(name string) (l Loss, err error) {
	if d.purged(name) {
		return Loss{}, notExist(name)
	}
	err = d.index.get(bucketLost, name, func(payload []byte) (err error) {
		l, err = decodeLoss(name, payload)
		return err
	})
	return l, err
}

// Losses returns, in the order of their names, the objects that Lost knows among the next
// most from a name on, and the name to go on from, "" at the end.
func (d *Disk) Losses(from string, most int) (all []Loss, next string, err error) {
	all, next, err = pageOf(d, bucketLost, from, most, decodeLoss)
	return slices.DeleteFunc(all, func(l Loss) bool { return d.purged(l.Name) }), next, err
}

// pageOf returns what can be read of the next most values of a bucket from a name on, and
// the name to go on from, "" at the end.
func pageOf[T any](d *Disk, bucket, from string, most int, decode func(name string, payload []byte) (T, error)) (all []T, next string, err error) {
	err = d.index.view(func(f *indexFile, tx *bolt.Tx) error {
		all, next = nil, ""
		b := tx.Bucket([]byte(bucket))
		if b == nil {
			return &brokenError{errTree}
		}
		if err := f.tree(b).checkAll(); err != nil {
			return err
		}
		c := b.Cursor()
		k, v := c.Seek([]byte(from))
		for n := 0; k != nil && n < most; k, v = c.Next() {
			n++
			payload, err := unseal(bucket, string(k), v)
			if err != nil {
				continue
			}
			if each, err := decode(string(k), payload); err == nil {
				all = append(all, each)
			}
		}
		next = string(k)
		return nil
	})
	return all, next, err
}

// LossNews receives a value after something was lost.
func (d *Disk) LossNews() <-chan struct{} { return d.lossNews }

// Forget makes Lost know nothing of an object, so that any bytes are taken.
func (d *Disk) Forget(name string) error {
	if _, err := d.Lost(name); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return d.index.submit(&indexWrite{bucket: bucketLost, name: name})
}

// lose returns what to write when the copy of an object is gone against our will. The
// caller says so on lossNews.
func lose(r *record) *indexWrite {
	l := Loss{Entry: r.Entry, Found: time.Now().UTC()}
	return &indexWrite{bucket: bucketLost, name: r.Name, value: seal(bucketLost, r.Name, l.encode())}
}

// mayReplace returns ErrDiffers for bytes that must not take the place of a lost
// object. The record of a checksum database may come with another tree head.
func (d *Disk) mayReplace(r *record) error {
	if versionOf(r.Name) == r.Name {
		return nil
	}
	if l, err := d.Lost(r.Name); err == nil && l.SHA256 != r.SHA256 {
		return ErrDiffers
	}
	return nil
}
