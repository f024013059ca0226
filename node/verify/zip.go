package verify

import (
	"archive/zip"
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/klauspost/compress/flate"
	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"
	"golang.org/x/sync/errgroup"

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
	slots chan *scratch // an idle worker's tools; who holds one may compute
}

// scratch is what one worker needs.
type scratch struct {
	buf     [bufferSize]byte
	sum     hash.Hash
	raw     *bufio.Reader
	inflate io.Reader // from raw
}

// New returns a Verifier that computes on at most workers goroutines at a time,
// GOMAXPROCS when workers is 0 or less.
func New(workers int) *Verifier {
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	v := &Verifier{slots: make(chan *scratch, workers)}
	for range workers {
		raw := bufio.NewReaderSize(nil, rawSize)
		v.slots <- &scratch{sum: sha256.New(), raw: raw, inflate: flate.NewReader(raw)}
	}
	return v
}

// Zip checks that f, size bytes long, is a zip of m by the rules of
// golang.org/x/mod/zip, reads every entry to its end (length and CRC) and
// returns the h1: hash of the content, equal to that of
// golang.org/x/mod/sumdb/dirhash.HashZip.
//
// An *os.File that still has its name is read in place; anything else is copied
// to a temporary file first, because those rules exist for named files only.
//
// Errors: ctx's own, or a *cache.Error with the reason Broken (the zip is bad),
// Malformed (m names no version) or Internal (f cannot be read).
func (v *Verifier) Zip(ctx context.Context, m module.Version, f io.ReaderAt, size int64) (h1 string, err error) {
	if err := module.Check(m.Path, m.Version); err != nil {
		return "", &cache.Error{Reason: cache.Malformed, Text: oneLine(err.Error()), Err: err}
	}
	if size > modzip.MaxZipFile {
		return "", broken(nil, "zip for %s has %d bytes, the limit is %d", m, size, modzip.MaxZipFile)
	}
	name, remove, err := named(ctx, f, size)
	if err != nil {
		return "", err
	}
	defer remove()
	src := &source{r: f, size: size}
	files, err := v.open(ctx, m, src, name, size)
	if err != nil {
		return "", src.explain(ctx, m, err)
	}
	h1, err = v.hash(ctx, src, files)
	if err != nil {
		return "", src.explain(ctx, m, err)
	}
	return h1, nil
}

// open reads the directory of the zip, once for us within a bound and then for
// CheckZip, which has none. It holds a slot: a directory costs memory.
func (v *Verifier) open(ctx context.Context, m module.Version, src *source, name string, size int64) ([]*zip.File, error) {
	tools, err := v.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer v.release(tools)
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

// hash computes the h1: hash: SHA-256 over a line for each entry, in the order
// of their names.
func (v *Verifier) hash(ctx context.Context, src io.ReaderAt, files []*zip.File) (string, error) {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b *zip.File) int { return cmp.Compare(a.Name, b.Name) })
	sums := make([][sha256.Size]byte, len(files))
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for range min(cap(v.slots), len(files)) {
		group.Go(func() error {
			for i := next.Add(1) - 1; i < int64(len(files)); i = next.Add(1) - 1 {
				if err := v.hashEntry(ctx, src, files[i], &sums[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return "", err
	}
	total := sha256.New()
	for i, file := range files {
		fmt.Fprintf(total, "%x  %s\n", sums[i], file.Name)
	}
	return "h1:" + base64.StdEncoding.EncodeToString(total.Sum(nil)), nil
}

// hashEntry takes a slot for one entry only, so that fills take turns.
func (v *Verifier) hashEntry(ctx context.Context, src io.ReaderAt, file *zip.File, sum *[sha256.Size]byte) error {
	tools, err := v.acquire(ctx)
	if err != nil {
		return err
	}
	defer v.release(tools)
	if err := tools.digest(ctx, src, file); err != nil {
		return fmt.Errorf("reading file %q: %w", file.Name, err)
	}
	tools.sum.Sum(sum[:0])
	return nil
}

// digest hashes the content of file and holds it against the length and CRC that
// the zip declares.
func (s *scratch) digest(ctx context.Context, src io.ReaderAt, file *zip.File) error {
	r, err := s.content(file)
	if err != nil {
		return err
	}
	s.sum.Reset()
	var crc uint32
	for left := file.UncompressedSize64; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(s.buf[:])
		if uint64(n) > left {
			return errors.New("more content than declared")
		}
		left -= uint64(n)
		s.sum.Write(s.buf[:n])
		crc = crc32.Update(crc, crc32.IEEETable, s.buf[:n])
		switch {
		case err == io.EOF && left > 0:
			return io.ErrUnexpectedEOF
		case err == io.EOF && crc != file.CRC32 && file.CRC32 != 0: // 0: not said
			return zip.ErrChecksum
		case err == io.EOF:
			return checkDescriptor(src, file)
		case err != nil:
			return err
		}
	}
}

// checkDescriptor compares the CRC behind the entry's data, where there is one,
// with that of the directory, as archive/zip does for who unpacks the zip.
func checkDescriptor(src io.ReaderAt, file *zip.File) error {
	const present, signature = 0x8, 0x08074b50 // APPNOTE.TXT 4.4.4 and 4.3.9.3
	if file.Flags&present == 0 {
		return nil
	}
	start, err := file.DataOffset()
	if err != nil {
		return err
	}
	var b [8]byte
	if _, err := src.ReadAt(b[:], start+int64(file.CompressedSize64)); err != nil {
		return zip.ErrFormat
	}
	crc := binary.LittleEndian.Uint32(b[:])
	if crc == signature {
		crc = binary.LittleEndian.Uint32(b[4:])
	}
	if crc != file.CRC32 {
		return zip.ErrChecksum
	}
	return nil
}

// content returns the inflated content of file. It does what file.Open does,
// with reads sixteen times as large and an inflater that is kept.
func (s *scratch) content(file *zip.File) (io.Reader, error) {
	raw, err := file.OpenRaw()
	if err != nil {
		return nil, err
	}
	s.raw.Reset(raw)
	switch file.Method {
	case zip.Store:
		return s.raw, nil
	case zip.Deflate:
		return s.inflate, s.inflate.(flate.Resetter).Reset(s.raw, nil) //nolint:errcheck // flate.NewReader documents that it is one
	default:
		return nil, zip.ErrAlgorithm
	}
}

func (v *Verifier) acquire(ctx context.Context) (*scratch, error) {
	select {
	case s := <-v.slots:
		return s, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (v *Verifier) release(s *scratch) { v.slots <- s }

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
	if f, ok := r.(*os.File); ok && isAt(f, f.Name(), size) {
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

// isAt reports whether f is still what name names, size bytes long.
func isAt(f *os.File, name string, size int64) bool {
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
