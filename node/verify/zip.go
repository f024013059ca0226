package verify

import (
	"archive/zip"
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/flate"
	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"

	"github.com/ringmod/ringmod/internal/cache"
)

const (
	// maxDirectory bounds the zip's own table of contents, bytes, and by that the
	// memory for it. The largest public modules have 3 MiB for 18,000 files.
	maxDirectory = 32 << 20
	bufferSize   = 32 << 10
	rawSize      = 64 << 10
)

var (
	errDirectory = fmt.Errorf("the zip's directory is larger than %d bytes", maxDirectory)
	errOffset    = errors.New("the zip points outside of itself")
)

// Verifier checks module zips. Its calls share a fixed number of workers, so
// that many fills at once do not take more processors than were granted. All
// methods may be called concurrently.
type Verifier struct {
	slots chan struct{} // a token for each idle worker; who holds one may compute
	idle  sync.Pool     // of *scratch
}

// scratch is what one worker needs.
type scratch struct {
	buf     [bufferSize]byte
	sum     hash.Hash
	window  window
	memory  *bytes.Reader // of a part of window
	raw     *bufio.Reader
	inflate io.Reader // from memory or raw
}

// New returns a Verifier that computes on at most workers goroutines at a time,
// one fewer than GOMAXPROCS when workers is 0 or less: while all are busy somebody
// still polls the network, so that verifying never slows a hit.
func New(workers int) *Verifier {
	if workers <= 0 {
		workers = max(1, runtime.GOMAXPROCS(0)-1)
	}
	v := &Verifier{slots: make(chan struct{}, workers)}
	v.idle.New = func() any {
		raw := bufio.NewReaderSize(nil, rawSize)
		return &scratch{sum: sha256.New(), memory: bytes.NewReader(nil), raw: raw, inflate: flate.NewReader(raw)}
	}
	for range workers {
		v.release()
	}
	return v
}

// Zip checks that f, size bytes long, is a zip of m by the rules of
// golang.org/x/mod/zip, reads every entry to its end (length and CRC) and
// returns the h1: hash of the content, equal to that of
// golang.org/x/mod/sumdb/dirhash.HashZip.
//
// An *os.File, or what has a name like one, is read in place while that name leads to
// it; anything else is copied
// to a temporary file first, because those rules exist for named files only.
//
// Errors: ctx's own, or a *cache.Error with the reason Broken (the zip is bad),
// Malformed (m names no version) or Internal (f cannot be read).
func (v *Verifier) Zip(ctx context.Context, m module.Version, f io.ReaderAt, size int64) (h1 string, err error) {
	d := v.Follow(ctx, f)
	defer d.Close()
	return d.Zip(m, size)
}

// Zip does what Verifier.Zip does for the file that was followed, when size bytes
// are all of it, under the context of Follow. It is called once.
func (d *Download) Zip(m module.Version, size int64) (h1 string, err error) {
	if err := module.Check(m.Path, m.Version); err != nil {
		return "", &cache.Error{Reason: cache.Malformed, Text: oneLine(err.Error()), Err: err}
	}
	if size > modzip.MaxZipFile {
		return "", broken(nil, "zip for %s has %d bytes, the limit is %d", m, size, modzip.MaxZipFile)
	}
	ctx := d.ctx
	name, remove, err := named(ctx, d.r, size)
	if err != nil {
		return "", err
	}
	defer remove()
	d.finish(size)
	src := &source{r: d.r, size: size}
	files, err := d.v.open(ctx, m, src, name, size)
	if err != nil {
		return "", src.explain(ctx, m, err)
	}
	h1, err = d.hash(ctx, src, files)
	if err != nil {
		return "", src.explain(ctx, m, err)
	}
	return h1, nil
}

// open reads the directory of the zip, once for us within a bound and then for
// CheckZip, which has none. It holds a slot: a directory costs memory.
func (v *Verifier) open(ctx context.Context, m module.Version, src *source, name string, size int64) ([]*zip.File, error) {
	if err := v.acquire(ctx); err != nil {
		return nil, err
	}
	defer v.release()
	src.limit = maxDirectory
	z, err := zip.NewReader(src, size)
	if err != nil {
		return nil, err
	}
	src.limit = 0
	checked, err := modzip.CheckZip(m, name)
	if n := len(checked.Invalid); n > 0 {
		return nil, fmt.Errorf("unexpected file %q (%w), %d such in all", checked.Invalid[0].Path, checked.Invalid[0].Err, n)
	}
	return z.File, err
}

func (v *Verifier) acquire(ctx context.Context) error {
	select {
	case <-v.slots:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (v *Verifier) release() { v.slots <- struct{}{} }

func (v *Verifier) tools() *scratch { return v.idle.Get().(*scratch) } //nolint:errcheck // it has nothing else

// tidy takes tools back. They keep nothing of the zip alive.
func (v *Verifier) tidy(tools *scratch) {
	tools.raw.Reset(nil)
	tools.memory.Reset(nil)
	tools.window.src, tools.window.data = nil, tools.window.data[:0]
	v.idle.Put(tools)
}

// source is the zip's bytes. It bounds what is read while limit is set, and
// remembers that reading failed here, which is not the zip's fault; reading
// where the zip has no bytes is.
type source struct {
	r      io.ReaderAt
	size   int64
	limit  int64 // bytes that may still be read; 0 for no limit. Set while only one goroutine reads
	failed atomic.Pointer[error]
}

// ReadAt implements io.ReaderAt.
func (s *source) ReadAt(p []byte, off int64) (int, error) {
	if s.limit > 0 {
		if s.limit -= int64(len(p)); s.limit <= 0 {
			s.limit = 1
			return 0, errDirectory
		}
	}
	if off < 0 || off > s.size {
		return 0, errOffset
	}
	n, err := s.r.ReadAt(p, off)
	if err != nil && err != io.EOF {
		s.failed.CompareAndSwap(nil, &err)
	}
	return n, err
}

// explain turns err into what Zip returns.
func (s *source) explain(ctx context.Context, m module.Version, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if failed := s.failed.Load(); failed != nil {
		err = *failed
	}
	if _, ok := errors.AsType[*fs.PathError](err); ok || s.failed.Load() != nil {
		return &cache.Error{Reason: cache.Internal, Text: "reading the zip for " + m.String() + " failed here", Err: err}
	}
	return broken(err, "zip for %s is bad: %v", m, err)
}

// named returns the name of a file with the first size bytes of r.
func named(ctx context.Context, r io.ReaderAt, size int64) (name string, remove func(), err error) {
	if f, ok := r.(namedFile); ok && isAt(f, f.Name(), size) {
		return f.Name(), func() {}, nil
	}
	f, err := os.CreateTemp("", "ringmod-verify-*.zip")
	if err != nil {
		return "", nil, internal(err)
	}
	remove = func() { os.Remove(f.Name()) } //nolint:errcheck // a leftover in the temporary folder harms nobody
	_, err = io.Copy(f, &ctxReader{ctx, io.NewSectionReader(r, 0, size)})
	if err = errors.Join(err, f.Close()); err != nil {
		remove()
		return "", nil, cmp.Or(ctx.Err(), internal(err))
	}
	return f.Name(), remove, nil
}

// namedFile is an *os.File or leads to one.
type namedFile interface {
	Name() string
	Stat() (fs.FileInfo, error)
}

// isAt reports whether f is still what name names, size bytes long.
func isAt(f namedFile, name string, size int64) bool {
	have, err := f.Stat()
	if err != nil || have.Size() != size {
		return false
	}
	there, err := os.Stat(name)
	return err == nil && os.SameFile(have, there)
}

func internal(err error) error {
	return &cache.Error{Reason: cache.Internal, Text: "copying a zip to a temporary file failed", Err: err}
}

// ctxReader ends one copy when ctx does; it lives no longer than the call.
type ctxReader struct {
	ctx context.Context //nolint:containedctx // of one call, see above
	r   io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
