package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"

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
	bucketAudits    = "audits" // when upstream was asked whether it still has them
	bucketFindings  = "findings"
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
