package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// The buckets of the index. bucketState holds keyComplete while the index is
// known to have an entry for each object.
const (
	bucketObjects   = "objects"
	bucketDocuments = "documents"
	bucketUses      = "uses"
	bucketKeys      = "keys"
	bucketChecks    = "checks" // when objects were compared in full
	bucketLost      = "lost"   // objects whose copy was bad
	bucketState     = "state"
	keyComplete     = "complete"
)

// index keeps sealed values by bucket and name, in one bbolt file. A broken file
// is put aside and replaced by an empty one, whatever was in it.
//
// bbolt's own Batch is not used: it commits on a goroutine of its own, where a
// panic over a damaged page would end the process. One writer goroutine takes
// all writes that wait while the last transaction is synced as the next one.
type index struct {
	path     string
	place    Place
	logger   *slog.Logger
	replaced func() // called with mu held after the file has been replaced; must not block

	writes  chan *indexBatch
	stop    chan struct{}
	stopped chan struct{} // closed when the writer has ended

	mu     sync.RWMutex
	file   *indexFile // nil while none can be opened
	closed bool
}

// indexFile is one bbolt file in use.
type indexFile struct {
	bolt   *bolt.DB
	file   *os.File // bolt's own
	tally  tally    // of bucketObjects
	shares shares
	size   atomic.Int64 // bytes that the file takes
}

type indexWrite struct {
	bucket, name string
	value        []byte // sealed; nil deletes
	again        bool   // what is there is written again, so that its key is
}

// indexBatch is what goes into one transaction.
type indexBatch struct {
	writes []*indexWrite
	done   []chan<- error
}

// maxBatch bounds the writes of one transaction.
const maxBatch = 512

// openIndex opens or makes the index at path. A broken one is no error.
func openIndex(path string, place Place, logger *slog.Logger, replaced func()) (*index, error) {
	ix := &index{
		path: path, place: place, logger: logger, replaced: replaced,
		writes: make(chan *indexBatch), stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	var err error
	if ix.file, err = openIndexFile(path, place); isBroken(err) {
		err = ix.replaceLocked(err)
	}
	if err != nil {
		return nil, err
	}
	go ix.write()
	return ix, nil
}

// close waits for the transactions that run. Later calls return fs.ErrClosed.
func (ix *index) close() error {
	close(ix.stop)
	<-ix.stopped
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.closed = true
	if ix.file == nil {
		return nil
	}
	return guard(ix.file.bolt.Close)
}

// get returns the payload of a value, made by decode out of bytes that are only
// valid during the call. Absent or damaged values are fs.ErrNotExist.
func (ix *index) get(bucket, name string, decode func(payload []byte) error) error {
	return ix.view(func(f *indexFile, tx *bolt.Tx) error {
		b, err := f.bucket(tx, bucket, name)
		if err != nil {
			return err
		}
		payload, err := unseal(bucket, name, b.Get([]byte(name)))
		if err == nil {
			err = decode(payload)
		}
		if err != nil {
			return fs.ErrNotExist
		}
		return nil
	})
}

// put keeps payload durably.
func (ix *index) put(bucket, name string, payload []byte) error {
	return ix.submit(&indexWrite{bucket: bucket, name: name, value: seal(bucket, name, payload)})
}

// remove drops the entry of an object durably, if there is one.
func (ix *index) remove(name string) error {
	return ix.submit(&indexWrite{bucket: bucketObjects, name: name})
}

// submit makes writes durable, at most maxBatch of them at once.
func (ix *index) submit(writes ...*indexWrite) error {
	for some := range slices.Chunk(writes, maxBatch) {
		done := make(chan error, 1)
		select {
		case ix.writes <- &indexBatch{some, []chan<- error{done}}:
		case <-ix.stop:
			return fs.ErrClosed
		}
		if err := <-done; err != nil {
			return err
		}
	}
	return nil
}

// view runs fn in a read transaction. fn may run again on a new file when the
// first one turns out to be broken.
func (ix *index) view(fn func(*indexFile, *bolt.Tx) error) error {
	return ix.use(func(f *indexFile) error {
		return f.bolt.View(func(tx *bolt.Tx) error { return fn(f, tx) })
	})
}

func (ix *index) use(fn func(*indexFile) error) error {
	var err error
	for range 3 {
		var f *indexFile
		if f, err = ix.current(); err != nil {
			return err
		}
		err = guard(func() error { return fn(f) })
		switch {
		case isBroken(err):
			ix.replace(f, err)
		case errors.Is(err, bolterrors.ErrDatabaseNotOpen): // replaced or closed meanwhile
		default:
			return err
		}
	}
	return err
}

func (ix *index) current() (*indexFile, error) {
	ix.mu.RLock()
	f, closed := ix.file, ix.closed
	ix.mu.RUnlock()
	if closed {
		return nil, fs.ErrClosed
	}
	if f != nil {
		return f, nil
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if ix.file == nil && !ix.closed {
		var err error
		if ix.file, err = openIndexFile(ix.path, ix.place); isBroken(err) {
			err = ix.replaceLocked(err)
		}
		if err != nil {
			return nil, err
		}
		ix.replaced()
	}
	if ix.closed {
		return nil, fs.ErrClosed
	}
	return ix.file, nil
}

// replace puts the broken file f aside, unless somebody has done so already.
func (ix *index) replace(f *indexFile, cause error) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if ix.file != f || ix.closed {
		return
	}
	ix.file = nil
	// A panic in the middle of bbolt may have left its locks held, so that Close
	// waits for ever; readers may be using the mapped memory, so that it must wait.
	go guard(f.bolt.Close) //nolint:errcheck // nobody uses the file any more
	if err := ix.replaceLocked(cause); err != nil {
		ix.logger.Error("index not replaced", "path", ix.path, "err", err)
	}
	ix.replaced()
}

func (ix *index) replaceLocked(cause error) error {
	aside := ix.path + ".broken"
	ix.logger.Error("index replaced, objects are indexed anew", "path", ix.path, "aside", aside, "err", cause)
	if err := os.Rename(ix.path, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("setting the broken index aside: %w", err)
	}
	var err error
	ix.file, err = openIndexFile(ix.path, ix.place)
	return err
}

// write is the writer goroutine.
func (ix *index) write() {
	defer close(ix.stopped)
	for {
		select {
		case <-ix.stop:
			return
		case batch := <-ix.writes:
			ix.gather(batch)
			err := ix.use(func(f *indexFile) error { return f.apply(batch.writes) })
			for _, done := range batch.done {
				done <- err
			}
		}
	}
}

// gather adds the writes that wait.
func (ix *index) gather(batch *indexBatch) {
	for len(batch.writes) < maxBatch {
		select {
		case more := <-ix.writes:
			batch.writes, batch.done = append(batch.writes, more.writes...), append(batch.done, more.done...)
		default:
			return
		}
	}
}

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
	buckets := []string{bucketObjects, bucketDocuments, bucketUses, bucketKeys, bucketChecks, bucketLost, bucketState}
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
