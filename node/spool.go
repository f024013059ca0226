package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
)

const (
	// DefaultSpool is how much memory holds zips that the disk does not take, all
	// together, and so the size of the largest.
	DefaultSpool = 256 << 20
	spoolStep    = 4 << 20 // taken at a time for a zip of unknown length
)

// memory is what spools share.
type memory struct {
	most int64
	room *semaphore.Weighted
}

func newMemory(most int64) *memory { return &memory{most, semaphore.NewWeighted(most)} }

// spool is a zip that the disk does not take: it is kept in memory while somebody
// reads it, and is gone then. It is a store.Pending that cannot be committed; the
// one reference that it begins with ends by Abort.
//
// The memory is a file for the system, because a zip is verified by the name of one.
type spool struct {
	ctx    context.Context //nolint:containedctx // of the fill that writes
	memory *memory
	file   *os.File
	remove func()
	sum    hash.Hash // the writer's
	ended  sync.Once // by Abort

	mu       sync.Mutex
	readers  int // and the writer; 0: the memory is gone
	size     int64
	reserved int64
}

// newSpool returns an empty spool with room for size bytes, -1 if unknown. It may
// wait for others.
func newSpool(ctx context.Context, m *memory, size int64) (*spool, error) {
	file, remove, err := memoryFile()
	if err != nil {
		return nil, err
	}
	s := &spool{ctx: ctx, memory: m, file: file, remove: remove, sum: sha256.New(), readers: 1}
	if err := s.reserve(ctx, size); err != nil {
		s.Abort()
		return nil, err
	}
	return s, nil
}

// temporaryFile is a memoryFile where the system has none.
func temporaryFile() (f *os.File, remove func(), err error) {
	f, err = os.CreateTemp("", "ringmod-spool-*.zip")
	if err != nil {
		return nil, nil, err
	}
	return f, func() { os.Remove(f.Name()) }, nil //nolint:errcheck // a leftover in the temporary folder harms nobody
}

var errSpool = errors.New("too large for the memory that holds what the disk does not take")

// spoolError is for a zip that cannot be kept in memory, either.
func spoolError(t target.Target, err error) error {
	if !errors.Is(err, errSpool) {
		return diskError(err)
	}
	return &cache.Error{
		Reason: cache.Busy, Text: "the cache cannot write to its disk, and " + t.Describe() + " is too large to be passed on without it",
		RetryAfter: diskRetry, Err: fmt.Errorf("%w: %w", errDisk, err),
	}
}

// Reserve implements store.Pending.
func (s *spool) Reserve(size int64) error { return s.reserve(s.ctx, size) }

func (s *spool) reserve(ctx context.Context, size int64) error {
	s.mu.Lock()
	more := size - s.reserved
	s.mu.Unlock()
	if more <= 0 {
		return nil
	}
	if size > s.memory.most {
		return errSpool
	}
	ctx, cancel := context.WithTimeout(ctx, queueWait)
	defer cancel()
	if err := s.memory.room.Acquire(ctx, more); err != nil {
		return fmt.Errorf("waiting for memory: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved = size
	return nil
}

func (s *spool) Write(b []byte) (int, error) {
	size := s.length() + int64(len(b))
	if size > s.reservation() {
		if err := s.Reserve(min(size+spoolStep, max(size, s.memory.most))); err != nil {
			return 0, err
		}
	}
	n, err := s.file.Write(b)
	s.sum.Write(b[:n])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size += int64(n)
	return n, err
}

func (s *spool) length() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size
}

func (s *spool) reservation() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reserved
}

// Open implements store.Pending.
func (s *spool) Open() (store.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readers == 0 {
		return nil, fs.ErrClosed
	}
	s.readers++
	return &spoolFile{spool: s}, nil
}

// Commit implements store.Pending.
func (s *spool) Commit(store.Proof) (store.Entry, error) { return store.Entry{}, store.ErrReadOnly }

// Abort implements store.Pending. Readers keep what they have opened.
func (s *spool) Abort() { s.ended.Do(s.leave) }

func (s *spool) leave() {
	s.mu.Lock()
	s.readers--
	last := s.readers == 0
	s.mu.Unlock()
	if last {
		s.file.Close() //nolint:errcheck // nobody wants the bytes
		s.remove()
		s.memory.room.Release(s.reserved)
	}
}

// spoolFile reads a spool, as a file of its own does. It has the name of the spool's.
type spoolFile struct {
	*spool

	offset int64
	closed sync.Once
}

// Name returns a path that leads to the bytes.
func (f *spoolFile) Name() string { return f.file.Name() }

// Stat describes the spool's file.
func (f *spoolFile) Stat() (fs.FileInfo, error) { return f.file.Stat() }

// Read implements io.Reader.
func (f *spoolFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.offset)
	f.offset += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// ReadAt implements io.ReaderAt.
func (f *spoolFile) ReadAt(p []byte, off int64) (int, error) { return f.file.ReadAt(p, off) }

// Seek implements io.Seeker.
func (f *spoolFile) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += f.offset
	case io.SeekEnd:
		off += f.length()
	}
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	f.offset = off
	return off, nil
}

// Close gives the memory back if nobody else reads.
func (f *spoolFile) Close() error {
	f.closed.Do(f.leave)
	return nil
}

// passed is the answer from a spool that is complete and verified; nil when its
// memory is gone.
func (n *Node) passed(s *spool, t target.Target, p store.Proof, source cache.Source) *cache.Object {
	file, err := s.Open()
	if err != nil {
		return nil
	}
	obj := &cache.Object{
		Size: s.length(), H1: p.H1, Verified: p.Verified, Private: n.private(t), Source: source, Body: file,
	}
	s.sum.Sum(obj.SHA256[:0])
	return obj
}
