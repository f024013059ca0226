package store

import (
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"sync"
	"time"
)

// badCopyError says that a file is not the object it should be.
type badCopyError struct{ err error }

func (e *badCopyError) Error() string { return e.err.Error() }
func (e *badCopyError) Unwrap() error { return e.err }

var (
	errChanging = errors.New("file is being changed by somebody else")
	errSize     = errors.New("wrong size")
	errSum      = errors.New("wrong checksum")
)

// summer computes size, SHA-256 and chunk sums of what is added to it.
type summer struct {
	size   int64
	sha256 hash.Hash
	sums   []uint32
}

func newSummer() *summer { return &summer{sha256: sha256.New()} }

func (s *summer) add(p []byte) {
	s.sha256.Write(p)
	for rest := p; len(rest) > 0; {
		at := int(s.size % chunkSize)
		if at == 0 {
			s.sums = append(s.sums, 0)
		}
		n := min(len(rest), chunkSize-at)
		last := &s.sums[len(s.sums)-1]
		*last = crc32.Update(*last, castagnoli(), rest[:n])
		s.size += int64(n)
		rest = rest[n:]
	}
}

// record describes what has been added, stored now.
func (s *summer) record(name string, proof Proof) *record {
	r := &record{Entry: Entry{Name: name, Size: s.size, Proof: proof, Stored: time.Now().UTC()}, sums: s.sums}
	s.sha256.Sum(r.SHA256[:0])
	return r
}

// buffers holds *[chunkSize]byte.
type buffers struct{ pool sync.Pool }

func (b *buffers) get() *[chunkSize]byte {
	if p, ok := b.pool.Get().(*[chunkSize]byte); ok {
		return p
	}
	return new([chunkSize]byte)
}

// read hands the file to visit, chunk by chunk. A file that cannot be read is a
// bad copy.
func (b *buffers) read(ctx context.Context, f *os.File, size int64, visit func(i int, chunk []byte) error) error {
	buf := b.get()
	defer b.pool.Put(buf)
	tell := Progress(ctx)
	for i := range int(chunks(size)) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		off := int64(i) * chunkSize
		chunk := buf[:min(chunkSize, size-off)]
		if _, err := f.ReadAt(chunk, off); err != nil {
			if err == io.EOF {
				err = errSize
			}
			return &badCopyError{fmt.Errorf("reading at %d: %w", off, err)}
		}
		tell()
		if err := visit(i, chunk); err != nil {
			return err
		}
	}
	return nil
}

// check reads the file and compares it with its record.
func (b *buffers) check(ctx context.Context, f *os.File, r *record) error {
	return b.read(ctx, f, r.Size, func(i int, chunk []byte) error {
		if crc32.Checksum(chunk, castagnoli()) != r.sums[i] {
			return &badCopyError{fmt.Errorf("chunk %d: %w", i, errSum)}
		}
		return nil
	})
}

// identity changes whenever the bytes of a file do.
type identity struct {
	inode   uint64
	size    int64
	changed time.Time // the file's ctime
}

// settle is longer than the steps of a file system's clock. A file that was
// changed within settle of its check may be changed again without a new ctime.
const settle = 25 * time.Millisecond

// checkedFile is a file whose content was found to be entry's.
type checkedFile struct {
	entry Entry
	id    identity
	at    time.Time
}

// Bounds of the memory of checks.
const (
	checkLife   = 24 * time.Hour
	maxVerified = 1 << 16 // about 300 bytes each
)

// verified remembers which files were checked, the most recently used ones.
type verified struct {
	mu     sync.Mutex
	byName map[string]*list.Element // of *checkedFile
	order  *list.List               // most recently used first
}

func newVerified() *verified {
	return &verified{byName: make(map[string]*list.Element), order: list.New()}
}

// add remembers a check that began or, for a new file, whose writing ended at at.
func (v *verified) add(c checkedFile) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.forgetLocked(c.entry.Name)
	if c.at.Sub(c.id.changed) < settle {
		return
	}
	v.byName[c.entry.Name] = v.order.PushFront(&c)
	if v.order.Len() > maxVerified {
		oldest := v.order.Remove(v.order.Back()).(*checkedFile) //nolint:errcheck // the list holds nothing else
		delete(v.byName, oldest.entry.Name)
	}
}

// get returns the check of that name that still counts.
func (v *verified) get(name string) (checkedFile, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e, ok := v.byName[name]
	if !ok {
		return checkedFile{}, false
	}
	v.order.MoveToFront(e)
	c := e.Value.(*checkedFile) //nolint:errcheck // as above
	return *c, time.Since(c.at) < checkLife
}

func (v *verified) forget(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.forgetLocked(name)
}

func (v *verified) forgetLocked(name string) {
	if e, ok := v.byName[name]; ok {
		v.order.Remove(e)
		delete(v.byName, name)
	}
}
