package upstreamtest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

const archive = `
-- example.com/a@v1.0.0/a.go --
package a
-- example.com/a@v1.1.0/go.mod --
module example.com/a

go 1.24
-- example.com/a@v1.2.0-rc.1/a.go --
package a
-- example.com/Big@v0.0.0-20240102030405-0123456789ab/a.go --
package big
-- example.com/old@v2.0.0+incompatible/a.go --
package old
`

func start(t *testing.T) *upstreamtest.Server {
	t.Helper()
	mods, err := upstreamtest.ParseModules([]byte(archive))
	if err != nil {
		t.Fatal(err)
	}
	return upstreamtest.New(t, mods...)
}

// answer is a response that was read to its end.
type answer struct {
	status int
	header http.Header
	body   string
}

// get asks; the answer has what came even with an error.
func get(t *testing.T, url string, header ...string) (answer, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(body)}, err
}

func TestProtocol(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.Query("example.com/a", "main", "v1.1.0")
	tests := []struct {
		path   string
		status int
		want   string
	}{
		{"/example.com/a/@v/list", 200, "v1.0.0\nv1.1.0\nv1.2.0-rc.1\n"},
		{"/example.com/a/@latest", 200, `{"Version":"v1.1.0","Time":"2024-01-02T03:04:05Z"}`},
		{"/example.com/a/@v/v1.0.0.info", 200, `{"Version":"v1.0.0","Time":"2024-01-02T03:04:05Z"}`},
		{"/example.com/a/@v/main.info", 200, `{"Version":"v1.1.0","Time":"2024-01-02T03:04:05Z"}`},
		{"/example.com/a/@v/v1.0.0.mod", 200, "module example.com/a\n"},
		{"/example.com/a/@v/v1.1.0.mod", 200, "module example.com/a\n\ngo 1.24\n"},
		{"/example.com/a/@v/v1.0.0.zip", 200, string(s.Zip("example.com/a", "v1.0.0"))},
		{"/example.com/!big/@v/list", 200, ""},
		{"/example.com/%21big/@latest", 200, `{"Version":"v0.0.0-20240102030405-0123456789ab","Time":"2024-01-02T03:04:05Z"}`},
		{"/example.com/old/@v/v2.0.0+incompatible.mod", 200, "module example.com/old\n"},
		{"/example.com/Big/@v/list", 404, "not found: /example.com/Big/@v/list: unknown to this fake upstream\n"},
		{"/example.com/a/@v/v9.0.0.zip", 404, "not found: /example.com/a/@v/v9.0.0.zip: unknown to this fake upstream\n"},
		{"/sumdb/sum.upstream.test/supported", 200, ""},
		{"/sumdb/sum.golang.org/supported", 404, "not found: no such checksum database\n"},
	}
	for _, test := range tests {
		got, err := get(t, s.URL+test.path)
		if err != nil {
			t.Fatal(err)
		}
		if got.status != test.status || got.body != test.want {
			t.Errorf("GET %s = %d %q, want %d %q", test.path, got.status, got.body, test.status, test.want)
		}
	}
	if got := len(s.Requests()); got != len(tests) {
		t.Errorf("recorded %d requests, want %d", got, len(tests))
	}
	if got := s.Count(".zip"); got != 2 {
		t.Errorf("Count(.zip) = %d, want 2", got)
	}
	s.Reset()
	if got := s.Requests(); len(got) != 0 {
		t.Errorf("after Reset: %q", got)
	}
}

func TestRangesAndConditions(t *testing.T) {
	t.Parallel()
	s := start(t)
	url := s.URL + "/example.com/a/@v/list"
	first, _ := get(t, url)
	etag := first.header.Get("ETag")
	if got, _ := get(t, url, "If-None-Match", etag); got.status != http.StatusNotModified {
		t.Errorf("with its ETag: %d", got.status)
	}
	if got, _ := get(t, url, "Range", "bytes=7-", "If-Range", etag); got.status != 206 || got.body != "v1.1.0\nv1.2.0-rc.1\n" {
		t.Errorf("with Range: %d %q", got.status, got.body)
	}
	s.Fault("list", upstreamtest.Fault{NoRange: true, NoETag: true})
	if got, _ := get(t, url, "Range", "bytes=7-"); got.status != 200 || got.header.Get("ETag") != "" {
		t.Errorf("NoRange, NoETag: %d, ETag %q", got.status, got.header.Get("ETag"))
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	const list = "v1.0.0\nv1.1.0\nv1.2.0-rc.1\n"
	tests := []struct {
		name   string
		fault  upstreamtest.Fault
		status int
		body   string
		err    error
	}{
		{"status", upstreamtest.Fault{Status: 503}, 503, "Service Unavailable\n", nil},
		{"body", upstreamtest.Fault{Body: "x"}, 200, "x", nil},
		{"corrupt", upstreamtest.Fault{Corrupt: bytes.ToUpper}, 200, strings.ToUpper(list), nil},
		{"cut", upstreamtest.Fault{CutAfter: 3}, 200, "v1.", io.ErrUnexpectedEOF},
		{"wrong length", upstreamtest.Fault{WrongLength: true}, 200, list, io.ErrUnexpectedEOF},
		{"chunked", upstreamtest.Fault{Chunked: true}, 200, list, nil},
		{"chunked and cut", upstreamtest.Fault{Chunked: true, CutAfter: 3}, 200, "v1.", io.ErrUnexpectedEOF},
		{"drop", upstreamtest.Fault{Drop: true}, 0, "", errAny},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			test.fault.Times = 1
			s.Fault("/@v/list", test.fault)
			got, err := get(t, s.URL+"/example.com/a/@v/list")
			if got.status != test.status || got.body != test.body || !matches(err, test.err) {
				t.Errorf("got %d %q %v, want %d %q %v", got.status, got.body, err, test.status, test.body, test.err)
			}
			if got, err := get(t, s.URL+"/example.com/a/@v/list"); err != nil || got.body != list {
				t.Errorf("after Times: %q, %v", got.body, err)
			}
		})
	}
}

var errAny = errors.New("any error")

func matches(got, want error) bool {
	return errors.Is(got, want) || errors.Is(want, errAny) && got != nil
}

func TestStallAndRelease(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.Fault(".mod", upstreamtest.Fault{StallAfter: 3})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/example.com/a/@v/v1.0.0.mod", nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, 3)
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "mod" {
		t.Fatalf("first bytes %q, %v", first, err)
	}
	s.Heal()
	if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "ule example.com/a\n" {
		t.Errorf("after Heal: %q, %v", rest, err)
	}
}

func TestEndless(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.Fault("", upstreamtest.Fault{Endless: true})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/example.com/a/@v/list", nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.CopyN(io.Discard, resp.Body, 8<<20); err != nil {
		t.Errorf("ended after %d bytes: %v", n, err)
	}
}

// clientOps lets x/mod's own client check the checksum database.
type clientOps struct {
	sumdb.ClientOps

	t    *testing.T
	base string
	key  string

	mu     sync.Mutex
	config map[string][]byte
}

func (o *clientOps) ReadRemote(path string) ([]byte, error) {
	got, err := get(o.t, o.base+path)
	if err == nil && got.status != http.StatusOK {
		err = errors.New(got.body)
	}
	return []byte(got.body), err
}

func (o *clientOps) ReadConfig(file string) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if file == "key" {
		return []byte(o.key), nil
	}
	return o.config[file], nil
}

func (o *clientOps) WriteConfig(file string, _, data []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.config[file] = data
	return nil
}

func (o *clientOps) ReadCache(string) ([]byte, error) { return nil, errAny }
func (o *clientOps) WriteCache(string, []byte)        {}
func (o *clientOps) Log(string)                       {}
func (o *clientOps) SecurityError(msg string)         { o.t.Errorf("security error: %s", msg) }

func TestSumdb(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.LieZip("example.com/a", "v1.1.0")
	honest := start(t)
	honestClient := sumdb.NewClient(&clientOps{t: t, base: honest.SumdbURL(), key: honest.SumdbKey(), config: make(map[string][]byte)})
	for _, base := range []string{s.URL + "/sumdb/" + s.SumdbName(), s.SumdbURL()} {
		client := sumdb.NewClient(&clientOps{t: t, base: base, key: s.SumdbKey(), config: make(map[string][]byte)})
		if _, err := client.Lookup("example.com/none", "v1.0.0"); err == nil {
			t.Errorf("%s: an unknown module is on record", base)
		}
		truth, err := client.Lookup("example.com/a", "v1.0.0")
		if err != nil || len(truth) != 1 {
			t.Fatalf("%s: lookup = %q, %v", base, truth, err)
		}
		for _, file := range []string{"v1.1.0", "v1.1.0/go.mod"} {
			lied, _ := client.Lookup("example.com/a", file)
			honest, err := honestClient.Lookup("example.com/a", file)
			if err != nil || slices.Equal(lied, honest) != strings.HasSuffix(file, "go.mod") {
				t.Errorf("%s: LieZip made of %s %q, without: %q, %v", base, file, lied, honest, err)
			}
		}
		s.SumdbOff(true)
	}
	if got, _ := get(t, s.URL+"/sumdb/"+s.SumdbName()+"/supported"); got.status != 404 {
		t.Errorf("supported after SumdbOff: %d", got.status)
	}
}

func TestZipsAreReproducible(t *testing.T) {
	t.Parallel()
	m := upstreamtest.Module{Path: "example.com/p", Version: "v1.0.0", Pad: 300_000}
	a, b := upstreamtest.New(t, m), upstreamtest.New(t, m)
	got, want := a.Zip(m.Path, m.Version), b.Zip(m.Path, m.Version)
	if !bytes.Equal(got, want) || len(got) < 300_000 {
		t.Errorf("two zips of %d and %d bytes differ or are too small", len(got), len(want))
	}
}

// TestGoCommand has the real go command download and verify modules.
func TestGoCommand(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.Add(upstreamtest.Module{Path: "example.com/p", Version: "v1.0.0", Pad: 1 << 20})
	s.Lie("example.com/a", "v1.1.0")
	download := func(m string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "go", "mod", "download", m)
		cmd.Dir = t.TempDir()
		cmd.Env = append(os.Environ(), "GOPROXY="+s.URL, "GOSUMDB="+s.SumdbKey(), "GOMODCACHE="+t.TempDir(), "GOPATH="+t.TempDir(),
			"GOFLAGS=-modcacherw", "GOTOOLCHAIN=local", "GONOSUMDB=", "GOPRIVATE=", "GONOPROXY=", "GOWORK=off")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, m := range []string{"example.com/a@v1.0.0", "example.com/p@latest", "example.com/Big@latest", "example.com/old@v2.0.0+incompatible"} {
		if out, err := download(m); err != nil {
			t.Errorf("%s: %v\n%s", m, err, out)
		}
	}
	if out, err := download("example.com/a@v1.1.0"); err == nil || !strings.Contains(out, "SECURITY ERROR") {
		t.Errorf("a lie of the checksum database went through: %v\n%s", err, out)
	}
	if s.Count("/supported") == 0 {
		t.Error("the checksum database was not asked")
	}
}

func TestBrokenServersFail(t *testing.T) {
	t.Parallel()
	for _, b := range upstreamtest.Broken(t) {
		tr := &http.Transport{DialContext: b.Dial}
		defer tr.CloseIdleConnections()
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, b.URL, nil)
		if resp, err := (&http.Client{Transport: tr}).Do(req); err == nil {
			resp.Body.Close()
			t.Errorf("%s: answers %s", b.Name, resp.Status)
		}
	}
}

func TestDialIsSealed(t *testing.T) {
	t.Parallel()
	if conn, err := upstreamtest.Dial(t.Context(), "tcp", "192.0.2.1:80"); err == nil {
		conn.Close()
		t.Error("connected to an address that is not loopback")
	}
}

func TestParseModulesRejects(t *testing.T) {
	t.Parallel()
	if _, err := upstreamtest.ParseModules([]byte("-- a.go --\n")); err == nil {
		t.Error("a file without a module was accepted")
	}
}

func TestLoadDir(t *testing.T) {
	t.Parallel()
	mods, err := upstreamtest.LoadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range mods {
		got = append(got, m.Path+"@"+m.Version)
	}
	if want := []string{"example.com/greet@v1.0.0", "example.com/greet@v1.1.0"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
