package node

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/sumdb"
	"github.com/ringmod/ringmod/node/upstream"
)

// headTTL is how long a tree head counts as the latest.
const headTTL = time.Minute

// database returns the checksum database that verifies t, nil where none does.
func (n *Node) database(t target.Target) *sumdb.DB {
	if len(n.cfg.Databases) == 0 || n.private(t) {
		return nil
	}
	return n.cfg.Databases[0]
}

// sumdbObject answers what clients ask of a checksum database through us.
func (n *Node) sumdbObject(ctx context.Context, req cache.Request) (*cache.Object, error) {
	t := req.Target
	db := n.databaseNamed(t.DB)
	if db == nil {
		return nil, &cache.Error{Reason: cache.NotCached, Text: "checksum database " + t.DB + " is not served here"}
	}
	if n.private(t) {
		return nil, &cache.Error{Reason: cache.Denied, Text: t.Path + " is private here (--private) and is not looked up in a checksum database; set GONOSUMDB for it"}
	}
	if t.Kind.Immutable() {
		held, err := n.held(ctx, t)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return held, err
		}
		if err := n.absence(t); err != nil && !upstream.HasBundle(ctx) {
			return nil, err
		}
	}
	if !mayFill(req.Mode) {
		return nil, notCached(t)
	}
	asked := time.Now()
	data, err := askDatabase(ctx, db, t, req.Mode)
	if err != nil {
		if t.Kind == target.SumdbLookup { // a tile that is absent now may be complete in a moment
			n.remember(t, err, asked)
		}
		return nil, err
	}
	obj := n.bytesObject(t, data, cache.Upstream)
	if t.Kind == target.SumdbLatest {
		obj.TTL = headTTL
	}
	return obj, nil
}

func askDatabase(ctx context.Context, db *sumdb.DB, t target.Target, mode cache.Mode) ([]byte, error) {
	switch {
	case t.Kind == target.SumdbLookup && mode == cache.Coordinate:
		return db.LookupDirect(ctx, t.Module())
	case t.Kind == target.SumdbLookup:
		return db.Lookup(ctx, t.Module())
	case t.Kind == target.SumdbTile:
		return db.Tile(ctx, t)
	default:
		return db.Latest(ctx)
	}
}

func (n *Node) databaseNamed(name string) *sumdb.DB {
	for _, db := range n.cfg.Databases {
		if db.Name() == name {
			return db
		}
	}
	return nil
}

// ChecksumFiles lets a checksum database keep its lookups, tiles and tree heads
// in the node's store. It implements sumdb.Storage and sumdb.Heads.
type ChecksumFiles struct {
	Store     store.Store
	Documents store.Documents
	Writes    *WriteBehind

	marked sync.Map // databases whose "supported" file was written by this process
}

// ReadFile returns a stored lookup or tile; fs.ErrNotExist where there is none.
func (c *ChecksumFiles) ReadFile(ctx context.Context, name string) ([]byte, error) {
	if data, _, ok := c.Writes.Pending(name); ok {
		return data, nil
	}
	obj, err := c.Store.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return readAll(&cache.Object{Body: obj.File})
}

// WriteFile keeps a lookup or tile that was verified.
func (c *ChecksumFiles) WriteFile(ctx context.Context, name string, data []byte) error {
	return c.Writes.Put(ctx, name, data, store.Proof{})
}

// Head returns the signed tree head of db that was kept last; fs.ErrNotExist
// where there is none.
func (c *ChecksumFiles) Head(db string) ([]byte, error) {
	doc, err := c.Documents.Document(headName(db))
	return doc.Body, err
}

// SetHead keeps a newer signed tree head of db. It also leaves the empty file
// that tells a go command with GOPROXY=file://<objects> that lookups and tiles
// are to be had there.
func (c *ChecksumFiles) SetHead(db string, msg []byte) error {
	if _, marked := c.marked.LoadOrStore(db, true); !marked {
		if err := c.Writes.Put(context.Background(), "sumdb/"+db+"/supported", []byte{}, store.Proof{}); err != nil {
			return err
		}
	}
	return c.Documents.PutDocument(headName(db), store.Document{Body: msg, Fetched: time.Now()})
}

func headName(db string) string { return "sumdb/" + db + "/latest" }
