package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/verify"
)

// copyBuffer is the unit in which a zip goes to disk (perf.md 6.6).
const copyBuffer = 256 << 10

// zipFill is a zip on its way to the disk while followers read it. When who gives
// it breaks off, another one goes on: what is here already is compared, so
// that followers notice nothing, and bytes of two different zips never mix.
//
// When the disk takes no more, it goes on in memory (spool), so that followers notice
// that as little, unless stored says that nobody wants it then.
type zipFill struct {
	node     *Node
	target   target.Target
	flight   *flight
	store    Area // where it goes
	stored   bool
	replaces bool // what is here already

	pending  store.Pending    // nil before there is a supply
	file     store.File       // reads what pending has
	written  int64            // bytes of pending
	size     int64            // as told to followers, -1 while unknown
	download *verify.Download // hashes what arrives; nil while somebody else vouches for it
}

// fillZip streams a zip to disk, verifies it, and only then releases its last
// bytes.
func (n *Node) fillZip(ctx context.Context, t target.Target, f *flight) error {
	n.writes.Stir()
	z := &zipFill{node: n, target: t, flight: f, store: n.cfg.Store, size: -1}
	defer z.drop()
	return n.supplied(ctx, t, f, func(s *supply) error { return z.take(ctx, s) })
}

// drop ends what is pending; nothing happens to what is stored.
func (z *zipFill) drop() {
	z.unfollow()
	if z.pending != nil {
		_ = z.file.Close()
		z.pending.Abort()
	}
}

// take makes the zip from what s gives.
func (z *zipFill) take(ctx context.Context, s *supply) error {
	if err := z.expect(ctx, s.size); err != nil {
		return err
	}
	z.flight.from(s.source)
	if s.object == nil {
		z.follow(ctx)
	}
	if err := z.receive(ctx, s); err != nil {
		return err
	}
	p, err := z.prove(ctx, s)
	if err != nil {
		return err
	}
	if z.node.cfg.Copier == nil { // else no client has all of it before it counts as stored
		z.flight.verify(p)
	}
	z.commit(ctx, s, p)
	z.flight.verify(p)
	return nil
}

// expect makes ready for a zip of size bytes, -1 if unknown.
func (z *zipFill) expect(ctx context.Context, size int64) error {
	switch {
	case z.pending == nil, z.size >= 0 && size >= 0 && z.size != size:
		return z.begin(ctx, 0, size)
	case z.size < 0 && size >= 0:
		z.size = size
		z.flight.sized(size)
	}
	return nil
}

// begin starts a file with the first keep bytes of the one before. Who reads that
// one learns that it does not go on.
func (z *zipFill) begin(ctx context.Context, keep, size int64) error {
	pending, file, err := z.create(ctx, keep, size)
	if err != nil {
		return err
	}
	z.drop()
	z.pending, z.file, z.written, z.size = pending, file, keep, size
	z.flight.open(pending, keep, size)
	return nil
}

// create makes such a file, on the disk or, when that takes none, in memory.
func (z *zipFill) create(ctx context.Context, keep, size int64) (store.Pending, store.File, error) {
	if _, inMemory := z.pending.(*spool); !inMemory {
		pending, err := z.store.Create(z.target.String())
		if err == nil {
			err = pending.Reserve(max(0, size))
		}
		if err == nil {
			var file store.File
			if file, err = z.copyTo(pending, keep); err == nil {
				return pending, file, nil
			}
		}
		if pending != nil {
			pending.Abort()
		}
		if !z.mayPass(ctx, err) {
			return nil, nil, diskError(err)
		}
	}
	return z.createInMemory(ctx, keep, size)
}

func (z *zipFill) createInMemory(ctx context.Context, keep, size int64) (store.Pending, store.File, error) {
	s, err := newSpool(ctx, z.node.memory, max(keep, size))
	if err != nil {
		return nil, nil, spoolError(z.target, err)
	}
	file, err := z.copyTo(s, keep)
	if err != nil {
		s.Abort()
		return nil, nil, diskError(err)
	}
	return s, file, nil
}

// copyTo gives p the first keep bytes, and opens it.
func (z *zipFill) copyTo(p store.Pending, keep int64) (store.File, error) {
	if keep > 0 {
		if _, err := io.Copy(p, io.NewSectionReader(z.file, 0, keep)); err != nil {
			return nil, err
		}
	}
	return p.Open()
}

// mayPass tells whether the zip may be passed on though it cannot be stored.
func (z *zipFill) mayPass(ctx context.Context, err error) bool {
	z.node.notStored(ctx, z.target.String(), err)
	return !z.stored && !errors.Is(err, fs.ErrClosed) && !errors.Is(err, store.ErrPurged)
}

// move goes on in memory, as the disk has failed with err.
func (z *zipFill) move(ctx context.Context, err error) error {
	if _, inMemory := z.pending.(*spool); inMemory || !z.mayPass(ctx, err) {
		return spoolError(z.target, err)
	}
	pending, file, err := z.createInMemory(ctx, z.written, z.size)
	if err != nil {
		return err
	}
	z.flight.move(pending)
	follows := z.download != nil
	z.drop()
	z.pending, z.file = pending, file
	if follows {
		z.follow(ctx)
	}
	return nil
}

// follow hashes what is there and what comes, as nobody vouches for it.
func (z *zipFill) follow(ctx context.Context) {
	if z.download == nil {
		z.download = z.node.cfg.Verifier.Follow(ctx, z.file)
		z.download.Advance(z.written)
	}
}

func (z *zipFill) unfollow() {
	if z.download != nil {
		z.download.Close()
		z.download = nil
	}
}

// receive copies what s gives at its speed.
func (z *zipFill) receive(ctx context.Context, s *supply) error {
	buf := make([]byte, bufferFor(s.size))
	for at := int64(0); ; {
		got, err := s.body.Read(buf)
		if err := z.put(ctx, s, at, buf[:got]); err != nil {
			return err
		}
		at += int64(got)
		switch {
		case err == io.EOF && s.size >= 0 && at != s.size:
			return s.miscounted(at)
		case err == io.EOF && (at < z.written || (z.size >= 0 && at != z.size)):
			return z.begin(ctx, at, at)
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

func (s *supply) miscounted(got int64) error {
	return &cache.Error{Reason: cache.Broken, Source: s.name, Text: fmt.Sprintf("sent %d bytes where it had announced %d", got, s.size)}
}

// put takes the bytes of s at that place: those that are here are compared, the
// others appended.
func (z *zipFill) put(ctx context.Context, s *supply, at int64, b []byte) error {
	end := at + int64(len(b))
	if s.size >= 0 && end > s.size {
		return s.miscounted(end)
	}
	here := max(0, min(z.written, end)-at)
	tooMany := z.size >= 0 && end > z.size // who counts would take the first of them for all
	if tooMany || !z.has(at, b[:here]) {
		if err := z.begin(ctx, min(at, z.written), s.size); err != nil {
			return err
		}
		if s.object == nil {
			z.follow(ctx)
		}
		here = 0
	}
	if b = b[here:]; len(b) == 0 {
		return nil
	}
	if _, err := z.pending.Write(b); err != nil {
		if err := z.move(ctx, err); err != nil {
			return err
		}
		if _, err := z.pending.Write(b); err != nil {
			return spoolError(z.target, err)
		}
	}
	z.written += int64(len(b))
	z.flight.advance(z.written)
	if z.download != nil {
		z.download.Advance(z.written)
	}
	return nil
}

// has reports whether the file has these bytes at that place.
func (z *zipFill) has(at int64, want []byte) bool {
	if len(want) == 0 {
		return true
	}
	got := make([]byte, len(want))
	n, _ := z.file.ReadAt(got, at) // an error shows as too few bytes
	return n == len(want) && bytes.Equal(got, want)
}

// bufferFor returns how large a buffer serves a body of size bytes, -1 if unknown:
// most zips are smaller than copyBuffer, and the buffers of a burst are what the
// garbage collector then has to do with. The one byte more lets a single Read meet
// the end.
func bufferFor(size int64) int64 {
	if size < 0 {
		return copyBuffer
	}
	return min(size+1, copyBuffer)
}

// prove returns what is known of the zip's hash: what the node that gave it
// says, if it has verified it or nobody can, else what we find.
func (z *zipFill) prove(ctx context.Context, s *supply) (store.Proof, error) {
	n := z.node
	if s.object != nil {
		p := proofOf(s.object)
		if p.H1 != "" && (p.Verified || s.own != nil || n.database(z.target) == nil) {
			return p, nil
		}
	}
	z.follow(ctx)
	h1, err := z.download.Zip(z.target.Module(), z.written)
	z.unfollow()
	if err != nil {
		return store.Proof{}, err
	}
	return n.check(ctx, z.target, h1)
}

// commit stores the zip. A failure costs only the next one who asks: the
// followers have verified bytes.
func (z *zipFill) commit(ctx context.Context, s *supply, p store.Proof) {
	kept := z.keep()
	if s.own != nil {
		s.own.wait(ctx)
		z.flight.as(s.own)
		return
	}
	if kept || !z.replaces && z.node.isDuplicate(ctx, z.target) {
		return
	}
	entry, err := z.pending.Commit(p)
	if err != nil {
		z.node.notStored(ctx, z.target.String(), err)
		return
	}
	if !z.stored {
		z.flight.commit(entry, z.file)
		z.pending = nil
		z.node.secure(ctx, z.target, z.flight)
	}
}

// keep leaves a zip that is in memory to those who wait for all of it.
func (z *zipFill) keep() bool {
	s, inMemory := z.pending.(*spool)
	if inMemory {
		z.flight.keep(s)
		_ = z.file.Close()
		z.pending = nil
	}
	return inMemory
}
