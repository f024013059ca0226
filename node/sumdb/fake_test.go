package sumdb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/module"
	xsumdb "golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/note"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/sumdb"
)

const dbName = "sum.example.com/db"

// database is a real checksum database in memory.
type database struct {
	skey, vkey string
	ops        *xsumdb.TestServer
	http       *xsumdb.Server
}

func newDatabase(t testing.TB) *database {
	t.Helper()
	skey, vkey, err := note.GenerateKey(nil, dbName)
	if err != nil {
		t.Fatal(err)
	}
	return newDatabaseWithKey(skey, vkey, "h1:")
}

// newDatabaseWithKey returns another database under the same key: a fork, when
// prefix differs.
func newDatabaseWithKey(skey, vkey, prefix string) *database {
	ops := xsumdb.NewTestServer(skey, func(path, version string) ([]byte, error) {
		if strings.HasPrefix(path, "private.org/") {
			return nil, fs.ErrNotExist
		}
		return fmt.Appendf(nil, "%s %s %szip%s\n%s %s/go.mod h1:mod%s\n", path, version, prefix, path, path, version, path), nil
	})
	return &database{skey, vkey, ops, xsumdb.NewServer(ops)}
}

func mod(i int) module.Version {
	return module.Version{Path: fmt.Sprintf("example.com/m%d", i), Version: "v1.0.0"}
}

// grow adds records for mod(from) up to and without mod(to).
func (db *database) grow(t testing.TB, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if _, err := db.ops.Lookup(t.Context(), mod(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func (db *database) get(rest string) (data []byte, err error) {
	defer func() { // the test server indexes a slice with whatever tile is asked for
		if e := recover(); e != nil {
			err = &cache.Error{Reason: cache.Broken, Source: "fake", Text: fmt.Sprint(e)}
		}
	}()
	rec := httptest.NewRecorder()
	db.http.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/"+rest, nil))
	switch rec.Code {
	case http.StatusOK:
		return rec.Body.Bytes(), nil
	case http.StatusNotFound:
		return nil, &cache.Error{Reason: cache.NotFound, Source: "fake", Text: "404 Not Found"}
	default:
		return nil, &cache.Error{Reason: cache.Broken, Source: "fake", Text: rec.Body.String()}
	}
}

// remote is the way to a database: it counts and can be made to lie.
type remote struct {
	mu     sync.Mutex
	db     *database
	counts map[string]int
	// answer, when set, replaces the database's answer.
	answer func(rest string, data []byte, err error) ([]byte, error)
}

func (r *remote) Fetch(ctx context.Context, t target.Target) ([]byte, error) {
	r.mu.Lock()
	r.counts[t.Rest]++
	db, answer := r.db, r.answer
	r.mu.Unlock()
	if t.DB != dbName {
		return nil, fmt.Errorf("asked for database %q", t.DB)
	}
	data, err := db.get(t.Rest)
	if answer != nil {
		data, err = answer(t.Rest, data, err)
	}
	return data, err
}

func (r *remote) set(answer func(rest string, data []byte, err error) ([]byte, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

// requests returns the number of requests whose target begins with prefix.
func (r *remote) requests(prefix string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for rest, count := range r.counts {
		if strings.HasPrefix(rest, prefix) {
			n += count
		}
	}
	return n
}

var errDown = &cache.Error{Reason: cache.Broken, Source: "fake", Text: "connection refused"}

func down(string, []byte, error) ([]byte, error) { return nil, errDown }

// storage keeps files in memory. It does not let a file change, except one that
// the test damaged.
type storage struct {
	t testing.TB

	mu      sync.Mutex
	files   map[string][]byte
	damaged map[string]bool
	writes  int

	reading func(name string) // called before a read, unless nil
}

func (s *storage) ReadFile(_ context.Context, name string) ([]byte, error) {
	if s.reading != nil {
		s.reading(name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.files[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return bytes.Clone(data), nil
}

func (s *storage) WriteFile(_ context.Context, name string, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.files[name]; ok && !bytes.Equal(old, data) && !s.damaged[name] {
		s.t.Errorf("WriteFile(%q) changes the file", name)
	}
	if _, err := target.Parse(name); err != nil {
		s.t.Errorf("WriteFile: %v", err)
	}
	s.files[name] = bytes.Clone(data)
	delete(s.damaged, name)
	s.writes++
	return nil
}

func (s *storage) snapshot() map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.files)
}

// damage changes each file whose name holds part.
func (s *storage) damage(part string, change func([]byte) []byte) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, data := range s.files {
		if strings.Contains(name, part) {
			s.files[name] = change(bytes.Clone(data))
			s.damaged[name] = true
			n++
		}
	}
	return n
}

// heads keeps tree heads in memory.
type heads struct {
	mu   sync.Mutex
	msgs map[string][]byte
	err  error
}

func (h *heads) Head(db string) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return nil, h.err
	}
	if h.msgs[db] == nil {
		return nil, fs.ErrNotExist
	}
	return h.msgs[db], nil
}

func (h *heads) SetHead(db string, msg []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.msgs[db] = msg
	return h.err
}

// rig is a DB with all that it hangs on.
type rig struct {
	*sumdb.DB
	t       testing.TB
	db      *database
	remote  *remote
	storage *storage
	heads   *heads
	members sumdb.Remote // for the next restart
}

func newRig(t testing.TB) *rig {
	t.Helper()
	db := newDatabase(t)
	r := &rig{
		t: t, db: db,
		remote:  &remote{db: db, counts: make(map[string]int)},
		storage: &storage{t: t, files: make(map[string][]byte), damaged: make(map[string]bool)},
		heads:   &heads{msgs: make(map[string][]byte)},
	}
	r.restart()
	return r
}

// restart replaces the DB by a new one over the same storage and heads.
func (r *rig) restart() {
	r.t.Helper()
	spec, err := sumdb.ParseSpec(r.db.vkey)
	if err != nil {
		r.t.Fatal(err)
	}
	r.DB, err = sumdb.New(sumdb.Config{
		Spec: spec, Remote: r.remote, Members: r.members, Storage: r.storage, Heads: r.heads,
		Logger: slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) lookup(i int) []byte {
	r.t.Helper()
	data, err := r.Lookup(r.t.Context(), mod(i))
	if err != nil {
		r.t.Fatalf("Lookup(%v): %v", mod(i), err)
	}
	return data
}

func (r *rig) tile(rest string) ([]byte, error) {
	r.t.Helper()
	t, err := target.ForSumdb(dbName, rest)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.Tile(r.t.Context(), t)
}

// checkStored wants every stored tile to be the database's own.
func (r *rig) checkStored() {
	r.t.Helper()
	for name, data := range r.storage.snapshot() {
		rest := strings.TrimPrefix(name, "sumdb/"+dbName+"/")
		want, err := r.db.get(rest)
		if strings.HasPrefix(rest, "tile/") && (err != nil || !bytes.Equal(data, want)) {
			r.t.Errorf("stored %s is not the database's (%v)", name, err)
		}
	}
}

// client is the go command's own client on top of a rig.
type client struct {
	*rig
	mu     sync.Mutex
	latest []byte
}

var errUncached = errors.New("not cached")

func (c *client) ReadRemote(path string) ([]byte, error) {
	t, err := target.ForSumdb(dbName, path[1:])
	if err != nil {
		return nil, err
	}
	if t.Kind == target.SumdbLookup {
		return c.Lookup(c.t.Context(), t.Module())
	}
	return c.Tile(c.t.Context(), t)
}

func (c *client) ReadConfig(file string) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if file == "key" {
		return []byte(c.db.vkey), nil
	}
	return c.latest, nil
}

func (c *client) WriteConfig(_ string, old, data []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !bytes.Equal(c.latest, old) {
		return xsumdb.ErrWriteConflict
	}
	c.latest = data
	return nil
}

func (c *client) ReadCache(string) ([]byte, error) { return nil, errUncached }
func (c *client) WriteCache(string, []byte)        {}
func (c *client) Log(msg string)                   { c.t.Log(msg) }
func (c *client) SecurityError(msg string)         { c.t.Error(msg) }
