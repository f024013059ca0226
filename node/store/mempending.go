package store

import (
	"errors"
	"io"
	"io/fs"
	"sync"
)

// memPending is an object being written to memory.
type memPending struct {
	mem  *Mem
	name string
	sum  *summer // the writer's
	data *memData

	// Under mem.mu.
	state pendingState
}

type pendingState uint8

const (
	writing pendingState = iota
	committed
	aborted
)

// Reserve implements Pending: memory has no limit.
func (p *memPending) Reserve(int64) error {
	p.mem.mu.RLock()
	defer p.mem.mu.RUnlock()
	if p.state != writing {
		return fs.ErrClosed
	}
	return nil
}

func (p *memPending) Write(b []byte) (int, error) {
	p.mem.mu.RLock()
	defer p.mem.mu.RUnlock()
	if p.state != writing {
		return 0, fs.ErrClosed
	}
	p.data.append(b)
	p.sum.add(b)
	return len(b), nil
}

func (p *memPending) Open() (File, error) {
	p.mem.mu.RLock()
	defer p.mem.mu.RUnlock()
	switch {
	case p.state == aborted:
		return nil, fs.ErrClosed
	case p.state == committed && p.mem.objects[p.name].data != p.data:
		return nil, notExist(p.name)
	}
	return p.data.open(), nil
}

func (p *memPending) Commit(proof Proof) (Entry, error) {
	p.mem.mu.Lock()
	defer p.mem.mu.Unlock()
	if p.state != writing {
		return Entry{}, fs.ErrClosed
	}
	if p.mem.refuses(p.name) {
		p.state = aborted
		return Entry{}, ErrPurged
	}
	p.state = committed
	entry := p.sum.record(p.name, proof).Entry
	p.mem.objects[p.name] = memObject{entry, p.data}
	return entry, nil
}

func (p *memPending) Abort() {
	p.mem.mu.Lock()
	defer p.mem.mu.Unlock()
	if p.state == writing {
		p.state = aborted
	}
}

// memData is bytes that grow.
type memData struct {
	mu    sync.RWMutex
	bytes []byte
}

func (d *memData) append(b []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bytes = append(d.bytes, b...)
}

func (d *memData) open() *memFile { return &memFile{data: d} }

func (d *memData) readAt(b []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	n := 0
	if off < int64(len(d.bytes)) {
		n = copy(b, d.bytes[off:])
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (d *memData) size() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return int64(len(d.bytes))
}

var errOffset = errors.New("negative offset")

// memFile reads memData as an *os.File reads a file.
type memFile struct {
	data *memData

	mu     sync.Mutex
	off    int64
	closed bool
}

func (f *memFile) Read(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, fs.ErrClosed
	}
	n, err := f.data.readAt(b, f.off)
	f.off += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	f.mu.Lock()
	closed := f.closed
	f.mu.Unlock()
	switch {
	case closed:
		return 0, fs.ErrClosed
	case off < 0:
		return 0, errOffset
	}
	return f.data.readAt(b, off)
}

func (f *memFile) Seek(off int64, whence int) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		off += f.off
	case io.SeekEnd:
		off += f.data.size()
	}
	switch {
	case f.closed:
		return 0, fs.ErrClosed
	case off < 0:
		return 0, errOffset
	}
	f.off = off
	return off, nil
}

func (f *memFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	f.closed = true
	return nil
}
