package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/sumdb"
	"github.com/ringmod/ringmod/node/verify"
)

// inspectTimeout bounds the checksum database's part of one inspection.
const inspectTimeout = 10 * time.Second

// Inspector decides whether a file that the store finds without an index entry
// is what its name says: after a lost index, or when files were put there by
// hand.
type Inspector struct {
	verifier *verify.Verifier
	patience time.Duration // with the checksum database
	public   atomic.Pointer[coverage]
}

// coverage is what a checksum database can be asked about: db is not nil, and
// what matches private is not for it.
type coverage struct {
	db      *sumdb.DB
	private string
}

// NewInspector returns an Inspector that checks form only until Use.
func NewInspector(v *verify.Verifier) *Inspector {
	return &Inspector{verifier: v, patience: inspectTimeout}
}

// Use makes the inspector ask the first of dbs, too, about what does not match
// the private patterns.
func (i *Inspector) Use(dbs []*sumdb.DB, private string) {
	if len(dbs) > 0 {
		i.public.Store(&coverage{dbs[0], private})
	}
}

// Inspect returns what is known of the file named by a target, or why it must not be
// served. A checksum database that cannot be asked does not condemn a file: it
// may be the last copy, and zips carry checksums of their own.
func (i *Inspector) Inspect(name string, f *os.File) (store.Proof, error) {
	t, err := target.Parse(name)
	if err != nil {
		return store.Proof{}, err
	}
	// Without a limit: an error would condemn the file, however good it is.
	h1, err := i.form(context.Background(), t, f)
	if err != nil || h1 == "" {
		return store.Proof{}, err
	}
	public := i.public.Load()
	if public == nil || module.MatchPrefixPatterns(public.private, t.Path) {
		return store.Proof{H1: h1}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), i.patience)
	defer cancel()
	err = public.db.Check(ctx, t.Module(), t.Kind, h1)
	if cache.ReasonOf(err) == cache.Mismatch {
		return store.Proof{}, err
	}
	return store.Proof{H1: h1, Verified: err == nil}, nil
}

func (i *Inspector) form(ctx context.Context, t target.Target, f *os.File) (h1 string, err error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if t.Kind == target.Zip {
		return i.verifier.Zip(ctx, t.Module(), f, info.Size())
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return "", err
	}
	switch t.Kind {
	case target.Mod:
		return verify.Mod(t, data)
	case target.Info:
		return "", verify.Info(t, data)
	default:
		return "", checkSumdbFile(t, data)
	}
}

// checkSumdbFile tells what is wrong with the form of a file of a checksum database.
func checkSumdbFile(t target.Target, data []byte) (err error) {
	switch t.Kind {
	case target.SumdbSupported:
		if len(data) > 0 {
			err = errors.New("is not empty")
		}
		return err
	case target.SumdbLookup:
		_, _, _, err := tlog.ParseRecord(data)
		return err
	case target.SumdbTile:
		tile, err := tlog.ParseTilePath(t.Rest)
		if err == nil && tile.L >= 0 && len(data) != tile.W*tlog.HashSize {
			err = fmt.Errorf("holds %d bytes, not %d hashes", len(data), tile.W)
		}
		return err
	default:
		return fmt.Errorf("%s is not kept as a file", t.Kind)
	}
}
