package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sort"
)

// brokenError says that the index cannot be used any more.
type brokenError struct{ cause any }

func (e *brokenError) Error() string { return fmt.Sprintf("index is broken: %v", e.cause) }

var errTree = errors.New("a page of the tree is not where it should be")

// guard runs fn, which uses bbolt. bbolt trusts its file, which is mapped into
// memory: with a damaged one it panics or makes the program fault. Both come
// back as a *brokenError. fn must not call foreign code, whose panics would be
// swallowed.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if cause := recover(); cause != nil {
			err = &brokenError{cause}
		}
	}()
	return fn()
}

// tree reads the branch pages of one bucket past bbolt. A damaged branch page that
// points at one above it sends bbolt into an endless recursion, and Go ends a
// process that is out of stack; so the way down is walked here first.
//
// Page (bbolt's internal/common/page.go), little endian:
//
//	id(8) flags(2) count(2) overflow(4), then for a branch page per child
//	key offset from here(4) key size(4) child(8)
type tree struct {
	file     io.ReaderAt
	pageSize int
	root     uint64 // 0 where the bucket is stored in its parent's page
}

const (
	pageHead    = 16
	branchFlag  = 1
	branchSize  = 16
	maxDepth    = 32      // 4 KiB pages with keys of maxName bytes reach 2^31 objects
	maxOverflow = 1 << 10 // pages
)

// checkPath returns an error when the search for key does not end.
func (t *tree) checkPath(key []byte) error {
	for id, depth := t.root, 0; id != 0; depth++ {
		p, err := t.branch(id)
		if err != nil || p == nil {
			return err
		}
		if depth == maxDepth {
			return &brokenError{errTree}
		}
		id = p.child(p.search(key))
	}
	return nil
}

// checkAll returns an error when a walk over the bucket does not end: when a
// branch page is the child of more than its parent. It reads the branch pages, about
// one page in a hundred.
func (t *tree) checkAll() error { return t.check(nil, nil) }

// check is checkAll for a walk that begins at key from and ends behind key to; nil is
// either end.
func (t *tree) check(from, to []byte) error {
	if t.root == 0 {
		return nil
	}
	branches, children := map[uint64]bool{}, map[uint64]bool{}
	level := []uint64{t.root}
	for depth := 0; len(level) > 0; depth++ {
		var next []uint64
		for _, id := range level {
			p, err := t.branch(id)
			if err != nil {
				return err
			}
			if p == nil {
				break // the leaves of a tree are all at one level
			}
			branches[id] = true
			first, last := p.span(from, to)
			for i := first; i <= last; i++ {
				if children[p.child(i)] || depth == maxDepth {
					return &brokenError{errTree}
				}
				children[p.child(i)] = true
				next = append(next, p.child(i))
			}
		}
		level = next
	}
	if children[t.root] {
		return &brokenError{errTree}
	}
	return nil
}

// branch reads a branch page. A page of another kind is nil.
func (t *tree) branch(id uint64) (branchPage, error) {
	p := make(branchPage, t.pageSize)
	if err := t.read(p, id); err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint16(p[8:])&branchFlag == 0 {
		return nil, nil
	}
	overflow := binary.LittleEndian.Uint32(p[12:])
	if overflow > maxOverflow || p.count() == 0 {
		return nil, &brokenError{errTree}
	}
	if overflow > 0 {
		p = make(branchPage, t.pageSize*int(overflow+1))
		if err := t.read(p, id); err != nil {
			return nil, err
		}
	}
	if pageHead+branchSize*p.count() > len(p) {
		return nil, &brokenError{errTree}
	}
	return p, nil
}

func (t *tree) read(p branchPage, id uint64) error {
	if id > 1<<40 {
		return &brokenError{errTree}
	}
	if _, err := t.file.ReadAt(p, int64(id)*int64(t.pageSize)); err != nil {
		return &brokenError{err}
	}
	return nil
}

type branchPage []byte

func (p branchPage) count() int { return int(binary.LittleEndian.Uint16(p[10:])) }

func (p branchPage) element(i int) []byte { return p[pageHead+branchSize*i:] }

func (p branchPage) child(i int) uint64 { return binary.LittleEndian.Uint64(p.element(i)[8:]) }

// key returns the first key below child i, nil where it lies outside the page.
func (p branchPage) key(i int) []byte {
	e := p.element(i)
	from := uint64(binary.LittleEndian.Uint32(e))
	to := from + uint64(binary.LittleEndian.Uint32(e[4:]))
	if to > uint64(len(e)) {
		return nil
	}
	return e[from:to]
}

// span returns the children that a walk between two keys comes by; it may look at the
// one behind the last.
func (p branchPage) span(from, to []byte) (first, last int) {
	last = p.count() - 1
	if from != nil {
		first = p.search(from)
	}
	if to != nil {
		last = min(last, p.search(to)+1)
	}
	return first, last
}

// search returns the child that bbolt looks for key in.
func (p branchPage) search(key []byte) int {
	i := sort.Search(p.count(), func(i int) bool { return bytes.Compare(p.key(i), key) >= 0 })
	if i > 0 && (i == p.count() || !bytes.Equal(p.key(i), key)) {
		i--
	}
	return i
}
