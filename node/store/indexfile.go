package store

import (
	"bytes"
	"errors"
	"os"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// apply makes all writes in one transaction and looks whether they can be found
// again: in a tree with a damaged page they may not be.
func (f *indexFile) apply(batch []*indexWrite) error {
	last := make(map[string]*indexWrite, len(batch))
	var counted func()
	if !f.shares.counted.Load() {
		f.shares.order.Lock()
		defer f.shares.order.Unlock()
	}
	err := f.bolt.Update(func(tx *bolt.Tx) error {
		if err := f.searchable(tx, batch); err != nil {
			return err
		}
		var c change
		for _, w := range batch {
			if !w.again {
				last[w.bucket+"\x00"+w.name] = w
			}
			if err := w.apply(f, tx, &c); err != nil {
				return err
			}
		}
		var err error
		counted, err = f.count(tx, c)
		return err
	})
	if err != nil {
		return err
	}
	counted()
	f.measure()
	return f.bolt.View(func(tx *bolt.Tx) error {
		if err := f.searchable(tx, batch); err != nil {
			return err
		}
		for _, w := range last {
			if !bytes.Equal(tx.Bucket([]byte(w.bucket)).Get([]byte(w.name)), w.value) {
				return &brokenError{errTree}
			}
		}
		return nil
	})
}

// manyWrites is from when on a look at all branch pages of a bucket costs less than
// the ways to each of its names.
const manyWrites = 64

// searchable returns an error unless each name of batch can be searched in its
// bucket.
func (f *indexFile) searchable(tx *bolt.Tx, batch []*indexWrite) error {
	whole := map[string]bool{}
	for _, w := range batch {
		switch {
		case whole[w.bucket]:
		case len(batch) < manyWrites:
			if _, err := f.bucket(tx, w.bucket, w.name); err != nil {
				return err
			}
		default:
			b := tx.Bucket([]byte(w.bucket))
			if b == nil {
				return &brokenError{errTree}
			}
			if err := f.tree(b).checkAll(); err != nil {
				return err
			}
			whole[w.bucket] = true
		}
	}
	return nil
}

func (w *indexWrite) apply(f *indexFile, tx *bolt.Tx, c *change) error {
	b, value := tx.Bucket([]byte(w.bucket)), w.value
	if w.bucket == bucketObjects {
		old := b.Get([]byte(w.name))
		if w.again {
			value = old
		}
		c.note(old, value)
		m, err := f.shares.note(f, tx, w.name, old, value)
		if err != nil {
			return err
		}
		c.moves = append(c.moves, m)
	}
	if w.again {
		return nil
	}
	if value == nil {
		return b.Delete([]byte(w.name))
	}
	return b.Put([]byte(w.name), value)
}

// bucket returns a bucket in which name can be searched.
func (f *indexFile) bucket(tx *bolt.Tx, bucket, name string) (*bolt.Bucket, error) {
	b := tx.Bucket([]byte(bucket))
	if b == nil {
		return nil, &brokenError{errTree}
	}
	return b, f.tree(b).checkPath([]byte(name))
}

func (f *indexFile) tree(b *bolt.Bucket) *tree {
	return &tree{file: f.file, pageSize: f.bolt.Info().PageSize, root: uint64(b.Root())}
}

// lockWait is how long another process that closes the index is waited for.
const lockWait = time.Second

func openIndexFile(path string, place Place) (*indexFile, error) {
	f := &indexFile{shares: shares{place: place}}
	options := &bolt.Options{
		Timeout: lockWait, FreelistType: bolt.FreelistMapType, NoStatistics: true,
		OpenFile: func(path string, flag int, mode os.FileMode) (_ *os.File, err error) {
			f.file, err = os.OpenFile(path, flag, mode)
			return f.file, err
		},
	}
	err := guard(func() (err error) {
		f.bolt, err = bolt.Open(path, 0o666, options)
		if err != nil {
			return err
		}
		return f.prepare()
	})
	if err == nil {
		f.measure()
		return f, nil
	}
	if f.bolt != nil {
		go guard(f.bolt.Close) //nolint:errcheck // nobody uses the file
	} else if f.file != nil {
		f.file.Close() // also after a panic, so that the lock is gone
	}
	return nil, indexError(err)
}

// measure notes the size, so that who asks for it need not wait for a disk that hangs.
func (f *indexFile) measure() {
	if info, err := f.file.Stat(); err == nil {
		f.size.Store(allocated(info))
	}
}

// prepare makes what is missing, and checks that walks over the buckets end.
func (f *indexFile) prepare() error {
	missing, counted := false, false
	buckets := []string{bucketObjects, bucketDocuments, bucketUses, bucketKeys, bucketChecks, bucketLost, bucketAudits, bucketFindings, bucketState}
	err := f.bolt.View(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			b := tx.Bucket([]byte(name))
			if b == nil {
				missing = true
			} else if err := f.tree(b).checkAll(); err != nil {
				return err
			}
		}
		if !missing {
			counted = f.tally.load(tx)
		}
		return nil
	})
	if err != nil || counted {
		return err
	}
	return f.bolt.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		f.tally.load(tx)
		_, err := f.count(tx, change{})
		return err
	})
}

// indexError tells what the file's content causes from what the system says. A
// file that cannot be read is as good as broken.
func indexError(err error) error {
	errno, ok := errors.AsType[syscall.Errno](err)
	if isBroken(err) || errors.Is(err, bolterrors.ErrTimeout) || (ok && errno != syscall.EIO) {
		return err
	}
	return &brokenError{err}
}

func isBroken(err error) bool {
	_, ok := errors.AsType[*brokenError](err)
	return ok
}
