package verify

import (
	"archive/zip"
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"math"

	"github.com/klauspost/compress/flate"
)

// errAside ends the reading ahead. Nobody sees it: what was not hashed ahead is
// hashed when the zip is there.
var errAside = errors.New("not to be read in sequence")

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
	most := s.left
	if !e.described {
		most = min(most, e.size)
	}
	to := s.tools.sink(s.d.ctx, most)
	if _, err := io.CopyBuffer(to, r, s.tools.buf[:]); err != nil {
		return err
	}
	e.size, e.crc = most-to.left, to.crc
	s.left -= e.size
	s.tools.sum.Sum(e.sum[:0])
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
