package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"sync"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
)

// follow turns a fill into an answer: at once readable where req allows, else
// when the object is complete.
func (n *Node) follow(ctx context.Context, f *flight, req cache.Request, started bool) (*cache.Object, error) {
	f.enter()
	defer f.leave()
	for {
		s := f.state()
		source := cache.Inflight
		if started && s.source != 0 {
			source = s.source
		}
		switch {
		case s.err != nil:
			return nil, s.err
		case s.data != nil:
			obj := n.smallObject(req.Target, small{s.data, s.proof}, source)
			obj.Single = s.single
			return obj, nil
		case s.done:
			if kept, ok := s.pending.(*spool); ok && s.verified {
				if obj := n.passed(kept, req.Target, s.proof, source); obj != nil {
					return obj, nil
				}
			}
			obj, err := n.stored(ctx, req.Target, source)
			if errors.Is(err, errUnstored) {
				obj, err = n.evicted(f, req.Target, source, err)
			}
			if err == nil {
				obj.Single = s.single
			}
			return obj, err
		case s.pending != nil && !req.Whole:
			if obj := n.openFill(ctx, f, s, req.Target, source); obj != nil {
				return obj, nil
			}
		}
		select {
		case <-s.changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// errUnstored says that what a fill has got is not there: the disk did not take it,
// or had to make room at once.
var errUnstored = errors.New("not stored")

// stored opens what a fill has just stored. Absence here means that storing it
// did not succeed.
func (n *Node) stored(ctx context.Context, t target.Target, source cache.Source) (*cache.Object, error) {
	obj, err := n.held(ctx, t)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &cache.Error{Reason: cache.Busy, Text: "the cache could not store " + t.Describe() + "; see its log", Err: errUnstored}
	}
	if err != nil {
		return nil, err
	}
	obj.Source = source
	return obj, nil
}

// evicted answers with a zip that had to make room as soon as it was stored, from the file
// that the flight still has open, or returns err where it has none.
func (n *Node) evicted(f *flight, t target.Target, source cache.Source, err error) (*cache.Object, error) {
	entry, file := f.committed()
	if file == nil {
		return nil, err
	}
	if err := n.cfg.Purges.Check(t.String()); err != nil {
		return nil, err
	}
	f.enter()
	return &cache.Object{
		Size: entry.Size, SHA256: entry.SHA256, ModTime: entry.Stored, H1: entry.H1, Verified: entry.Verified,
		Private: n.private(t), Source: source, Body: &evictedFile{io.NewSectionReader(file, 0, entry.Size), sync.OnceFunc(f.leave)},
	}, nil
}

// evictedFile is a file that has no name any more.
type evictedFile struct {
	*io.SectionReader

	leave func()
}

// Close lets go of the file.
func (e *evictedFile) Close() error {
	e.leave()
	return nil
}

// openFill returns nil when the file cannot be opened: it was stored or given
// up in this moment, and which of the two the end of the flight tells.
func (n *Node) openFill(ctx context.Context, f *flight, s flightState, t target.Target, source cache.Source) *cache.Object {
	wait := func() func() { return atDisk(ctx) }
	done := wait()
	file, err := s.pending.Open()
	done()
	if err != nil {
		return nil
	}
	f.enter()
	return &cache.Object{
		Size: s.size, Private: n.private(t), Source: source,
		Body: &fillReader{flight: f, begun: s.begun, pending: s.pending, file: file, gone: ctx.Done(), atDisk: wait},
	}
}

// bytesObject is the answer for what is in memory.
func (n *Node) bytesObject(t target.Target, data []byte, source cache.Source) *cache.Object {
	return &cache.Object{
		Size: int64(len(data)), SHA256: sha256.Sum256(data), Private: n.private(t), Source: source,
		Body: bytesBody{bytes.NewReader(data)},
	}
}

// bytesBody is an object in memory; it can seek.
type bytesBody struct{ *bytes.Reader }

func (bytesBody) Close() error { return nil }

var errBegunAnew = errors.New("the source broke off, and what goes on has other bytes")

// fillReader reads a zip while it is being written, never beyond what the
// flight has released.
type fillReader struct {
	flight  *flight
	begun   int           // of the flight
	pending store.Pending // that file is of
	file    store.File
	gone    <-chan struct{} // closed when the caller has left
	atDisk  func() (done func())
	offset  int64
	closed  sync.Once
}

// wait returns how many bytes can be read now, 0 at the end.
func (r *fillReader) wait() (int64, error) {
	for {
		s := r.flight.state()
		if s.begun != r.begun {
			return 0, &cache.Error{Reason: cache.Broken, Text: errBegunAnew.Error(), Err: errBegunAnew}
		}
		here := s.pending == r.pending || r.move(s.pending)
		switch {
		case here && s.readable > r.offset:
			return s.readable - r.offset, nil
		case here && s.verified:
			return 0, nil
		case s.err != nil:
			return 0, s.err
		}
		select {
		case <-s.changed:
		case <-r.gone:
			return 0, context.Canceled
		}
	}
}

// move goes on in another file with the same bytes, if that is still there.
func (r *fillReader) move(to store.Pending) bool {
	defer r.atDisk()()
	file, err := to.Open()
	if err != nil {
		return false
	}
	_ = r.file.Close()
	r.file, r.pending = file, to
	return true
}

// Read yields what has been released; its errors are the fill's.
func (r *fillReader) Read(p []byte) (int, error) {
	available, err := r.wait()
	if err != nil {
		return 0, err
	}
	if available == 0 {
		return 0, io.EOF
	}
	defer r.atDisk()()
	n, err := r.file.ReadAt(p[:min(int64(len(p)), available)], r.offset)
	r.offset += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// WriteTo hands the bytes on as they come; from a file to a socket the kernel
// does the copying.
func (r *fillReader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		available, err := r.wait()
		if err != nil || available == 0 {
			return total, err
		}
		if _, err := r.file.Seek(r.offset, io.SeekStart); err != nil {
			return total, err
		}
		n, err := io.CopyN(w, r.file, available)
		r.offset += n
		total += n
		if err != nil {
			return total, err
		}
	}
}

// Proof implements an ability of cache.Object.Body.
func (r *fillReader) Proof() (h1 string, verified bool) {
	p := r.flight.state().proof
	return p.H1, p.Verified
}

// Close also says that nobody waits here any more.
func (r *fillReader) Close() error {
	r.closed.Do(r.flight.leave)
	return r.file.Close()
}
