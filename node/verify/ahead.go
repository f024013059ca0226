package verify

import (
	"archive/zip"
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/flate"
	modzip "golang.org/x/mod/zip"
)

const (
	// batch is how many new bytes are worth waking up for.
	batch = 64 << 10
	// maxAhead bounds the memory for what is known ahead, 5 MiB. The largest public
	// modules have 18,000 files; what comes behind is hashed at the end.
	maxAhead = 1 << 16
)

// errAside ends the reading ahead. Nobody sees it: what was not hashed ahead is
// hashed when the zip is there.
var errAside = errors.New("not to be read in sequence")

// Download hashes a zip while it arrives, so that little is left to do when its
// last byte is there. It only saves time: Zip judges by the zip's directory alone
// and takes a sum from here for those entries whose place, method, lengths and CRC
// in the directory are what was met there. Everything else it hashes itself.
//
// Advance, Zip and Close are for one goroutine.
type Download struct {
	v      *Verifier
	r      io.ReaderAt
	ctx    context.Context //nolint:containedctx // of Follow, ended by Close
	cancel context.CancelFunc

	started bool
	woken   int64         // what was there at the last wake
	wake    chan struct{} // for the reader, one token
	over    chan struct{} // closed when the reading ahead has ended
	crashed any           // what the reading ahead panicked with; read behind over

	there atomic.Int64 // bytes that may be read
	whole atomic.Bool  // there is the size

	mu      sync.Mutex
	entries []ahead // by place
	front   int64   // place of the entry that is being read ahead
	back    int64   // from here on others hash
	ended   bool    // front moves no more
}

// ahead is an entry that was hashed before the directory was there.
type ahead struct {
	at           int64 // where its data begins
	packed, size uint64
	crc          uint32
	method       uint16
	described    bool // a descriptor with this CRC follows
	sum          [sha256.Size]byte
}

// Follow begins to hash the zip that is being written to r. Advance tells how
// far r has come. The caller must end it with Close, before it closes r.
func (v *Verifier) Follow(ctx context.Context, r io.ReaderAt) *Download {
	ctx, cancel := context.WithCancel(ctx)
	return &Download{
		v: v, r: r, ctx: ctx, cancel: cancel, front: math.MinInt64, back: math.MaxInt64,
		wake: make(chan struct{}, 1), over: make(chan struct{}),
	}
}

// Advance says that the first n bytes are there. It never waits.
func (d *Download) Advance(n int64) {
	d.there.Store(n)
	if n-d.woken < batch {
		return
	}
	d.woken = n
	d.rouse()
}

// Close stops the hashing at once and returns when nothing reads any more.
func (d *Download) Close() {
	d.cancel()
	if d.started {
		<-d.over
	}
}

// rouse starts the reading ahead or tells it of news.
func (d *Download) rouse() {
	if !d.started {
		d.started = true
		go d.run()
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// finish says that size bytes are all. A small zip is hashed here and now, as a
// goroutine costs more than it brings.
func (d *Download) finish(size int64) {
	d.there.Store(size)
	d.whole.Store(true)
	if d.started || size > 4*batch {
		d.rouse()
		return
	}
	d.started = true
	d.run()
}

// run reads ahead until something does not fit, the zip's directory begins or
// others have done the rest.
func (d *Download) run() {
	defer close(d.over)
	defer func() {
		d.crashed = recover() // for Zip: the caller knows what to do with a panic
		d.mu.Lock()
		defer d.mu.Unlock()
		d.ended = true
	}()
	if d.v.acquire(d.ctx) != nil {
		return
	}
	s := &sequence{d: d, left: modzip.MaxZipFile, holds: true}
	s.tools = d.v.tools()
	s.tools.raw.Reset(s)
	defer func() {
		d.v.tidy(s.tools)
		if s.holds {
			d.v.release()
		}
	}()
	for range maxAhead {
		e, err := s.next()
		if err != nil {
			return
		}
		d.mu.Lock()
		d.entries = append(d.entries, e)
		d.mu.Unlock()
		if s.yield() != nil {
			return
		}
	}
}

// panicked returns what the reading ahead panicked with, if it did so far.
func (d *Download) panicked() any {
	select {
	case <-d.over:
		return d.crashed
	default:
		return nil
	}
}

// begin reports whether the entry whose data is at that place is still to be hashed.
func (d *Download) begin(at int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if at >= d.back {
		return false
	}
	d.front = at
	return true
}

// known copies the sum of a file whose data is at that place, if it was hashed
// ahead. The caller holds mu.
func (d *Download) known(file *zip.File, at int64, sum *[sha256.Size]byte) bool {
	i, ok := slices.BinarySearchFunc(d.entries, at, func(e ahead, at int64) int { return cmp.Compare(e.at, at) })
	if !ok {
		return false
	}
	e := &d.entries[i]
	if e.method != file.Method || e.packed != file.CompressedSize64 || e.size != file.UncompressedSize64 ||
		e.crc != file.CRC32 || file.Flags&described != 0 && !e.described {
		return false
	}
	*sum = e.sum
	return true
}

// sequence reads the entries of a zip in the order in which they come.
type sequence struct {
	d     *Download
	tools *scratch
	off   int64  // of the next byte that tools.raw will ask for
	left  uint64 // unpacked bytes that are still allowed
	holds bool   // a slot
}

// Read yields bytes that have arrived, and waits for them without a slot.
func (s *sequence) Read(p []byte) (int, error) {
	for {
		whole := s.d.whole.Load() // before the length: afterwards it does not grow
		n := s.d.there.Load() - s.off
		if n > 0 {
			got, err := s.d.r.ReadAt(p[:min(int64(len(p)), n)], s.off)
			s.off += int64(got)
			if got > 0 {
				err = nil
			}
			return got, err
		}
		if whole {
			return 0, io.EOF
		}
		if err := s.wait(); err != nil {
			return 0, err
		}
	}
}

func (s *sequence) wait() error {
	s.d.v.release()
	s.holds = false
	select {
	case <-s.d.wake:
	case <-s.d.ctx.Done():
		return s.d.ctx.Err()
	}
	return s.take()
}

func (s *sequence) take() error {
	err := s.d.v.acquire(s.d.ctx)
	s.holds = err == nil
	return err
}

// yield lets other fills have their turn.
func (s *sequence) yield() error {
	s.d.v.release()
	s.holds = false
	return s.take()
}

// place is the offset of the next byte that was not used yet.
func (s *sequence) place() int64 { return s.off - int64(s.tools.raw.Buffered()) }

// The local header (APPNOTE.TXT 4.3.7).
const (
	localSignature = 0x04034b50
	localSize      = 30
	encrypted      = 0x1
	zip64Extra     = 0x0001
)

// next hashes the entry that begins here.
func (s *sequence) next() (e ahead, err error) {
	header, err := s.tools.raw.Peek(localSize)
	if err != nil {
		return e, err
	}
	le := binary.LittleEndian
	flags := le.Uint16(header[6:])
	if le.Uint32(header) != localSignature || flags&encrypted != 0 {
		return e, errAside
	}
	e.method = le.Uint16(header[8:])
	e.packed, e.size = uint64(le.Uint32(header[18:])), uint64(le.Uint32(header[22:]))
	e.described = flags&described != 0
	nameSize, extraSize := int(le.Uint16(header[26:])), int(le.Uint16(header[28:]))
	if _, err := s.tools.raw.Discard(localSize + nameSize); err != nil {
		return e, err
	}
	extra, err := s.tools.raw.Peek(extraSize)
	if err != nil {
		return e, err
	}
	e.widen(extra)
	if _, err := s.tools.raw.Discard(extraSize); err != nil {
		return e, err
	}
	e.at = s.place()
	if !s.d.begin(e.at) {
		return e, errAside
	}
	return e, s.content(&e)
}

// widen takes the lengths from the zip64 field (APPNOTE.TXT 4.5.3) where the
// header has no room for them.
func (e *ahead) widen(extra []byte) {
	const elsewhere = math.MaxUint32
	if e.packed != elsewhere && e.size != elsewhere {
		return
	}
	le := binary.LittleEndian
	for len(extra) >= 4 {
		id, n := le.Uint16(extra), int(le.Uint16(extra[2:]))
		if extra = extra[4:]; n > len(extra) {
			return
		}
		if id != zip64Extra {
			extra = extra[n:]
			continue
		}
		field := extra[:n]
		for _, length := range []*uint64{&e.size, &e.packed} {
			if *length == elsewhere && len(field) >= 8 {
				*length, field = le.Uint64(field), field[8:]
			}
		}
		return
	}
}

// content hashes the data of e. Its lengths are those of the header up to here and
// those that were met afterwards.
func (s *sequence) content(e *ahead) error {
	tools := s.tools
	var r io.Reader
	switch {
	case e.method == zip.Store && e.packed <= s.left:
		r = io.LimitReader(tools.raw, int64(e.packed)) //nolint:gosec // below 500 MiB
	case e.method == zip.Deflate:
		if err := tools.inflate.(flate.Resetter).Reset(tools.raw, nil); err != nil { //nolint:errcheck // see New
			return err
		}
		r = tools.inflate
	default:
		return errAside
	}
	if err := s.sum(r, e); err != nil {
		return err
	}
	e.packed = uint64(s.place() - e.at) //nolint:gosec // forwards
	if e.described {
		return e.skipDescriptor(tools.raw)
	}
	return nil
}

// sum reads r to its end, unless that is beyond all limits.
func (s *sequence) sum(r io.Reader, e *ahead) error {
	tools := s.tools
	tools.sum.Reset()
	var size uint64
	for {
		if err := s.d.ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(tools.buf[:])
		if size += uint64(n); size > s.left || !e.described && size > e.size {
			return errAside
		}
		tools.sum.Write(tools.buf[:n])
		e.crc = crc32.Update(e.crc, crc32.IEEETable, tools.buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	s.left -= size
	e.size = size
	tools.sum.Sum(e.sum[:0])
	return nil
}

// skipDescriptor passes over what follows the data of an entry whose header did
// not know its lengths: an optional signature, the CRC, and two lengths of 4 or
// of 8 bytes (APPNOTE.TXT 4.3.9).
func (e *ahead) skipDescriptor(r *bufio.Reader) error {
	b, err := r.Peek(24) // the directory behind it is longer than what may lack
	if err != nil {
		return err
	}
	crc, n := descriptorCRC(b)
	le := binary.LittleEndian
	switch {
	case crc != e.crc:
		return errAside
	case le.Uint64(b[n:]) == e.packed && le.Uint64(b[n+8:]) == e.size: // first: an empty file looks like both
		n += 16
	case uint64(le.Uint32(b[n:])) == e.packed && uint64(le.Uint32(b[n+4:])) == e.size:
		n += 8
	default:
		return errAside
	}
	_, err = r.Discard(n)
	return err
}
