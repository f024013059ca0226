package store

import (
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"
)

// hotPending is a copy being written to the hot area.
type hotPending struct {
	area *HotArea
	name string
	path string

	// The writer's.
	sum      *summer
	failed   error // what the first bad Write met
	reserved int64 // bytes of the budget

	mu   sync.Mutex
	file *os.File // nil after the end
	gone bool     // there is no file either
}

// Reserve implements Pending.
func (p *hotPending) Reserve(size int64) error {
	if p.current() == nil {
		return fs.ErrClosed
	}
	if p.failed == nil {
		p.failed = p.reserve(charge(size))
	}
	return p.failed
}

func (p *hotPending) reserve(total int64) error {
	more := total - p.reserved
	switch {
	case more <= 0:
		return nil
	case !p.area.makeRoom(total) || !p.area.disk.budget.reserveSpare(more):
		return fmt.Errorf("writing %s to the hot area: %w", p.name, ErrFull)
	}
	p.reserved = total
	return nil
}

// Write implements io.Writer.
func (p *hotPending) Write(b []byte) (int, error) {
	f := p.current()
	if f == nil {
		return 0, fs.ErrClosed
	}
	if p.failed == nil && charge(p.sum.size+int64(len(b))) > p.reserved {
		p.failed = p.reserve(charge(p.sum.size+int64(len(b))) + reserveStep)
	}
	if p.failed != nil {
		return 0, p.failed
	}
	n, err := f.Write(b)
	p.sum.add(b[:n])
	p.area.disk.budget.wrote(int64(n))
	if err != nil {
		p.failed = fmt.Errorf("writing %s to the hot area: %w", p.name, err)
	}
	return n, p.failed
}

func (p *hotPending) current() *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.file
}

// Open implements Pending.
func (p *hotPending) Open() (File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return nil, fs.ErrClosed
	}
	return openAs(p.path, nil)
}

// Abort implements Pending.
func (p *hotPending) Abort() {
	if f := p.end(true); f != nil {
		f.Close()         //nolint:errcheck // nobody wants the bytes
		os.Remove(p.path) //nolint:errcheck // else the next start does it
	}
}

// end gives back what was reserved and returns the file, once.
func (p *hotPending) end(gone bool) *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.file
	if f != nil {
		p.area.disk.budget.release(p.reserved, p.sum.size)
		p.file, p.gone = nil, gone
	}
	return f
}

// Commit implements Pending, but for durability: the area is emptied at the next
// start.
func (p *hotPending) Commit(proof Proof) (Entry, error) {
	f := p.current()
	if f == nil {
		return Entry{}, fs.ErrClosed
	}
	id, err := stat(f)
	r := p.sum.record(p.name, proof)
	switch {
	case p.failed != nil:
		err = p.failed
	case err == nil && id.size != r.Size:
		err = errSize
	}
	if err != nil {
		p.Abort()
		return Entry{}, fmt.Errorf("keeping %s: %w", p.name, err)
	}
	p.area.put(&hotObject{record: r, path: p.path, id: id, at: time.Now()})
	p.end(false)
	return r.Entry, f.Close()
}
