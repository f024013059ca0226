package gateway_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

// fakeCache answers what it was told to and fails the test when it is asked
// for anything else, or with a name that target.Parse does not accept.
type fakeCache struct {
	t *testing.T

	mu      sync.Mutex
	answers map[string]func(context.Context, cache.Request) (*cache.Object, error)
	calls   []cache.Request
}

func newFakeCache(t *testing.T) *fakeCache {
	t.Helper()
	return &fakeCache{t: t, answers: map[string]func(context.Context, cache.Request) (*cache.Object, error){}}
}

func (f *fakeCache) Get(ctx context.Context, req cache.Request) (*cache.Object, error) {
	name := req.Target.String()
	if _, err := target.Parse(name); err != nil {
		f.t.Errorf("Get of a malformed target: %v", err)
	}
	f.mu.Lock()
	f.calls = append(f.calls, req)
	answer := f.answers[name]
	f.mu.Unlock()
	if answer == nil {
		f.t.Errorf("unexpected Get of %q", name)
		return nil, &cache.Error{Reason: cache.Internal}
	}
	return answer(ctx, req)
}

func (f *fakeCache) on(name string, answer func(context.Context, cache.Request) (*cache.Object, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[name] = answer
}

// serve makes f answer name with obj; the body is a fresh one for each call.
func (f *fakeCache) serve(name string, body []byte, obj cache.Object) {
	f.on(name, func(context.Context, cache.Request) (*cache.Object, error) {
		o := whole(body, obj)
		return o, nil
	})
}

func (f *fakeCache) fail(name string, err error) {
	f.on(name, func(context.Context, cache.Request) (*cache.Object, error) { return nil, err })
}

// What no node has verified is for who asks, and for nobody later.
func TestUnverifiedIsNotKept(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"example.com/m/@v/v1.0.0.info", "example.com/m/@v/v1.0.0.mod", "example.com/m/@v/v1.0.0.zip"} {
		f := newFakeCache(t)
		g := newGateway(t, gateway.Config{Cache: f})
		f.serve(name, []byte("wrong"), cache.Object{Source: cache.Upstream, Unverified: true})
		checkHeaders(t, do(g, http.MethodGet, "/"+name), "Cache-Control", "no-store", "Cache-Status", "ringmod; fwd=miss; detail=upstream")
		f.serve(name, []byte("right"), cache.Object{Source: cache.Disk})
		r := do(g, http.MethodGet, "/"+name)
		if got := body(t, r); got != "right" || strings.Contains(r.Header.Get("Cache-Control"), "no-store") {
			t.Errorf("%s: then %q, %q", name, got, r.Header)
		}
	}
}

// asked returns the requests so far.
func (f *fakeCache) asked() []cache.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]cache.Request(nil), f.calls...)
}

type seeker struct{ *bytes.Reader }

func (seeker) Close() error { return nil }

// whole completes obj as an object that is stored and verified.
func whole(body []byte, obj cache.Object) *cache.Object {
	obj.Size, obj.SHA256 = int64(len(body)), sha256.Sum256(body)
	if obj.Source == 0 {
		obj.Source = cache.Disk
	}
	obj.Body = seeker{bytes.NewReader(body)}
	return &obj
}

// file is whole with an *os.File for a Body.
func file(t *testing.T, body []byte, obj cache.Object) *cache.Object {
	t.Helper()
	name := filepath.Join(t.TempDir(), "object")
	if err := os.WriteFile(name, body, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	o := whole(body, obj)
	o.Body = f
	return o
}

// fill is a Body that yields its parts and then err (nil: the end).
type fill struct {
	parts [][]byte
	err   error
}

func (f *fill) Close() error { return nil }

func (f *fill) Read(p []byte) (int, error) {
	if len(f.parts) == 0 {
		if f.err != nil {
			return 0, f.err
		}
		return 0, io.EOF
	}
	n := copy(p, f.parts[0])
	if f.parts[0] = f.parts[0][n:]; len(f.parts[0]) == 0 {
		f.parts = f.parts[1:]
	}
	return n, nil
}

// pushed is a fill with the ability to hand its bytes on.
type pushed struct{ fill }

func (f *pushed) WriteTo(w io.Writer) (n int64, err error) {
	for _, part := range f.parts {
		m, err := w.Write(part)
		n += int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, f.err
}

func newGateway(t *testing.T, cfg gateway.Config) *gateway.Gateway {
	t.Helper()
	if cfg.Cache == nil {
		cfg.Cache = newFakeCache(t)
	}
	g, err := gateway.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// answer is what a test reads of a response; closing is up to who made it.
type answer struct {
	StatusCode    int
	Header        http.Header
	ContentLength int64
	Body          io.Reader
}

func newAnswer(r *http.Response) *answer {
	return &answer{r.StatusCode, r.Header, r.ContentLength, r.Body}
}

// do sends one request to h without a network and returns the answer, nil when
// it was aborted.
func do(h http.Handler, method, url string, header ...string) (got *answer) {
	r := httptest.NewRequest(method, url, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			got = nil
		}
	}()
	h.ServeHTTP(w, r)
	return newAnswer(w.Result())
}

func body(t *testing.T, r *answer) string {
	t.Helper()
	if r == nil {
		t.Fatal("the answer was aborted")
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func digest(text string) string { return fmt.Sprintf(`"%x"`, sha256.Sum256([]byte(text))) }

// checkHeaders compares the headers of r with want, name and value in turn; ""
// wants a header to be absent.
func checkHeaders(t *testing.T, r *answer, want ...string) {
	t.Helper()
	for i := 0; i < len(want); i += 2 {
		if got := strings.Join(r.Header.Values(want[i]), " | "); got != want[i+1] {
			t.Errorf("%s: got %q, want %q", want[i], got, want[i+1])
		}
	}
}

var modTime = time.Date(2026, 3, 4, 5, 6, 7, 8, time.UTC)

const lastModified = "Wed, 04 Mar 2026 05:06:07 GMT"

const (
	modName  = "golang.org/x/mod/@v/v0.20.0.mod"
	zipName  = "golang.org/x/mod/@v/v0.20.0.zip"
	infoName = "golang.org/x/mod/@v/v0.20.0.info"
	listName = "golang.org/x/mod/@v/list"
)

// TestObjects holds each row of the header table against answers from the
// Cache and, where the object is small, from memory.
func TestObjects(t *testing.T) {
	t.Parallel()
	const (
		forEver = "public, max-age=604800, immutable"
		minute  = "public, max-age=60, must-revalidate"
		plain   = "text/plain; charset=utf-8"
		sumdb   = "text/plain; charset=UTF-8"
	)
	tests := []struct {
		name, contentType, caching, modified, age string
	}{
		{modName, plain, forEver, lastModified, ""},
		{zipName, "application/zip", forEver, lastModified, ""},
		{infoName, "application/json", "public, max-age=604800", "", ""},
		{listName, plain, minute, "", "7"},
		{"golang.org/x/mod/@latest", "application/json", minute, "", "7"},
		{"golang.org/x/mod/@v/master.info", "application/json", minute, "", "7"},
		{"sumdb/sum.golang.org/latest", sumdb, "public, max-age=60", "", "7"},
		{"sumdb/sum.golang.org/lookup/golang.org/x/mod@v0.20.0", sumdb, "public, max-age=86400", "", ""},
		{"sumdb/sum.golang.org/tile/8/0/x001/234", "application/octet-stream", "public, max-age=86400", "", ""},
	}
	for _, test := range tests {
		for _, private := range []bool{false, true} {
			for _, memory := range []int64{0, -1} {
				t.Run(fmt.Sprintf("%s/private=%v/memory=%d", test.name, private, memory), func(t *testing.T) {
					t.Parallel()
					text := "content of " + test.name
					c := newFakeCache(t)
					c.serve(test.name, []byte(text), cache.Object{ModTime: modTime, Private: private, Age: 7500 * time.Millisecond, TTL: time.Minute})
					g := newGateway(t, gateway.Config{Cache: c, Memory: memory, Sumdbs: []string{"sum.golang.org"}})
					caching := test.caching
					if private {
						caching = strings.Replace(caching, "public", "private", 1)
					}
					details := []string{"disk", "memory"}
					if memory < 0 {
						details[1] = "disk"
					}
					for _, detail := range details {
						r := do(g, "GET", "/"+test.name)
						if got := body(t, r); r.StatusCode != http.StatusOK || got != text {
							t.Errorf("got %d %q, want 200 %q", r.StatusCode, got, text)
						}
						checkHeaders(t, r,
							"Content-Type", test.contentType, "Cache-Control", caching, "Last-Modified", test.modified, "Age", test.age,
							"ETag", digest(text), "Content-Length", fmt.Sprint(len(text)), "Accept-Ranges", "bytes",
							"X-Content-Type-Options", "nosniff", "Cache-Status", "ringmod; hit; detail="+detail)
					}
				})
			}
		}
	}
}

func TestCacheStatus(t *testing.T) {
	t.Parallel()
	tests := []struct {
		source cache.Source
		stale  bool
		want   string
	}{
		{cache.Disk, false, "ringmod; hit; detail=disk"},
		{cache.Peer, false, "ringmod; hit; detail=peer"},
		{cache.Region, false, "ringmod; hit; detail=region"},
		{cache.Inflight, false, "ringmod; fwd=miss; collapsed; detail=inflight"},
		{cache.Upstream, false, "ringmod; fwd=miss; stored; detail=upstream"},
		{cache.Disk, true, "ringmod; fwd=stale; detail=disk"},
		{cache.Peer, true, "ringmod; fwd=stale; detail=peer"},
		{77, false, "ringmod; fwd=miss; detail=unknown"},
	}
	for _, test := range tests {
		c := newFakeCache(t)
		c.serve(listName, []byte("v1.0.0\n"), cache.Object{Source: test.source, Stale: test.stale})
		r := do(newGateway(t, gateway.Config{Cache: c}), "GET", "/"+listName)
		checkHeaders(t, r, "Cache-Status", test.want)
	}
	c := newFakeCache(t)
	c.serve(modName, []byte("module golang.org/x/mod\n"), cache.Object{Source: cache.Upstream, Single: true})
	r := do(newGateway(t, gateway.Config{Cache: c}), "GET", "/"+modName)
	checkHeaders(t, r, "Cache-Status", `ringmod; fwd=miss; detail="upstream, one copy"`)
}

// TestPreconditionFailed keeps the answer to one client's condition out of the
// caches in front of us, where it would stand in for the object for a week.
func TestPreconditionFailed(t *testing.T) {
	t.Parallel()
	c := newFakeCache(t)
	c.serve(modName, []byte("module golang.org/x/mod\n"), cache.Object{ModTime: modTime})
	got := do(newGateway(t, gateway.Config{Cache: c}), "GET", "/"+modName, "If-Match", `"other"`)
	if got.StatusCode != http.StatusPreconditionFailed {
		t.Fatalf("got status %d, want 412", got.StatusCode)
	}
	checkHeaders(t, got, "Cache-Control", "no-store")
}

func TestNew(t *testing.T) {
	t.Parallel()
	if _, err := gateway.New(gateway.Config{}); err == nil {
		t.Error("New without a cache: no error")
	}
}

// logged returns a logger and a function that returns what it wrote.
func logged(level slog.Level) (*slog.Logger, func() string) {
	var mu sync.Mutex
	var b bytes.Buffer
	w := writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return b.Write(p)
	})
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})), func() string {
		mu.Lock()
		defer mu.Unlock()
		return b.String()
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
