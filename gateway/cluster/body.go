package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"sync"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
)

// maxTakeovers is how often somebody else is asked to go on at one byte. They wait
// a little from the second on.
const maxTakeovers = 4

// errPrefix says that what another node sends is not what was begun.
var errPrefix = errors.New("another node has other bytes than those handed out already")

// body is an object as one node after another sends it. One goroutine reads it,
// any may close it.
type body struct {
	c    *Cluster
	q    question
	size int64 // -1 while unknown

	// On behalf of the caller, until he leaves.
	find  func(question) (reply, error)
	pause func() error

	offset  int64 // the next byte to hand out
	begun   int64 // where the last takeover began
	attempt int   // of how many at that byte

	mu     sync.Mutex
	src    reply
	closed bool
}

// object returns r as an answer to q. ctx bounds its body.
func (c *Cluster) object(ctx context.Context, q question, r reply) *cache.Object {
	obj := *r.Object
	if r.node.far && obj.Source != cache.Inflight && obj.Source != cache.Upstream {
		obj.Source = cache.Region
	}
	if content, held := r.Body.(io.ReadSeeker); held && obj.Size <= maxHeld {
		obj.Body = &heldBody{content, r.close}
		return &obj
	}
	b := c.body(ctx, q, obj.Size)
	b.src = r
	obj.Body = b
	if q.req.Whole && obj.Size >= 0 && obj.SHA256 != [32]byte{} {
		obj.Body = &seekBody{b: b, digest: obj.SHA256}
	}
	return &obj
}

func (c *Cluster) body(ctx context.Context, q question, size int64) *body {
	return &body{
		c: c, q: question{req: q.req, slow: q.slow}, size: size, begun: -1,
		find:  func(q question) (reply, error) { return c.find(ctx, q) },
		pause: func() error { return sleep(ctx, jitter()) },
	}
}

// position is where a body goes on: with resume where the digest is known, else
// behind as many bytes with that SHA-256.
type position struct {
	offset int64
	resume *wire.Resume
	sum    [32]byte
}

// rest returns what comes behind at. ctx bounds it.
func (c *Cluster) rest(ctx context.Context, q question, size int64, at position) (io.ReadCloser, error) {
	b := c.body(ctx, q, size)
	b.offset = at.offset
	q.resume, q.fill = at.resume, at.resume == nil
	if _, err := b.takeover(at, q); err != nil {
		return nil, err
	}
	return b, nil
}

// Read implements io.Reader. At the first byte of another node's it looks no
// different than between two others.
func (b *body) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		src, err := b.source()
		if err != nil {
			return 0, err
		}
		n, err := src.Body.Read(p)
		b.offset += int64(n)
		switch {
		case n > 0:
			return n, nil
		case err == nil:
		case errors.Is(err, io.EOF) && b.size >= 0 && b.offset != b.size:
			return 0, errLength
		case errors.Is(err, io.EOF):
			return 0, io.EOF
		default:
			if err := b.goOn(src, err); err != nil {
				return 0, err
			}
		}
	}
}

// copySize is how many bytes WriteTo takes at a time: half a chunk costs no more
// than a whole one, and 64 of them do not weigh as much.
const copySize = wire.ChunkSize / 2

// WriteTo implements io.WriterTo.
func (b *body) WriteTo(w io.Writer) (int64, error) {
	buf := b.c.cfg.Pool.Get(copySize)
	defer b.c.cfg.Pool.Put(buf)
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

// Close gives up what has not come.
func (b *body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed && b.src.Object != nil {
		b.src.close()
	}
	b.closed = true
	return nil
}

func (b *body) source() (reply, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return reply{}, fs.ErrClosed
	}
	return b.src, nil
}

// swap makes r the source.
func (b *body) swap(r reply) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		r.close()
		return fs.ErrClosed
	}
	if b.src.Object != nil {
		b.src.close()
	}
	b.src = r
	return nil
}

// goOn finds another node for what is missing after src has failed with cause.
// Where that is not possible it returns cause, as Get's errors are.
func (b *body) goOn(src reply, cause error) error {
	at, ok := positionOf(src)
	if !ok || !b.q.req.Target.Kind.Immutable() {
		return asError(cause)
	}
	var to string
	var err error
	switch {
	case goesOn(cause, at.resume != nil):
		to, err = b.askOthers(at, src.node.id, cause)
	case at.resume == nil && spoken(cause):
		to, err = b.takeover(at, question{req: b.q.req, avoid: src.node.id, copies: true})
	default:
		return asError(cause)
	}
	b.c.metrics.resumed(err)
	log := b.c.log.With("from", src.node.id, "offset", b.offset, "key", b.q.req.Target.String())
	if err == nil {
		log.Info("a stream goes on", "to", to, "err", cause)
		return nil
	}
	log.Warn("a stream was lost", "cause", cause.Error(), "err", err)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return asError(cause)
}

// askOthers takes over from one node after the other, and from the one that has
// failed last.
func (b *body) askOthers(at position, from string, cause error) (to string, err error) {
	if b.begun != b.offset {
		b.begun, b.attempt = b.offset, 0
	}
	for err = cause; err != nil && b.attempt < maxTakeovers && goesOn(err, at.resume != nil); {
		if b.attempt++; b.attempt > 1 && b.pause() != nil {
			break
		}
		to, err = b.takeover(at, question{req: b.q.req, avoid: from, resume: at.resume, fill: at.resume == nil})
	}
	return to, err
}

// positionOf tells where src stands.
func positionOf(src reply) (position, bool) {
	from, ok := src.Body.(interface {
		Resume() (wire.Resume, bool)
		Prefix() (n int64, sum [32]byte)
	})
	if !ok {
		return position{}, false
	}
	if r, known := from.Resume(); known {
		return position{offset: r.Offset, resume: &r}, true
	}
	n, sum := from.Prefix()
	return position{offset: n, sum: sum}, true
}

// takeover asks q for what comes behind at, and returns which node has it.
func (b *body) takeover(at position, q question) (string, error) {
	q.slow = b.q.slow
	r, err := b.find(q)
	if err != nil {
		return "", err
	}
	if b.size >= 0 && r.Size >= 0 && r.Size != b.size {
		r.close()
		return "", errPrefix
	}
	if at.resume == nil {
		if err := skip(r.Body, at); err != nil {
			r.close()
			return "", err
		}
	}
	return r.node.id, b.swap(r)
}

// skip reads what was handed out already and compares it.
func skip(from io.Reader, at position) error {
	sum := sha256.New()
	switch _, err := io.CopyN(sum, from, at.offset); {
	case errors.Is(err, io.EOF):
		return errPrefix
	case err != nil:
		return err
	case at.offset > 0 && [32]byte(sum.Sum(nil)) != at.sum:
		return errPrefix
	}
	return nil
}

// seekBody reads anywhere in an object of known size and digest. What is read is
// asked for when it is read.
type seekBody struct {
	b      *body
	digest [32]byte
	next   int64 // the next byte to read
}

// Read implements io.Reader.
func (s *seekBody) Read(p []byte) (int, error) {
	if s.next >= s.b.size {
		return 0, io.EOF
	}
	if s.next != s.b.offset {
		at := position{offset: s.next, resume: &wire.Resume{Offset: s.next, SHA256: s.digest}}
		if _, err := s.b.takeover(at, question{req: s.b.q.req, resume: at.resume}); err != nil {
			return 0, err
		}
		s.b.offset = s.next
	}
	n, err := s.b.Read(p)
	s.next += int64(n)
	return n, err
}

// Seek implements io.Seeker.
func (s *seekBody) Seek(offset int64, whence int) (int64, error) {
	next, err := seek(offset, whence, s.next, s.b.size)
	if err == nil {
		s.next = next
	}
	return next, err
}

// Close gives up what has not come.
func (s *seekBody) Close() error { return s.b.Close() }

// seek returns what an io.Seeker at position at of size bytes seeks to.
func seek(offset int64, whence int, at, size int64) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += at
	case io.SeekEnd:
		offset += size
	}
	if offset < 0 {
		return at, fs.ErrInvalid
	}
	return offset, nil
}

// heldBody is an object in memory; it can seek.
type heldBody struct {
	io.ReadSeeker

	done func() // nil = nothing is left to do
}

func newHeldBody(data []byte) *heldBody { return &heldBody{ReadSeeker: bytes.NewReader(data)} }

// Close lets go of what brought the object.
func (b *heldBody) Close() error {
	if b.done != nil {
		b.done()
	}
	return nil
}

// released is a body that somebody is told of when it is closed.
type released struct {
	io.ReadCloser

	done func()
}

// WriteTo implements io.WriterTo.
func (b *released) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, b.ReadCloser) }

// Close gives up what has not come.
func (b *released) Close() error {
	defer b.done()
	return b.ReadCloser.Close()
}
