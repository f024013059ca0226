package verify

import (
	"archive/zip"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"slices"

	"github.com/klauspost/compress/flate"
	"golang.org/x/sync/errgroup"
)

// item is one file of a zip on its way to the hash.
type item struct {
	*zip.File

	at  int64 // where its data begins; -1 if it cannot be told
	sum [sha256.Size]byte
}

// rest is the files of a zip that are to be hashed, by place.
type rest struct {
	d     *Download
	items []*item // under d.mu
}

// hash computes the h1: hash: SHA-256 over a line for each entry, in the order
// of their names.
func (d *Download) hash(ctx context.Context, src *source, files []*zip.File) (string, error) {
	d.overtake()
	items := make([]*item, len(files))
	for i, file := range files {
		at, err := file.DataOffset()
		if err != nil {
			at = -1 // whoever reads it meets the error again
		}
		items[i] = &item{File: file, at: at}
	}
	slices.SortFunc(items, func(a, b *item) int { return cmp.Compare(a.at, b.at) })
	todo := &rest{d: d, items: slices.Clone(items)}
	group, ctx := errgroup.WithContext(ctx)
	for range cap(d.v.slots) {
		if todo.empty() {
			break
		}
		group.Go(func() error { return todo.work(ctx, src) })
	}
	if err := group.Wait(); err != nil {
		return "", err
	}
	if p := d.panicked(); p != nil {
		panic(p)
	}
	slices.SortFunc(items, func(a, b *item) int { return cmp.Compare(a.Name, b.Name) })
	total := sha256.New()
	var line []byte
	for _, each := range items {
		line = append(hex.AppendEncode(line[:0], each.sum[:]), "  "...)
		line = append(append(line, each.Name...), '\n')
		total.Write(line)
	}
	return "h1:" + base64.StdEncoding.EncodeToString(total.Sum(nil)), nil
}

// empty reports whether nothing is left, after it has put those aside whose sums are
// known.
func (r *rest) empty() bool {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	return r.last() == nil
}

// last returns the last file whose sum is not known. The caller holds d.mu.
func (r *rest) last() *item {
	for n := len(r.items); n > 0; n-- {
		if it := r.items[n-1]; !r.d.known(it.File, it.at, &it.sum) {
			return it
		}
		r.items = r.items[:n-1]
	}
	return nil
}

// claim takes the last files off the list, as many neighbours as fit into a
// window. With wait, the last file is being read ahead now.
func (r *rest) claim() (items []*item, wait bool) {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	last := r.last()
	if last == nil {
		return nil, false
	}
	if r.d.reading(last) {
		return nil, true
	}
	n := len(r.items) - 1
	for n > 0 && last.fits(r.items[n-1].at) && !r.d.reading(r.items[n-1]) {
		n--
	}
	items, r.items = r.items[n:], r.items[:n]
	return items, false
}

func (r *rest) work(ctx context.Context, src *source) error {
	for {
		items, wait := r.claim()
		switch {
		case wait:
			select {
			case <-r.d.over:
			case <-ctx.Done():
				return ctx.Err()
			}
		case items == nil:
			return nil
		default:
			if err := r.d.v.hashEntries(ctx, src, items); err != nil {
				return err
			}
		}
	}
}

// hashEntries takes a slot for one window only, so that fills take turns.
func (v *Verifier) hashEntries(ctx context.Context, src *source, items []*item) error {
	if err := v.acquire(ctx); err != nil {
		return err
	}
	defer v.release()
	tools := v.tools()
	defer v.tidy(tools)
	if err := tools.window.load(src, items); err != nil {
		return err
	}
	for _, it := range items {
		if err := tools.digest(ctx, it); err != nil {
			return fmt.Errorf("reading file %q: %w", it.Name, err)
		}
	}
	return nil
}

// digest hashes the content of it and holds it against the length and CRC that
// the zip declares.
func (s *scratch) digest(ctx context.Context, it *item) error {
	r, err := s.content(it)
	if err != nil {
		return err
	}
	to := s.sink(ctx, it.UncompressedSize64)
	_, err = io.CopyBuffer(to, r, s.buf[:])
	switch {
	case err != nil:
		return err
	case to.left > 0:
		return io.ErrUnexpectedEOF
	case to.crc != it.CRC32 && it.CRC32 != 0: // 0: not said
		return zip.ErrChecksum
	}
	s.sum.Sum(it.sum[:0])
	return it.checkDescriptor(&s.window)
}

var errLonger = errors.New("more content than declared")

// sink hashes what is written to it.
type sink struct {
	ctx  context.Context //nolint:containedctx // of one entry
	sum  hash.Hash
	crc  uint32
	left uint64 // bytes that may still come
}

// sink returns one for size bytes at most.
func (s *scratch) sink(ctx context.Context, size uint64) *sink {
	s.sum.Reset()
	return &sink{ctx: ctx, sum: s.sum, left: size}
}

func (s *sink) Write(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	if uint64(len(p)) > s.left {
		return 0, errLonger
	}
	s.left -= uint64(len(p))
	s.sum.Write(p)
	s.crc = crc32.Update(s.crc, crc32.IEEETable, p)
	return len(p), nil
}

// content returns the inflated content of it. It does what zip.File.Open does,
// with an inflater that is kept, and out of the window where it is there: an entry in
// memory inflates in three quarters of the time.
func (s *scratch) content(it *item) (io.Reader, error) {
	if it.at < 0 {
		_, err := it.DataOffset()
		return nil, cmp.Or(err, zip.ErrFormat)
	}
	var packed flate.Reader = s.raw
	if data := s.window.slice(it.at, it.CompressedSize64); data != nil {
		s.memory.Reset(data)
		packed = s.memory
	} else {
		s.raw.Reset(io.NewSectionReader(s.window.src, it.at, int64(it.CompressedSize64))) //nolint:gosec // as archive/zip does it
	}
	switch it.Method {
	case zip.Store:
		return packed, nil
	case zip.Deflate:
		return s.inflate, s.inflate.(flate.Resetter).Reset(packed, nil) //nolint:errcheck // flate.NewReader documents that it is one
	default:
		return nil, zip.ErrAlgorithm
	}
}

// described is the flag of an entry with a descriptor behind its data
// (APPNOTE.TXT 4.4.4).
const described = 0x8

// checkDescriptor compares the CRC behind the entry's data, where there is one,
// with that of the directory, as archive/zip does for who unpacks the zip.
func (it *item) checkDescriptor(src io.ReaderAt) error {
	if it.Flags&described == 0 {
		return nil
	}
	var b [descriptorSize]byte
	if _, err := src.ReadAt(b[:], it.at+int64(it.CompressedSize64)); err != nil { //nolint:gosec // see content
		return zip.ErrFormat
	}
	if crc, _ := descriptorCRC(b[:]); crc != it.CRC32 {
		return zip.ErrChecksum
	}
	return nil
}

// descriptorCRC returns the CRC in the descriptor at the start of b and where it
// ends there, which depends on an optional signature (APPNOTE.TXT 4.3.9.3).
func descriptorCRC(b []byte) (crc uint32, end int) {
	const signature = 0x08074b50
	if crc := binary.LittleEndian.Uint32(b); crc != signature {
		return crc, 4
	}
	return binary.LittleEndian.Uint32(b[4:]), 8
}
