package store

import (
	"encoding/binary"
	"errors"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// use is how a version was used: what it is worth when room is needed.
//
// Each use at time t adds 2^(t/halfLife), so that one counts half as much as one
// that is a halfLife younger. heat is the logarithm of the sum: the order of two
// heats never changes by time alone, and needs no rewriting.
//
//	use = 1 last(varint, seconds) heat(8 bytes, little endian)
type use struct {
	last time.Time
	heat float64
}

const (
	useVersion = 1
	halfLife   = 24 * time.Hour
)

func heatAt(t time.Time) float64 { return float64(t.UnixMilli()) / float64(halfLife.Milliseconds()) }

func usedAt(t time.Time) use { return use{t, heatAt(t)} }

// and returns what u and v are together.
func (u use) and(v use) use {
	if v.last.After(u.last) {
		u.last = v.last
	}
	low, high := min(u.heat, v.heat), max(u.heat, v.heat)
	if !math.IsInf(low, -1) {
		high += math.Log1p(math.Exp2(low-high)) / math.Ln2
	}
	u.heat = high
	return u
}

// unused is the use that adds nothing.
func unused() use { return use{heat: math.Inf(-1)} }

func (u use) encode() []byte {
	b := binary.AppendVarint([]byte{useVersion}, u.last.Unix())
	return binary.LittleEndian.AppendUint64(b, math.Float64bits(u.heat))
}

func decodeUse(b []byte) (use, error) {
	d := decoder{rest: b}
	d.version(useVersion)
	seconds, n := binary.Varint(d.rest)
	d.skip(n)
	heat := d.bytes(8)
	if d.bad {
		return unused(), errCodec
	}
	u := use{time.Unix(seconds, 0), math.Float64frombits(binary.LittleEndian.Uint64(heat))}
	if math.IsNaN(u.heat) || math.IsInf(u.heat, 1) {
		return unused(), errCodec
	}
	return u, nil
}

// versionOf returns what the objects of one module version have in common: their name
// up to the dot before its kind. Anything else is for itself.
func versionOf(name string) string {
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 || !strings.Contains(name[:dot], "/@v/") {
		return name
	}
	switch name[dot:] {
	case ".info", ".mod", ".zip":
		return name[:dot+1]
	}
	return name
}

const (
	maxUses   = 1 << 16 // of versions, in memory
	flushUses = time.Minute
)

// uses are those that are not in the index yet.
type uses struct {
	flush func() // asks for it; must not block

	mu    sync.Mutex
	fresh map[string]use // by version
	busy  map[string]int // versions being written, and how often
}

// mark notes a use of name.
func (u *uses) mark(name string) {
	version := versionOf(name)
	now := usedAt(time.Now())
	u.mu.Lock()
	defer u.mu.Unlock()
	u.addLocked(version, now)
}

func (u *uses) addLocked(version string, more use) {
	if old, ok := u.fresh[version]; ok {
		u.fresh[version] = old.and(more)
		return
	}
	if len(u.fresh) >= maxUses {
		u.flush()
		return // a disk that takes nothing keeps no uses either
	}
	if u.fresh == nil {
		u.fresh = make(map[string]use)
	}
	u.fresh[version] = more
	if len(u.fresh) == maxUses/2 {
		u.flush()
	}
}

// take returns all and forgets them.
func (u *uses) take() map[string]use {
	u.mu.Lock()
	defer u.mu.Unlock()
	fresh := u.fresh
	u.fresh = nil
	return fresh
}

func (u *uses) restore(fresh map[string]use) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for version, each := range fresh {
		u.addLocked(version, each)
	}
}

// begin keeps the version of name from being evicted until end.
func (u *uses) begin(name string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.busy == nil {
		u.busy = make(map[string]int)
	}
	u.busy[versionOf(name)]++
}

func (u *uses) end(name string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	version := versionOf(name)
	if u.busy[version]--; u.busy[version] == 0 {
		delete(u.busy, version)
	}
}

// look returns what is not in the index yet of a version, and whether it is being
// written.
func (u *uses) look(version string) (fresh use, busy bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	fresh, ok := u.fresh[version]
	if !ok {
		fresh = unused()
	}
	return fresh, u.busy[version] > 0
}

// kept returns the use of a version that is in the index.
func (f *indexFile) kept(tx *bolt.Tx, version string) use {
	payload, err := unseal(bucketUses, version, tx.Bucket([]byte(bucketUses)).Get([]byte(version)))
	if err != nil {
		return unused()
	}
	u, err := decodeUse(payload)
	if err != nil {
		return unused()
	}
	return u
}

// flushUses writes what was used to the index. Only one goroutine does it.
func (d *Disk) flushUses() error {
	fresh := d.uses.take()
	if len(fresh) == 0 {
		return nil
	}
	writes, err := d.mergeUses(fresh)
	if err == nil {
		err = d.index.submit(writes...)
	}
	if err != nil {
		d.uses.restore(fresh)
	}
	return err
}

// mergeUses adds what the index has, and leaves out what it has no object of.
func (d *Disk) mergeUses(fresh map[string]use) (writes []*indexWrite, err error) {
	err = d.index.view(func(f *indexFile, tx *bolt.Tx) error {
		writes = nil
		objects, uses := tx.Bucket([]byte(bucketObjects)), tx.Bucket([]byte(bucketUses))
		if objects == nil || uses == nil {
			return &brokenError{errTree}
		}
		if err := errors.Join(f.tree(objects).checkAll(), f.tree(uses).checkAll()); err != nil {
			return err
		}
		c := objects.Cursor()
		for _, version := range slices.Sorted(maps.Keys(fresh)) { // neighbours share a page
			if k, _ := c.Seek([]byte(version)); k == nil || versionOf(string(k)) != version {
				continue
			}
			value := seal(bucketUses, version, f.kept(tx, version).and(fresh[version]).encode())
			writes = append(writes, &indexWrite{bucket: bucketUses, name: version, value: value})
		}
		return nil
	})
	return writes, err
}
