// Package store keeps bytes at rest: objects that never change and small
// documents that do, both by name.
//
// A name is an escaped target (see internal/target). The store does not read
// it: it is a relative slash path without empty, "." or ".." elements. Any other
// name is refused with an error that is fs.ErrInvalid, so that no name can lead
// out of the store's folder. A name that ends in /@v/list is never an object,
// because Disk derives a file of that name from the document.
//
// What the store promises:
//
//   - An object is seen whole or not at all, also after kill -9 or a power cut
//     at any moment. When Commit has returned, the object outlives both.
//   - Bytes that Open hands out are those that were committed, as far as a
//     CRC-32C tells. Disk checks a file before it hands it out and remembers
//     that for a day, as long as the file's inode, size and change time stay
//     the same; a copy found bad is set aside and never served again.
//   - All methods may be called from many goroutines, and a reader keeps the
//     bytes it has opened when the name is replaced or removed.
//   - Disk keeps to a limit, by evicting what is worth least. A disk that is full or
//     failing goes on serving and says ErrReadOnly to who writes. One that cannot even
//     be read, or hangs, says ErrDead to everybody, at once.
//
// What it never does: fetch, retry, or tell whether the content is what a
// checksum database says. Whoever commits has verified; the only content check
// that reaches in here is DiskConfig.Inspect, for files whose entry was lost.
//
// There are two implementations, Disk and Mem; package storetest holds the
// tests that both pass.
package store

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"
)

// File is what readers get. Disk hands out an *os.File, so that an HTTP server
// can let the kernel send it.
type File interface {
	io.Reader
	io.ReaderAt
	io.Seeker
	io.Closer
}

type unusedKey struct{}

// Unused returns a context in which Open is no use of the object: for those who copy
// it to another node, or look whether it is here.
func Unused(ctx context.Context) context.Context { return context.WithValue(ctx, unusedKey{}, true) }

type progressKey struct{}

// WithProgress returns a context in which Open, where it has to read an object before it
// can return it, calls tell again and again while the disk gives its bytes.
func WithProgress(ctx context.Context, tell func()) context.Context {
	return context.WithValue(ctx, progressKey{}, tell)
}

// Progress returns what Open is to call when it has read something.
func Progress(ctx context.Context) (tell func()) {
	if tell, ok := ctx.Value(progressKey{}).(func()); ok {
		return tell
	}
	return func() {}
}

func isUnused(ctx context.Context) bool { return ctx.Value(unusedKey{}) != nil }

// Proof is what whoever commits has found out about the content.
type Proof struct {
	H1       string // "h1:" dirhash of a zip or go.mod; "" where there is none
	Verified bool   // a checksum database has confirmed it
}

// Entry describes an object.
type Entry struct {
	Name   string
	Size   int64 // bytes
	SHA256 [32]byte
	Proof
	Stored time.Time // when it was committed or adopted, local clock
}

// Object is an opened object. File stands at its start; the caller closes it.
type Object struct {
	Entry
	File File
}

// Store keeps objects.
type Store interface {
	// Open returns the object of that name. An absent one is fs.ErrNotExist; so
	// is a *CorruptError, which says that a copy was there and was bad. Any
	// other error says nothing about the object.
	Open(ctx context.Context, name string) (*Object, error)
	// Stat returns the entry of an object without reading the object, so that its
	// bytes may still turn out to be bad. An absent one is fs.ErrNotExist; so is
	// a file that Open would adopt.
	Stat(name string) (Entry, error)
	// Create begins an object. It becomes visible by Commit only; several may be
	// pending for one name, and the last Commit stays.
	Create(name string) (Pending, error)
	// Remove removes an object. Removing what is not there is no error.
	Remove(name string) error
	// Walk visits the entries whose name begins with prefix in the order of their
	// bytes, until visit returns false. No lock is held meanwhile: visit may use
	// the store, and changes made during the walk may or may not be seen. While a
	// Disk rebuilds a lost index, the walk is incomplete.
	Walk(ctx context.Context, prefix string, visit func(Entry) bool) error
}

// Pending is an object being written, by one writer. Any number of readers may
// follow it.
//
// The writer must end it with Commit or Abort. A Write that fails dooms it:
// Commit then returns the same error. Calls after the end return fs.ErrClosed.
type Pending interface {
	io.Writer
	// Reserve says that the object will have size bytes. Without it, room for them is
	// looked for as they come. An ErrFull dooms the object as a Write that fails does.
	Reserve(size int64) error
	// Open returns a reader of what has been written so far. It meets io.EOF at
	// that end and may go on once more is written; readers know by other means how
	// much is valid. It may be called by other goroutines, also after Commit while
	// the object is still in place (else fs.ErrNotExist), not after Abort.
	Open() (File, error)
	// Commit makes the object visible and durable, in place of an older one of
	// the name. After an error the pending object is gone and an older one may
	// be gone too.
	Commit(p Proof) (Entry, error)
	// Abort drops the object. It does nothing after Commit or another Abort.
	Abort()
}

// Document is a small mutable answer (list, latest, query, the head of a
// checksum database's tree) together with when and how it was got.
type Document struct {
	Body         []byte
	Fetched      time.Time // local clock; only good for an age
	ETag         string    // upstream's validator
	LastModified string    // upstream's validator
	Source       string    // who gave it
}

// Documents keeps documents. Both implementations of Store are Documents too;
// the names of objects and documents do not collide.
type Documents interface {
	// Document returns the document of that name, fs.ErrNotExist when absent. The
	// caller owns its Body.
	Document(name string) (Document, error)
	// PutDocument keeps d durably, in place of an older one of the name.
	PutDocument(name string, d Document) error
}

// CorruptError says that the copy of an object was bad and has been set aside.
// It is also fs.ErrNotExist: the object has to be got again.
type CorruptError struct {
	Name string
	Err  error // what was wrong with it
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("damaged copy of %s set aside: %v", e.Name, e.Err)
}

// Unwrap returns what was wrong with the copy.
func (e *CorruptError) Unwrap() error { return e.Err }

// Is makes a bad copy count as none.
func (e *CorruptError) Is(err error) bool { return err == fs.ErrNotExist }

// maxName is in bytes and well below bbolt's limit of a key.
const maxName = 4096

func checkName(op, name string) error {
	if !fs.ValidPath(name) || name == "." || len(name) > maxName || strings.ContainsAny(name, "\x00\\") {
		return &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return nil
}

// derived reports whether the file of that name is derived from a document, so
// that it cannot be an object's.
func derived(name string) bool { return strings.HasSuffix(name, "/@v/list") }

func notExist(name string) error {
	return &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}
