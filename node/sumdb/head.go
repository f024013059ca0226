package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/ringmod/ringmod/internal/cache"
)

// maxRecords keeps the arithmetic on trees far from overflow. The public
// database has 10^8 records.
const maxRecords = 1 << 48

// head is a tree head whose signature has been checked.
type head struct {
	tlog.Tree
	msg []byte // as signed; nil for the empty tree to start with
}

// Latest returns the newest signed tree head known, as the database sent it.
// It asks the database when the last answer is older than a minute; when that
// fails, the stored head is returned, unless the database contradicts it.
func (d *DB) Latest(ctx context.Context) ([]byte, error) {
	refreshErr := d.refresh(ctx, latestMaxAge)
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause
	}
	now, err := d.current(ctx)
	if err != nil {
		return nil, err
	}
	if refreshErr != nil && (now.msg == nil || cache.ReasonOf(refreshErr) == cache.Mismatch) {
		return nil, refreshErr
	}
	return now.msg, nil
}

// refresh asks for the head, unless it did within maxAge with success or within
// latestPause at all.
func (d *DB) refresh(ctx context.Context, maxAge time.Duration) error {
	_, err := d.shared(ctx, "latest", func(ctx context.Context) ([]byte, error) {
		if ask, err := d.mayAsk(maxAge); !ask {
			return nil, err
		}
		msg, err := d.fetch(ctx, "latest")
		if err == nil {
			err = d.mergeLatest(ctx, msg)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.refreshErr = err
		if err == nil {
			d.refreshed = time.Now()
		}
		return nil, err
	})
	return err
}

// mayAsk tells whether the head may be asked for now, else what came of the
// last request.
func (d *DB) mayAsk(maxAge time.Duration) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refreshErr == nil && time.Since(d.refreshed) < maxAge {
		return false, nil
	}
	if time.Since(d.asked) < latestPause {
		return false, d.refreshErr
	}
	d.asked = time.Now()
	return true, nil
}

// step is two trees of which the newer begins with the older.
type step struct{ newer, older tlog.Tree }

// open checks the signature of msg, once: records come with few heads.
func (d *DB) open(msg []byte) (*head, error) {
	if h, ok := d.signed.get(string(msg)); ok {
		return h, nil
	}
	h, err := d.check(msg)
	if err == nil {
		d.signed.put(string(msg), h)
	}
	return h, err
}

func (d *DB) check(msg []byte) (*head, error) {
	signed, err := note.Open(msg, d.verifiers)
	_, forged := errors.AsType[*note.InvalidSignatureError](err)
	_, unsigned := errors.AsType[*note.UnverifiedNoteError](err)
	if forged || unsigned {
		return nil, d.mismatch("the tree head is not signed with the database's key", err)
	}
	if err != nil {
		return nil, d.broken("the answer holds no signed tree head (%v)", err)
	}
	tree, err := tlog.ParseTree([]byte(signed.Text))
	if err != nil || tree.N > maxRecords {
		return nil, d.broken("the signed note is not a tree head (%v)", err)
	}
	return &head{Tree: tree, msg: msg}, nil
}

// current returns the newest head, the empty tree when there is none yet.
func (d *DB) current(ctx context.Context) (*head, error) {
	if h := d.head.Load(); h != nil {
		return h, nil
	}
	d.headMu.Lock()
	defer d.headMu.Unlock()
	if h := d.head.Load(); h != nil {
		return h, nil
	}
	msg, err := d.heads.Head(d.name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, &cache.Error{Reason: cache.Internal, Text: "reading the stored tree head of " + d.name + " failed", Err: err}
	}
	h := &head{}
	h.Hash, _ = tlog.TreeHash(0, nil) // which cannot fail for the empty tree
	if err == nil && len(msg) > 0 {
		if stored, err := d.open(msg); err == nil {
			h = stored
		} else {
			d.log.ErrorContext(ctx, "stored tree head damaged, starting without", "err", err)
		}
	}
	d.head.Store(h)
	return h, nil
}

// mergeLatest merges what the database says is its newest head.
func (d *DB) mergeLatest(ctx context.Context, msg []byte) error {
	h, err := d.open(msg)
	if err == nil {
		err = d.merge(ctx, h)
	}
	if err == nil {
		d.noteAge(ctx, h)
	}
	return err
}

// merge checks that h is on one timeline with the newest head, and makes it the
// newest when it is newer.
func (d *DB) merge(ctx context.Context, h *head) error {
	for {
		now, err := d.current(ctx)
		if err != nil {
			return err
		}
		if h.N < now.N || h.N == now.N && now.msg != nil {
			return d.checkContains(ctx, now, h)
		}
		if err := d.checkContains(ctx, h, now); err != nil {
			return err
		}
		if d.advance(ctx, now, h) {
			return nil
		}
	}
}

// advance replaces the head unless another has in the meantime.
func (d *DB) advance(ctx context.Context, from, to *head) bool {
	d.headMu.Lock()
	defer d.headMu.Unlock()
	if d.head.Load() != from {
		return false
	}
	if err := d.heads.SetHead(d.name, to.msg); err != nil {
		d.log.ErrorContext(ctx, "tree head not stored", "err", err)
	}
	d.head.Store(to)
	return true
}

// checkContains proves that the tree of newer begins with the one of older. On
// the way the tiles at the right edge of older are kept at their width in newer,
// which is what the package promises for replays.
func (d *DB) checkContains(ctx context.Context, newer, older *head) error {
	if newer.Tree == older.Tree {
		return nil
	}
	if _, ok := d.within.get(step{newer.Tree, older.Tree}); ok {
		return nil
	}
	var found tlog.Hash
	r, err := d.prove(ctx, newer.Tree, func(r tlog.HashReader) (err error) {
		found, err = tlog.TreeHash(older.N, r)
		return err
	})
	if err != nil {
		return err
	}
	r.finish(found == older.Hash)
	if found != older.Hash {
		// The two signed notes are the evidence that people outside can check.
		d.log.ErrorContext(ctx, "checksum database forked", "old_head", string(older.msg), "new_head", string(newer.msg))
		return d.mismatch(fmt.Sprintf("its trees of %d and %d records contradict each other: the database or the way to it is not to be trusted", older.N, newer.N), errForked)
	}
	d.within.put(step{newer.Tree, older.Tree}, struct{}{})
	return nil
}
