package upstreamtest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
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

func get(t *testing.T, url string, header ...string) (*http.Response, string, error) {
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
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
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
		resp, got, err := get(t, s.URL+test.path)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != test.status || got != test.want {
			t.Errorf("GET %s = %d %q, want %d %q", test.path, resp.StatusCode, got, test.status, test.want)
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
	resp, _, _ := get(t, url)
	etag := resp.Header.Get("ETag")
	if resp, _, _ := get(t, url, "If-None-Match", etag); resp.StatusCode != http.StatusNotModified {
		t.Errorf("with its ETag: %s", resp.Status)
	}
	if resp, body, _ := get(t, url, "Range", "bytes=7-", "If-Range", etag); resp.StatusCode != 206 || body != "v1.1.0\nv1.2.0-rc.1\n" {
		t.Errorf("with Range: %s %q", resp.Status, body)
	}
	s.Fault("list", upstreamtest.Fault{NoRange: true, NoETag: true})
	if resp, _, _ := get(t, url, "Range", "bytes=7-"); resp.StatusCode != 200 || resp.Header.Get("ETag") != "" {
		t.Errorf("NoRange, NoETag: %s, ETag %q", resp.Status, resp.Header.Get("ETag"))
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
			resp, body, err := get(t, s.URL+"/example.com/a/@v/list")
			status := 0
			if resp != nil {
				status = resp.StatusCode
			}
			if status != test.status || body != test.body || !matches(err, test.err) {
				t.Errorf("got %d %q %v, want %d %q %v", status, body, err, test.status, test.body, test.err)
			}
			if _, body, err := get(t, s.URL+"/example.com/a/@v/list"); err != nil || body != list {
				t.Errorf("after Times: %q, %v", body, err)
			}
		})
	}
}

var errAny = errors.New("any error")

func matches(got, want error) bool {
	return errors.Is(got, want) || want == errAny && got != nil
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
	resp, body, err := get(o.t, o.base+path)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return []byte(body), err
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
	if resp, _, _ := get(t, s.URL+"/sumdb/"+s.SumdbName()+"/supported"); resp.StatusCode != 404 {
		t.Errorf("supported after SumdbOff: %s", resp.Status)
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
