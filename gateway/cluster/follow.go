package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
)

// spool is a zip on its way through a file. It goes from nothing to obj (the
// header is there) to done.
type spool struct {
	key    spoolKey
	cancel context.CancelFunc

	// Under spools.mu.
	clients  int
	running  bool // it is being written
	shared   bool // it may not be passed through: several have asked for it
	passed   bool // its only client reads it himself
	complete bool
	reserved int64
	expiry   *time.Timer // while it is kept

	file *os.File // set before obj

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change
	obj     *cache.Object // without a body
	data    []byte        // a small one, in place of file
	stream  io.ReadCloser // of what is passed through, in place of file
	left    bool          // its only client has not waited for it
	written int64
	done    bool  // nothing more comes: it is whole, or err
	err     error // that of the source, errUnspooled or errSpool
}

// spoolState is what a client sees at one moment.
type spoolState struct {
	obj      *cache.Object
	data     []byte
	stream   io.ReadCloser
	readable int64 // bytes of file
	done     bool
	err      error
	changed  <-chan struct{} // closed when the state is no longer this one
}

func (s *spool) state() spoolState {
	s.mu.Lock()
	defer s.mu.Unlock()
	readable := s.written
	if whole := s.done && s.err == nil; !whole && s.obj != nil && readable == s.obj.Size { // nobody may have all of what may not be right
		readable--
	}
	return spoolState{s.obj, s.data, s.stream, readable, s.done, s.err, s.changed}
}

// change applies a change and wakes who follows.
func (s *spool) change(apply func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	apply()
	close(s.changed)
	s.changed = make(chan struct{})
}

// passOn gives the only client the stream, unless he has left.
func (s *spool) passOn(obj *cache.Object, stream io.ReadCloser) bool {
	there := false
	s.change(func() {
		if there = !s.left; there {
			s.obj, s.stream, s.done = obj, stream, true
		}
	})
	return there
}

// abandon is for who has not waited, or not noticed that he need not wait any more.
func (s *spool) abandon() {
	var stream io.ReadCloser
	s.change(func() { s.left, stream = true, s.stream })
	if stream != nil {
		stream.Close()
	}
}

// await waits until the state is what the caller wants, or an error.
func (s *spool) await(ctx context.Context, wanted func(spoolState) bool) (spoolState, error) {
	for {
		state := s.state()
		switch {
		case wanted(state) && (!state.done || state.err == nil):
			return state, nil
		case state.err != nil:
			return state, state.err
		}
		select {
		case <-state.changed:
		case <-ctx.Done():
			return state, ctx.Err()
		}
	}
}

// spoolFile is a spool's file as one client reads it.
type spoolFile interface {
	io.ReadSeeker
	io.ReaderAt
	io.Closer
}

// reopen returns file with an offset of its own. Where that can be another
// *os.File, the kernel can copy from it to a socket.
func reopen(file *os.File) spoolFile {
	if own, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", file.Fd())); err == nil {
		return own
	}
	return section{io.NewSectionReader(file, 0, math.MaxInt64)}
}

type section struct{ *io.SectionReader }

func (section) Close() error { return nil }

// follower reads a spool while it is being written.
type follower struct {
	spool  *spool
	file   spoolFile
	gone   <-chan struct{} // closed when the client has left
	rest   func(size int64, at position) (io.ReadCloser, error)
	leave  func()
	offset int64

	own io.ReadCloser // the rest, once the spool has failed
}

// wait returns how many bytes can be read now, 0 at the end. It returns errSpool
// when the rest is to be had from own.
func (f *follower) wait() (int64, error) {
	for {
		state := f.spool.state()
		switch {
		case state.readable > f.offset:
			return state.readable - f.offset, nil
		case errors.Is(state.err, errSpool):
			return 0, f.part(state.obj)
		case state.done:
			return 0, state.err
		}
		select {
		case <-state.changed:
		case <-f.gone:
			return 0, context.Canceled
		}
	}
}

// part goes on without the spool, which holds no more than what was read.
func (f *follower) part(obj *cache.Object) error {
	at := position{offset: f.offset}
	if obj.SHA256 != [32]byte{} {
		at.resume = &wire.Resume{Offset: f.offset, SHA256: obj.SHA256}
	} else {
		sum := sha256.New()
		if _, err := io.Copy(sum, io.NewSectionReader(f.file, 0, f.offset)); err != nil {
			return err
		}
		at.sum = [32]byte(sum.Sum(nil))
	}
	var err error
	if f.own, err = f.rest(obj.Size, at); err != nil {
		return err
	}
	return errSpool
}

// Read implements io.Reader. Its errors are those of the spool's source.
func (f *follower) Read(p []byte) (int, error) {
	if f.own != nil {
		return f.own.Read(p)
	}
	available, err := f.wait()
	switch {
	case errors.Is(err, errSpool):
		return f.own.Read(p)
	case err != nil:
		return 0, err
	case available == 0:
		return 0, io.EOF
	}
	n, err := f.file.ReadAt(p[:min(int64(len(p)), available)], f.offset)
	f.offset += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// WriteTo hands the bytes on as they come; from a file to a socket the kernel
// does the copying.
func (f *follower) WriteTo(w io.Writer) (int64, error) {
	if _, err := f.file.Seek(f.offset, io.SeekStart); err != nil {
		return 0, err
	}
	var total int64
	for f.own == nil {
		available, err := f.wait()
		if errors.Is(err, errSpool) {
			break
		}
		if err != nil || available == 0 {
			return total, err
		}
		n, err := io.CopyN(w, f.file, available)
		f.offset += n
		total += n
		if err != nil {
			return total, err
		}
	}
	n, err := io.Copy(w, f.own)
	return total + n, err
}

// Close lets the spool go.
func (f *follower) Close() error {
	if f.own != nil {
		f.own.Close()
	}
	err := f.file.Close()
	f.leave()
	return err
}

// wholeFollower reads a spool that is complete.
type wholeFollower struct {
	*follower

	size int64
}

// Seek implements io.Seeker.
func (f *wholeFollower) Seek(offset int64, whence int) (int64, error) {
	next, err := seek(offset, whence, f.offset, f.size)
	if err == nil {
		f.offset = next
	}
	return next, err
}
