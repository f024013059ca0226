package store

import (
	"context"
	"math"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Finding is what upstream says of an object that is held, when that is something else
// than it said before.
type Finding struct {
	Name string // of the object
	// New is what it names now, Old what it named when the object came: commits. Where
	// there is no New it is gone.
	Old, New   string
	Repository string // URL; "" = not told
	Ref        string // in the repository; "" = not told
	Source     string // who said so
	Text       string // in which words
	First      time.Time
	Looked     time.Time // when upstream was asked last
	Closed     time.Time // when it said again what it had said before; zero: it has not
}

// IsOpen reports whether upstream still says something else.
func (f *Finding) IsOpen() bool { return f.Closed.IsZero() }

// maxFindingText is how much is kept of each of a finding's strings, in bytes.
const maxFindingText = 512

// A finding is kept as
//
//	finding = 1 old new repository ref source text (strings) first looked closed(times)
//
// closed of an open one is the zero time of the wire: 1970.
const findingVersion = 1

func (f *Finding) encode() []byte {
	b := []byte{findingVersion}
	for _, s := range f.strings() {
		b = appendString(b, (*s)[:min(len(*s), maxFindingText)])
	}
	closed := f.Closed
	if closed.IsZero() {
		closed = time.Unix(0, 0)
	}
	return appendTime(appendTime(appendTime(b, f.First), f.Looked), closed)
}

func (f *Finding) strings() []*string {
	return []*string{&f.Old, &f.New, &f.Repository, &f.Ref, &f.Source, &f.Text}
}

func decodeFinding(name string, b []byte) (Finding, error) {
	d, f := decoder{rest: b}, Finding{Name: name}
	d.version(findingVersion)
	for _, s := range f.strings() {
		*s = d.string()
	}
	if f.First, f.Looked, f.Closed = d.time(), d.time(), d.time(); d.bad {
		return Finding{}, errCodec
	}
	if f.Closed.Unix() == 0 {
		f.Closed = time.Time{}
	}
	return f, nil
}

// Unaudited returns the objects that are wanted and whose last Audited, or when they were
// stored, lies before a time: at most most of them, the longest ago first. It reads the
// whole index, in pages.
func (d *Disk) Unaudited(ctx context.Context, before time.Time, most int, wanted func(name string) bool) (Backlog, error) {
	return d.backlog(ctx, bucketAudits, before, most, wanted)
}

// Audited keeps when upstream was asked about these objects. A disk that takes nothing
// forgets it.
func (d *Disk) Audited(at time.Time, names ...string) error { return d.mark(bucketAudits, at, names) }

// Finding returns what is known against an object; fs.ErrNotExist where nothing is.
func (d *Disk) Finding(name string) (f Finding, err error) {
	if d.purged(name) {
		return Finding{}, notExist(name)
	}
	err = d.index.get(bucketFindings, name, func(payload []byte) (err error) {
		f, err = decodeFinding(name, payload)
		return err
	})
	return f, err
}

// PutFinding keeps a finding durably, in place of an older one about the same object.
func (d *Disk) PutFinding(f Finding) error {
	return d.trouble(d.index.put(bucketFindings, f.Name, f.encode()))
}

// DropFinding forgets a finding, if there is one.
func (d *Disk) DropFinding(name string) error {
	return d.trouble(d.index.submit(&indexWrite{bucket: bucketFindings, name: name}))
}

// Findings returns, in the order of their names, the findings among the next most from a
// name on, and the name to go on from, "" at the end.
func (d *Disk) Findings(from string, most int) (all []Finding, next string, err error) {
	all, next, err = pageOf(d, bucketFindings, from, most, decodeFinding)
	return slices.DeleteFunc(all, func(f Finding) bool { return d.purged(f.Name) }), next, err
}

// Used returns when the version of an object was last asked for here, zero for never, and
// about how often: each use counts half for every day that it lies back.
func (d *Disk) Used(name string) (last time.Time, recent float64) {
	version := versionOf(name)
	fresh, _ := d.uses.look(version)
	kept := unused()
	_ = d.index.view(func(f *indexFile, tx *bolt.Tx) error { // one that cannot be read knows of no use
		if _, err := f.bucket(tx, bucketUses, version); err != nil {
			return err
		}
		kept = f.kept(tx, version)
		return nil
	})
	u := kept.and(fresh)
	return u.last, math.Exp2(min(u.heat-heatAt(time.Now()), maxHeat))
}
