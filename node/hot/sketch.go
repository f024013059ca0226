package hot

import (
	"hash/maphash"
	"sync/atomic"
	"time"

	"golang.org/x/mod/module"
)

const (
	period = 2 * time.Second // over which is counted
	rows   = 3               // places of a version
	width  = 1 << 12         // places in a row; a power of two
)

// A place counts requests in its upper bits and bytes in the lower ones, so that
// both cost one addition.
const (
	requestShift = 44
	bytesMask    = 1<<requestShift - 1
)

// sketch counts requests and bytes of versions, of which it knows none by name: the
// least of a version's places is what it has, or a little more.
type sketch struct {
	start time.Time
	seed  maphash.Seed
	now   atomic.Int64 // number of the window that counts
	// windows are this one, the one before and the next one, which is empty.
	windows [3]window
}

type window struct {
	counts [rows][width]atomic.Uint64
	sent   atomic.Int64 // bytes of all, once the window is over
}

func newSketch(now time.Time) *sketch { return &sketch{start: now, seed: maphash.MakeSeed()} }

// use is how much a version was asked for within a period.
type use struct {
	requests, bytes float64 // within the last period
	share           float64 // of all bytes of the period before
}

// load returns how much that is of what makes a version hot.
func (u use) load() float64 {
	seconds := period.Seconds()
	load := u.requests / seconds / maxRate
	if u.requests/seconds >= minRate && u.bytes/seconds >= minBytes {
		load = max(load, u.share/maxShare)
	}
	return load
}

// add counts a request for a version, of size bytes.
func (s *sketch) add(key module.Version, size int64, at time.Time) use {
	passed := at.Sub(s.start)
	number := int64(passed / period)
	s.roll(number)
	now, before := &s.windows[number%3], &s.windows[(number+2)%3]
	one := 1<<requestShift | uint64(max(size, 0))&bytesMask
	h := maphash.Comparable(s.seed, key)
	place, step := uint32(h), uint32(h>>32)|1
	least, old := ^uint64(0), ^uint64(0)
	for row := range rows {
		at := place & (width - 1)
		least = min(least, now.counts[row][at].Add(one))
		old = min(old, before.counts[row][at].Load())
		place += step
	}
	rest := 1 - float64(passed%period)/float64(period) // of the window before that still counts
	u := use{
		requests: float64(least>>requestShift) + rest*float64(old>>requestShift),
		bytes:    float64(least&bytesMask) + rest*float64(old&bytesMask),
	}
	if all := before.sent.Load(); all > 0 {
		u.share = float64(old&bytesMask) / float64(all)
	}
	return u
}

// roll begins the window of that number, if it has not begun.
func (s *sketch) roll(number int64) {
	for was := s.now.Load(); was < number; was = s.now.Load() {
		if !s.now.CompareAndSwap(was, number) {
			continue
		}
		if number == was+1 {
			s.windows[was%3].close()
		} else { // nobody has asked for a whole period
			s.windows[number%3].clear()
			s.windows[(number+2)%3].clear()
		}
		s.windows[(number+1)%3].clear()
	}
}

// close sums up a window that is over. What is counted meanwhile may be missing.
func (w *window) close() {
	var sum int64
	for i := range w.counts[0] {
		sum += int64(w.counts[0][i].Load() & bytesMask)
	}
	w.sent.Store(sum)
}

func (w *window) clear() {
	w.sent.Store(0)
	for row := range w.counts {
		for i := range w.counts[row] {
			w.counts[row][i].Store(0)
		}
	}
}
