package verify

import (
	"errors"
	"io"
	"math"
)

const (
	// windowSize is how much of a zip is read at once: most files of a module
	// take 3 KB of it.
	windowSize = 256 << 10
	// descriptorSize is what checkDescriptor reads behind an entry's data.
	descriptorSize = 8
)

// window is a part of a zip in memory. It reads elsewhere too, only slower.
type window struct {
	src  io.ReaderAt
	at   int64
	data []byte // its capacity is kept
}

// load reads the part that holds the data of all items, if it is not too large. They
// are in the order of their places.
func (w *window) load(src *source, items []*item) error {
	w.src, w.at, w.data = src, items[0].at, w.data[:0]
	last := items[len(items)-1]
	if w.at < 0 || !last.fits(w.at) {
		return nil
	}
	if w.data == nil {
		w.data = make([]byte, 0, windowSize)
	}
	// Data that overlap may end behind the window's end, and are read elsewhere.
	end := min(last.end(), src.size)
	n, err := src.ReadAt(w.data[:max(0, end-w.at)], w.at)
	w.data = w.data[:n]
	if errors.Is(err, io.EOF) { // who needs more meets it again
		err = nil
	}
	return err
}

// slice returns size bytes from at on, nil if the window does not hold them.
func (w *window) slice(at int64, size uint64) []byte {
	from := at - w.at
	if from < 0 || from > int64(len(w.data)) || size > uint64(int64(len(w.data))-from) {
		return nil
	}
	return w.data[from:][:size]
}

// ReadAt implements io.ReaderAt.
func (w *window) ReadAt(p []byte, off int64) (int, error) {
	if data := w.slice(off, uint64(len(p))); data != nil {
		return copy(p, data), nil
	}
	return w.src.ReadAt(p, off)
}

// end returns the end of the data and descriptor of it, math.MaxInt64 if there can
// be no such place.
func (it *item) end() int64 {
	const most = math.MaxInt64 - descriptorSize
	if it.CompressedSize64 > uint64(most-max(0, it.at)) { //nolint:gosec // at is below most
		return math.MaxInt64
	}
	return it.at + int64(it.CompressedSize64) + descriptorSize //nolint:gosec // see above
}

// fits reports whether a window that begins at from may hold it.
func (it *item) fits(from int64) bool { return from >= 0 && it.end()-from <= windowSize }
