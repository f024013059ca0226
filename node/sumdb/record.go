package sumdb

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

// record is a parsed answer to a lookup.
type record struct {
	id   int64
	text []byte // lines of go.sum
	head *head
}

// Lookup returns the database's record of m exactly as the database sent it:
// id, go.sum lines, blank line, signed tree head. It comes from storage, else from
// the database, proven and stored.
//
// A stored record is checked against the newest head once in the life of a DB, in
// case the head or the tiles were lost or it came from elsewhere; when the
// database cannot be reached for that, it is returned all the same.
//
// For a version that is not stored, Config.Members is asked first: what it
// returns is proven as what the database returns, and that there is no such record
// is believed. Any other failure leads to the database, whose errors are returned
// as they are.
func (d *DB) Lookup(ctx context.Context, m module.Version) ([]byte, error) {
	return d.lookupBy(ctx, m, d.members)
}

// LookupDirect is Lookup for a member that asks us: it never waits for Members,
// who may be waiting for us.
func (d *DB) LookupDirect(ctx context.Context, m module.Version) ([]byte, error) {
	return d.lookupBy(ctx, m, nil)
}

func (d *DB) lookupBy(ctx context.Context, m module.Version, members Remote) ([]byte, error) {
	rest, err := d.lookupPath(m)
	if err != nil {
		return nil, &cache.Error{Reason: cache.Malformed, Text: err.Error(), Err: err}
	}
	if _, ok := d.vouched.get(rest); ok {
		if data, _, ok := d.storedRecord(ctx, m, rest); ok {
			return data, nil
		}
	}
	key := rest
	if members != nil {
		key = "members " + rest
	}
	return d.admit(ctx, key, func(ctx context.Context) ([]byte, error) {
		if data, rec, ok := d.storedRecord(ctx, m, rest); ok && d.vouch(ctx, rest, rec) {
			return data, nil
		}
		if members == nil {
			return d.lookup(ctx, d.remote, m, rest)
		}
		data, err := d.lookup(ctx, members, m, rest)
		if reason := cache.ReasonOf(err); err == nil || reason == cache.NotFound || reason == cache.Gone {
			return data, err
		}
		d.log.DebugContext(ctx, "no member could answer a lookup", "key", d.file(rest), "err", err)
		return d.LookupDirect(ctx, m)
	})
}

// storedRecord returns the record of m from storage, if it is there undamaged.
func (d *DB) storedRecord(ctx context.Context, m module.Version, rest string) ([]byte, record, bool) {
	data := d.load(ctx, rest)
	if data == nil {
		return nil, record{}, false
	}
	rec, err := d.parse(m, data)
	if err != nil {
		d.log.WarnContext(ctx, "stored record damaged", "key", d.file(rest), "err", err)
	}
	return data, rec, err == nil
}

// lookupPath returns what stands behind the database's name for m.
func (d *DB) lookupPath(m module.Version) (string, error) {
	path, err := module.EscapePath(m.Path)
	if err != nil {
		return "", err
	}
	version, err := module.EscapeVersion(m.Version)
	if err != nil {
		return "", err
	}
	t, err := target.ForSumdb(d.name, "lookup/"+path+"@"+version)
	return t.Rest, err
}

// lookup fetches, proves and stores a record.
func (d *DB) lookup(ctx context.Context, from Remote, m module.Version, rest string) ([]byte, error) {
	data, err := d.fetchFrom(ctx, from, rest)
	if err != nil {
		return nil, err
	}
	rec, err := d.parse(m, data)
	if err != nil {
		return nil, err
	}
	if err := d.verify(ctx, rec); err != nil {
		return nil, err
	}
	d.save(ctx, rest, data)
	d.vouched.put(rest, struct{}{})
	return data, nil
}

// parse reads the answer to a lookup of m and checks the signature of its head,
// which is all that can be known without the tree.
func (d *DB) parse(m module.Version, data []byte) (record, error) {
	id, text, msg, err := tlog.ParseRecord(data)
	if err != nil || id < 0 {
		return record{}, d.broken("the answer to the lookup of %s is not a record", m)
	}
	if len(hashes(text, m.Path, m.Version)) == 0 && len(hashes(text, m.Path, m.Version+"/go.mod")) == 0 {
		return record{}, d.broken("the answer to the lookup of %s is a record of something else", m)
	}
	h, err := d.open(msg)
	if err != nil {
		return record{}, err
	}
	if id >= h.N {
		return record{}, d.broken("record %d of %s came with a tree of %d records", id, m, h.N)
	}
	return record{id, text, h}, nil
}

// verify proves that rec is in the tree and its head on our timeline.
func (d *DB) verify(ctx context.Context, rec record) error {
	if err := d.merge(ctx, rec.head); err != nil {
		return err
	}
	now, err := d.current(ctx)
	if err != nil {
		return err
	}
	var found []tlog.Hash
	r, err := d.prove(ctx, now.Tree, func(r tlog.HashReader) (err error) {
		found, err = r.ReadHashes([]int64{tlog.StoredHashIndex(0, rec.id)})
		return err
	})
	if err != nil {
		return err
	}
	r.finish(true)
	// Not before: the edge of the newest tree is fetched by the first proof in it.
	d.keepEdge(ctx, rec.head)
	if found[0] != tlog.RecordHash(rec.text) {
		return d.mismatch(fmt.Sprintf("record %d is not the one in the signed tree", rec.id), nil)
	}
	return nil
}

// vouch tells whether a stored record may be answered. Only proof against it
// makes it unusable; then it is fetched anew.
func (d *DB) vouch(ctx context.Context, rest string, rec record) bool {
	if _, ok := d.vouched.get(rest); ok {
		return true
	}
	d.mu.Lock()
	wait := time.Until(d.vouchAgain) > 0
	d.mu.Unlock()
	if wait {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, vouchTimeout)
	defer cancel()
	err := d.verify(ctx, rec)
	if err == nil {
		d.vouched.put(rest, struct{}{})
		return true
	}
	d.log.WarnContext(ctx, "stored record not confirmed", "key", d.file(rest), "err", err)
	if cache.ReasonOf(err) == cache.Mismatch {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.vouchAgain = time.Now().Add(vouchPause)
	return true
}

// Hashes returns the h1: hashes of the zip and the go.mod of m, empty where the
// record has none. Errors are those of Lookup.
func (d *DB) Hashes(ctx context.Context, m module.Version) (zipH1, modH1 string, err error) {
	text, err := d.text(ctx, m)
	if err != nil {
		return "", "", err
	}
	return first(hashes(text, m.Path, m.Version)), first(hashes(text, m.Path, m.Version+"/go.mod")), nil
}

// Check compares h1, computed from the zip or go.mod (kind) of m, with what the
// database says. A difference or a missing line is cache.Mismatch. A version that
// the database does not know is cache.Broken and not an absence: the bytes exist,
// they only cannot be trusted. Of a .info, which has no hash there, the version has to be
// known. Other errors are those of Lookup.
func (d *DB) Check(ctx context.Context, m module.Version, kind target.Kind, h1 string) error {
	version := m.Version
	switch kind {
	case target.Zip, target.Info:
	case target.Mod:
		version += "/go.mod"
	default:
		return &cache.Error{Reason: cache.Internal, Text: kind.String() + " has no hash in a checksum database"}
	}
	text, err := d.text(ctx, m)
	if reason := cache.ReasonOf(err); reason == cache.NotFound || reason == cache.Gone {
		return &cache.Error{Reason: cache.Broken, Err: err, Text: fmt.Sprintf(
			"checksum database %s does not know %s; if the module is private, list it with --private", d.name, m)}
	}
	if err != nil || kind == target.Info {
		return err
	}
	known := hashes(text, m.Path, version)
	if slices.Contains(known, h1) {
		return nil
	}
	says := "says " + strings.Join(known, " or ")
	if len(known) == 0 {
		says = "has no hash of its " + kind.String()
	}
	return d.mismatch(fmt.Sprintf("%s@%s: bytes from upstream hash to %s, the checksum database %s", m.Path, version, h1, says), nil)
}

// text returns the go.sum lines of m.
func (d *DB) text(ctx context.Context, m module.Version) ([]byte, error) {
	data, err := d.Lookup(ctx, m)
	if err != nil {
		return nil, err
	}
	_, text, _, err := tlog.ParseRecord(data)
	return text, err
}

// hashes returns the h1: hashes of version ("v1.2.3" or "v1.2.3/go.mod") in
// lines of go.sum.
func hashes(text []byte, path, version string) []string {
	var found []string
	prefix := []byte(path + " " + version + " h1:")
	for line := range bytes.Lines(text) {
		if bytes.HasPrefix(line, prefix) {
			found = append(found, string(bytes.TrimSpace(line[len(prefix)-len("h1:"):])))
		}
	}
	return found
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}
