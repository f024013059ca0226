package peers

import (
	"slices"
	"sync"
	"time"
)

const (
	samples  = 64               // that p95 is taken of
	share    = 8                // 1/share of the mean is the newest sample
	halfLife = 10 * time.Second // of the mean while there are no samples
)

// latency is the times that a peer took of late. The zero latency knows nothing.
type latency struct {
	mu     sync.Mutex
	mean   time.Duration
	last   time.Time
	recent [samples]time.Duration // in the order of their coming, from next on
	next   int
	sorted []time.Duration
}

// add takes a sample.
func (l *latency) add(d time.Duration) {
	d = max(d, 1) // 0 is to mean that nothing is known
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sorted) == samples {
		at, _ := slices.BinarySearch(l.sorted, l.recent[l.next])
		l.sorted = slices.Delete(l.sorted, at, at+1)
	}
	l.recent[l.next] = d
	l.next = (l.next + 1) % samples
	at, _ := slices.BinarySearch(l.sorted, d)
	l.sorted = slices.Insert(l.sorted, at, d)
	if mean := l.faded(); mean > 0 {
		d = mean + (d-mean)/share
	}
	l.mean, l.last = max(d, 1), time.Now()
}

// faded returns the mean as it has become since the last sample. l.mu is held.
func (l *latency) faded() time.Duration {
	if l.mean == 0 {
		return 0
	}
	return max(l.mean>>min(time.Since(l.last)/halfLife, 62), 1)
}

// look returns mean, 95th percentile and the least of the samples, zeros without
// any.
func (l *latency) look() (mean, p95, least time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.sorted)
	if n == 0 {
		return 0, 0, 0
	}
	return l.faded(), l.sorted[(n*95+99)/100-1], l.sorted[0]
}
