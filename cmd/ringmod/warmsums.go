package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	ownsumdb "github.com/ringmod/ringmod/node/sumdb"
)

// A go command proves each record of a checksum database with tiles that depend on how
// large the tree was when the record was fetched, and on how large it was for those
// that it has seen before. To hold all of them it is not enough to ask for the records.

// record is a lookup as it is held.
type record struct {
	module.Version

	tree int64 // records that the tree of its head has
}

// lookup fetches the record of m.
func (s *sums) lookup(ctx context.Context, t target.Target, m module.Version) (record, int64, error) {
	data, err := s.read(ctx, t)
	return record{m, treeSize(data)}, int64(len(data)), err
}

// treeSize returns N of the signed tree head that ends a lookup (C2SP tlog-checkpoint),
// 0 where there is none.
func treeSize(lookup []byte) int64 {
	_, head, _ := bytes.Cut(lookup, []byte("\n\n"))
	lines := bytes.SplitN(head, []byte("\n"), 3)
	if len(lines) < 3 {
		return 0
	}
	n, _ := strconv.ParseInt(string(lines[1]), 10, 64)
	return max(0, n)
}

// prove does what go commands will do: one that begins with a record, for each size of
// the tree, and one that begins with the newest and goes through all.
func (s *sums) prove(ctx context.Context, records []record) error {
	slices.SortStableFunc(records, func(a, b record) int { return cmp.Compare(b.tree, a.tree) })
	all := s.client(ctx)
	for i, r := range records {
		if i == 0 || r.tree != records[i-1].tree {
			if _, err := s.client(ctx).Lookup(r.Path, r.Version.Version); err != nil {
				return fmt.Errorf("%s: %w", r.Version, err)
			}
		}
		if _, err := all.Lookup(r.Path, r.Version.Version); err != nil {
			return fmt.Errorf("%s: %w", r.Version, err)
		}
	}
	return nil
}

// sums reads a checksum database from a cluster.
type sums struct {
	nodes objects
	spec  ownsumdb.Spec
	keep  func(t target.Target, data []byte) // is told of all that was read; nil: nobody
}

// objects is where files come from; *cluster.Cluster is it.
type objects interface {
	Get(ctx context.Context, req cache.Request) (*cache.Object, error)
}

// readSmall reads a file that is no zip.
func readSmall(ctx context.Context, nodes objects, t target.Target) ([]byte, error) {
	obj, err := nodes.Get(ctx, cache.Request{Target: t, Mode: cache.AllowFill})
	if err != nil {
		return nil, err
	}
	defer obj.Body.Close()
	return io.ReadAll(io.LimitReader(obj.Body, 16<<20))
}

func (s *sums) read(ctx context.Context, t target.Target) ([]byte, error) {
	data, err := readSmall(ctx, s.nodes, t)
	if err == nil && s.keep != nil {
		s.keep(t, data)
	}
	return data, err
}

func (s *sums) client(ctx context.Context) *sumdb.Client {
	return sumdb.NewClient(&sumsClient{sums: s, ctx: ctx})
}

// sumsClient is a client that knows nothing in the beginning.
type sumsClient struct {
	*sums

	ctx context.Context //nolint:containedctx // sumdb.ClientOps has none

	mu     sync.Mutex
	latest []byte
}

// ReadRemote implements sumdb.ClientOps.
func (c *sumsClient) ReadRemote(path string) ([]byte, error) {
	t, err := target.Parse("sumdb/" + c.spec.Name + path)
	if err != nil {
		return nil, err
	}
	return c.read(c.ctx, t)
}

// ReadConfig implements sumdb.ClientOps.
func (c *sumsClient) ReadConfig(file string) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if file == "key" {
		return []byte(c.spec.Key), nil
	}
	return c.latest, nil
}

// WriteConfig implements sumdb.ClientOps.
func (c *sumsClient) WriteConfig(_ string, old, latest []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !bytes.Equal(old, c.latest) {
		return sumdb.ErrWriteConflict
	}
	c.latest = latest
	return nil
}

var errNotCached = errors.New("nothing is kept here")

// ReadCache implements sumdb.ClientOps.
func (c *sumsClient) ReadCache(string) ([]byte, error) { return nil, errNotCached }

// WriteCache implements sumdb.ClientOps.
func (c *sumsClient) WriteCache(string, []byte) {}

// Log implements sumdb.ClientOps.
func (c *sumsClient) Log(string) {}

// SecurityError implements sumdb.ClientOps: the client's own error says as much.
func (c *sumsClient) SecurityError(string) {}
