package ring

import (
	"maps"
	"slices"
	"strings"
)

// Members is the member table: one entry for each id that was ever heard of and
// not dropped. Merging is commutative, associative and idempotent, so processes
// that exchange tables in any order, any number of times, end up with the same
// one. The zero value is an empty table. It is not safe for concurrent use.
type Members struct {
	entries map[string]Member
	seq     uint64
}

// Put merges one entry: it stays if it is new or takes precedence over the one
// with its id. Precedence is the higher epoch, then the higher State, then an
// arbitrary but fixed order. Put tells whether the table changed, and returns
// the error of Member.Check, with the table as it was, for an entry out of bounds.
// A member that sees its own entry change under it was forgotten, or lives twice:
// to be back it writes its entry with NextEpoch.
func (t *Members) Put(m Member) (bool, error) {
	if err := m.Check(); err != nil {
		return false, err
	}
	return t.put(m), nil
}

func (t *Members) put(m Member) bool {
	t.seq = max(t.seq, m.Epoch)
	if old, ok := t.entries[m.ID]; ok && m.compare(old) <= 0 {
		return false
	}
	if t.entries == nil {
		t.entries = make(map[string]Member)
	}
	t.entries[m.ID] = m
	return true
}

// Merge merges all of o into t and tells whether an entry changed.
func (t *Members) Merge(o *Members) bool {
	changed := false
	for _, m := range o.entries {
		changed = t.put(m) || changed
	}
	t.seq = max(t.seq, o.seq)
	return changed
}

// Observe notes an epoch that was seen elsewhere, such as the one a process kept
// on disk from its last life. Epochs above MaxEpoch are ignored.
func (t *Members) Observe(epoch uint64) {
	if epoch <= MaxEpoch {
		t.seq = max(t.seq, epoch)
	}
}

// Drop removes the entry of id if it is still the tombstone of this epoch, and
// tells whether it did. When a tombstone is old enough is for a caller with a
// clock to say; dropped too early, an old entry that somebody still holds comes
// back. The sequence number does not fall.
func (t *Members) Drop(id string, epoch uint64) bool {
	m, ok := t.entries[id]
	if !ok || m.Epoch != epoch || !m.State.IsTombstone() {
		return false
	}
	delete(t.entries, id)
	return true
}

// Get returns the entry of id.
func (t *Members) Get(id string) (Member, bool) {
	m, ok := t.entries[id]
	return m, ok
}

// Len returns the number of entries, tombstones included.
func (t *Members) Len() int { return len(t.entries) }

// All returns a copy of all entries, tombstones included, sorted by id.
func (t *Members) All() []Member {
	return slices.SortedFunc(maps.Values(t.entries), func(a, b Member) int {
		return strings.Compare(a.ID, b.ID)
	})
}

// Clone returns an independent copy, to build a View from without a lock.
func (t *Members) Clone() *Members {
	return &Members{entries: maps.Clone(t.entries), seq: t.seq}
}

// Seq returns the view sequence number: the highest epoch ever seen. It never
// falls. Of two processes with different digests the one with the lower number
// is probably behind.
func (t *Members) Seq() uint64 { return t.seq }

// NextEpoch returns the epoch for an entry that is about to be written: higher
// than all that were ever seen here.
func (t *Members) NextEpoch() uint64 { return t.seq + 1 }
