package purge

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/ringmod/ringmod/ring"
)

// ErrFull says that there are MaxTombstones already.
var ErrFull = errors.New("too many purges are known; each is kept for 30 days: purge what names have in common")

// Set is what has been purged. Its methods may be called at any time from any
// goroutine; those that look something up take no lock.
type Set struct {
	rules atomic.Pointer[rules]

	mu        sync.Mutex
	all       map[Name]*known
	seq       uint64        // of what was learnt last
	epoch     uint64        // the highest ever seen
	forgotten time.Time     // when the latest one was made that is not kept any more
	changed   chan struct{} // closed and replaced when something was learnt
}

// known is a tombstone and when it was learnt.
type known struct {
	Tombstone

	seq uint64
}

// NewSet returns an empty Set.
func NewSet() *Set {
	s := &Set{all: make(map[Name]*known), changed: make(chan struct{})}
	s.rules.Store(&rules{})
	return s
}

// Merge adds what wins over what is known and returns that. What is too old is left
// out. The error is ErrFull.
func (s *Set) Merge(all ...Tombstone) (news []Tombstone, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range all {
		old := s.all[t.Name]
		switch {
		case old != nil && !t.beats(old.Tombstone), ageOf(t.Made) >= keep:
			continue
		case old == nil && len(s.all) >= MaxTombstones:
			err = ErrFull
			continue
		}
		s.seq++
		s.all[t.Name] = &known{t, s.seq}
		s.epoch = max(s.epoch, t.Epoch)
		news = append(news, t)
	}
	if len(news) > 0 {
		s.publish()
	}
	return news, err
}

// Write adds tombstones for names, with an epoch above all others, and returns them.
func (s *Set) Write(names []Name, lifted bool, text string) ([]Tombstone, error) {
	s.mu.Lock()
	epoch := s.epoch + 1
	fresh := 0
	for _, n := range names {
		if s.all[n] == nil {
			fresh++
		}
	}
	full := len(s.all)+fresh > MaxTombstones
	s.mu.Unlock()
	switch {
	case full:
		return nil, ErrFull
	case epoch > ring.MaxEpoch:
		return nil, errEpoch
	}
	all := make([]Tombstone, len(names))
	for i, n := range names {
		all[i] = Tombstone{Name: n, Epoch: epoch, Lifted: lifted, Text: CleanText(text), Made: time.Now()}
	}
	_, err := s.Merge(all...)
	return all, err
}

// expire forgets what is too old, and tells whether anything was.
func (s *Set) expire() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.all)
	maps.DeleteFunc(s.all, func(_ Name, k *known) bool {
		old := ageOf(k.Made) >= keep
		if old && k.Made.After(s.forgotten) {
			s.forgotten = k.Made
		}
		return old
	})
	if len(s.all) == before {
		return false
	}
	s.publish()
	return true
}

// publish makes changes visible. s.mu is held.
func (s *Set) publish() {
	s.rules.Store(newRules(s.all))
	close(s.changed)
	s.changed = make(chan struct{})
}

// Changed returns a channel that is closed when something is learnt. To miss nothing,
// call it before you look.
func (s *Set) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Since returns what was learnt after a call that has returned seq, by epoch; all of it
// where seq is 0.
func (s *Set) Since(seq uint64) (all []Tombstone, now uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.all {
		if k.seq > seq {
			all = append(all, k.Tombstone)
		}
	}
	slices.SortFunc(all, func(a, b Tombstone) int { return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), a.Name.compare(b.Name)) })
	return all, s.seq
}

// Get returns the tombstone of a name.
func (s *Set) Get(n Name) (Tombstone, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.all[n]; k != nil {
		return k.Tombstone, true
	}
	return Tombstone{}, false
}

// Len returns how many there are, lifted ones included.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

// Digest is the same for sets that know the same, but for chance.
func (s *Set) Digest() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sum uint64
	for _, k := range s.all {
		sum += k.hash()
	}
	return sum
}

// hash covers what is merged.
func (t Tombstone) hash() uint64 {
	h := xxhash.New()
	flags := byte(0)
	if t.Prefix {
		flags |= 1
	}
	if t.Lifted {
		flags |= 2
	}
	_, _ = h.Write([]byte{flags})
	var epoch [8]byte
	for i := range epoch {
		epoch[i] = byte(t.Epoch >> (8 * i))
	}
	_, _ = h.Write(epoch[:])
	_, _ = h.WriteString(t.Name.Name)
	_, _ = h.Write([]byte{0})
	_, _ = h.WriteString(t.Text)
	return h.Sum64()
}
