package wire

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"io/fs"
	"sync/atomic"

	"google.golang.org/grpc/mem"

	"github.com/ringmod/ringmod/internal/cache"
)

func newHash() hash.Cloner { return sha256.New().(hash.Cloner) } //nolint:errcheck // all hashes of the standard library are

// Body is an object as it arrives. It is an io.Reader and an io.WriterTo; one
// goroutine reads it, any may close it.
//
// Its end, io.EOF, means that every byte is right and the node has said so. Any
// other error is a *cache.Error that the node sent, a *PeerError, the context's
// error or fs.ErrClosed, and stays.
type Body struct {
	stream *stream
	pool   *Pool
	closed atomic.Bool

	size   int64       // of the object, -1 while unknown
	sum    [32]byte    // of the object, zero while unknown
	offset int64       // the next byte to hand out
	hash   hash.Cloner // of the bytes before offset; nil = CRCs are enough

	ready    mem.BufferSlice // received, not handed out
	skip     int             // bytes of ready[0] that are handed out
	received int64           // the next byte to receive
	end      error           // what follows ready; nil while the stream goes on

	h1       string // of the header, then of the trailer
	verified bool
}

func newBody(s *stream, obj *cache.Object, from Resume, pool *Pool) *Body {
	return &Body{
		stream: s, pool: pool, size: obj.Size, sum: obj.SHA256,
		offset: from.Offset, received: from.Offset, hash: cloneOf(from.hash), h1: obj.H1, verified: obj.Verified,
	}
}

func cloneOf(h hash.Cloner) hash.Cloner {
	if h == nil {
		return nil
	}
	c, err := h.Clone()
	if err != nil { // cannot be for SHA-256
		panic(err)
	}
	return c
}

// Resume tells where another stream can go on, whatever has become of this one.
// ok is false when the digest of the object is not known, as during a fill. It
// must not be called while the body is being read.
func (b *Body) Resume() (r Resume, ok bool) {
	return Resume{Offset: b.offset, SHA256: b.sum, hash: cloneOf(b.hash)}, b.sum != [32]byte{}
}

// Prefix returns how many bytes have been handed out, from the object's first on,
// and their SHA-256: what a second stream has to match where no digest is known.
// The sum is zero where the bytes are not hashed, which is only where Resume is
// ok. It must not be called while the body is being read.
func (b *Body) Prefix() (n int64, sum [32]byte) {
	if b.hash != nil {
		sum = [32]byte(b.hash.Sum(nil))
	}
	return b.offset, sum
}

// Proof returns the module hash, "" where the object has none, and whether a
// checksum database has confirmed it, as the node says. Of a fill both are known
// once Read has returned io.EOF.
func (b *Body) Proof() (h1 string, verified bool) { return b.h1, b.verified }

// Close ends the stream if it has not ended.
func (b *Body) Close() error {
	b.closed.Store(true)
	b.stream.close(errClosed)
	return nil
}

// Read implements io.Reader.
func (b *Body) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := b.fill(); err != nil {
		return 0, err
	}
	n := 0
	for n < len(p) && len(b.ready) > 0 {
		n += b.take(p[n:])
	}
	b.handOut(p[:n])
	return n, nil
}

// WriteTo implements io.WriterTo. It writes a chunk at a time: gRPC cuts chunks
// into frames of 16 KiB, and a write for each would cost more than a copy
// (perf.md 6.2).
func (b *Body) WriteTo(w io.Writer) (int64, error) {
	buf := b.pool.Get(ChunkSize)
	defer b.pool.Put(buf)
	var total int64
	for {
		n, err := b.Read(*buf)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err = w.Write((*buf)[:n])
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}

// take moves bytes from ready to p.
func (b *Body) take(p []byte) int {
	first := b.ready[0]
	n := copy(p, first.ReadOnlyData()[b.skip:])
	if b.skip += n; b.skip == first.Len() {
		first.Free()
		b.ready, b.skip = b.ready[1:], 0
	}
	return n
}

// handOut counts p as given to the reader.
func (b *Body) handOut(p []byte) {
	b.offset += int64(len(p))
	if b.hash != nil {
		b.hash.Write(p)
	}
}

// fill waits until there are bytes to hand out. The chunk that completes an
// object of known size waits for the trailer: a client that counts bytes would
// not notice what comes behind its last.
func (b *Body) fill() error {
	if b.closed.Load() {
		return fs.ErrClosed
	}
	for len(b.ready) == 0 {
		if b.end != nil {
			return b.end
		}
		err := b.receive()
		if err == nil && b.received == b.size && len(b.ready) > 0 {
			err = b.finish()
		}
		if err != nil && !errors.Is(err, io.EOF) {
			b.ready.Free()
			b.ready = nil
		}
		if b.end = err; err != nil {
			b.stream.close(err)
		}
	}
	return nil
}

// receive takes one message.
func (b *Body) receive() error {
	m, err := b.stream.next()
	switch {
	case errors.Is(err, io.EOF):
		return b.stream.wrong("the stream ended without a trailer")
	case err != nil && errors.Is(err, errClosed):
		return fs.ErrClosed
	case err != nil:
		return err
	case m.header != nil:
		return b.stream.wrong("a second header came")
	case m.trailer != nil:
		return b.verify(m)
	case m.chunk != nil:
		return b.accept(m.chunk)
	default:
		return nil // a sign of life
	}
}

// finish receives what follows the last byte. It returns io.EOF when all is
// right.
func (b *Body) finish() error {
	for {
		if err := b.receive(); err != nil {
			return err
		}
	}
}

// accept checks a chunk and makes it ready.
func (b *Body) accept(c *inChunk) error {
	n := c.data.Len()
	ok := func() error {
		switch {
		case n == 0 || n > ChunkSize:
			return b.stream.wrong("a chunk of %d bytes", n)
		case c.offset != uint64(b.received):
			return b.stream.wrong("a chunk at byte %d where %d was due", c.offset, b.received)
		case b.size >= 0 && int64(n) > b.size-b.received:
			return b.stream.wrong("more than %d bytes", b.size)
		}
		if c.crc == nil && b.hash != nil {
			return nil
		}
		if c.crc == nil {
			return b.stream.wrong("a chunk without a CRC")
		}
		var crc uint32
		for _, each := range c.data {
			crc = crcOf(crc, each.ReadOnlyData())
		}
		if crc != *c.crc {
			return b.stream.wrong("damaged bytes from %d on", b.received)
		}
		return nil
	}
	if err := ok(); err != nil {
		c.data.Free()
		return err
	}
	b.received += int64(n)
	b.ready = append(b.ready, c.data...)
	return nil
}

// verify compares the trailer with what came, and the end of the stream with a
// good end, which is io.EOF.
func (b *Body) verify(m *message) error {
	t := m.trailer
	if t.GetSize() != uint64(b.received) || (b.size >= 0 && b.received != b.size) {
		return b.stream.wrong("%d bytes came of %d", b.received, t.GetSize())
	}
	if got := b.digest(); !bytes.Equal(t.GetSha256(), got[:]) || (b.sum != [32]byte{} && b.sum != got) {
		return b.stream.wrong("the bytes do not have their digest")
	}
	if h1 := t.GetH1(); len(h1) > maxH1 || (b.h1 != "" && h1 != "" && b.h1 != h1) {
		return b.stream.wrong("a module hash that cannot be right")
	} else if h1 != "" {
		b.h1, b.verified = h1, t.GetVerified()
	}
	switch m, err := b.stream.next(); {
	case err == nil && m.chunk != nil:
		m.chunk.data.Free()
		return b.stream.wrong("more came behind the trailer")
	case err == nil:
		return b.stream.wrong("more came behind the trailer")
	default:
		return err
	}
}

// digest returns that of all bytes received, or what the header says of them
// where CRCs are enough.
func (b *Body) digest() [32]byte {
	h := cloneOf(b.hash)
	if h == nil {
		return b.sum
	}
	for _, each := range b.ready {
		h.Write(each.ReadOnlyData())
	}
	return [32]byte(h.Sum(nil))
}

// inlineBody is an object that came with the header; it can seek.
type inlineBody struct{ *bytes.Reader }

func (inlineBody) Close() error { return nil }

// inline checks an object that came with the header, and the end of the stream.
func (s *stream) inline(obj *cache.Object, data []byte, from Resume) (io.ReadCloser, error) {
	h := cloneOf(from.hash)
	if h == nil && from.Offset == 0 { // small enough, and without a CRC
		h = newHash()
	}
	if h == nil {
		return nil, s.wrong("bytes came with the header that had to come in chunks")
	}
	h.Write(data)
	switch size := from.Offset + int64(len(data)); {
	case len(data) > MaxInline:
		return nil, s.wrong("%d bytes came with the header", len(data))
	case obj.Size != size:
		return nil, s.wrong("%d bytes came of %d", size, obj.Size)
	case obj.SHA256 != [32]byte(h.Sum(nil)):
		return nil, s.wrong("the bytes do not have their digest")
	}
	switch _, err := s.next(); {
	case err == nil:
		return nil, s.wrong("more came behind the whole object")
	case !errors.Is(err, io.EOF):
		return nil, err
	}
	s.close(nil)
	if from.Offset > 0 {
		return io.NopCloser(bytes.NewReader(data)), nil
	}
	return inlineBody{bytes.NewReader(data)}, nil
}
