package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of the quarantine.
const (
	maxQuarantineFiles = 1000
	maxQuarantineBytes = 1 << 30
)

// quarantine keeps bad copies for whoever wants to know what happened to them.
// File names begin with the time, so that their order is their age, and end with the
// object's name as far as it fits.
type quarantine struct {
	dir   string
	most  int64        // bytes, at most maxQuarantineBytes
	files atomic.Int64 // that are kept
	bytes atomic.Int64 // of these

	mu   sync.Mutex
	last int64 // time in the newest file's name, nanoseconds
}

// take moves the file at path in.
func (q *quarantine) take(path, name string) error { return q.add(path, name, os.Rename) }

// keep makes the file at path be in there, too.
func (q *quarantine) keep(path, name string) error { return q.add(path, name, os.Link) }

func (q *quarantine) add(path, name string, by func(from, to string) error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.last = max(q.last+1, time.Now().UnixNano())
	flat := strings.ReplaceAll(name, "/", "%2f")
	flat = flat[max(0, len(flat)-200):]
	to := filepath.Join(q.dir, fmt.Sprintf("%019d-%s", q.last, flat))
	if err := by(path, to); err != nil {
		return err
	}
	return q.trimLocked()
}

func (q *quarantine) trim() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.trimLocked()
}

func (q *quarantine) trimLocked() error {
	entries, err := os.ReadDir(q.dir)
	if err != nil {
		return err
	}
	files, bytes, kept, gone := 0, int64(0), int64(len(entries)), int64(0)
	defer func() {
		q.files.Store(kept)
		q.bytes.Store(bytes - gone)
	}()
	for _, e := range slices.Backward(entries) { // newest first
		info, err := e.Info()
		if err != nil {
			continue
		}
		files, bytes = files+1, bytes+info.Size()
		if files <= maxQuarantineFiles && bytes <= q.most {
			continue
		}
		if err := os.Remove(filepath.Join(q.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		kept, gone = kept-1, gone+info.Size()
	}
	return nil
}
