package test

import (
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// quick are timeouts for tests: long enough for a loaded machine to answer, as
// only the rows about silence wait for them.
var quick = upstream.Timeouts{ //nolint:gochecknoglobals // a constant in all but name
	Connect: 10 * time.Second, TLS: 10 * time.Second, Header: 10 * time.Second, Stall: 3 * time.Second, Retry: 500 * time.Millisecond,
}

// badDay is one misbehaviour of the upstream and what the developer gets.
type badDay struct {
	name   string
	fault  upstreamtest.Fault
	target string // default: the zip
	status int    // 0: the answer is cut
	text   string
	header map[string]string
	kept   bool // the answer is remembered as absence
}

const (
	bdModule = "example.com/m"
	bdZip    = bdModule + "/@v/v1.0.0.zip"
	bdMod    = bdModule + "/@v/v1.0.0.mod"
	bdInfo   = bdModule + "/@v/v1.0.0.info"
	bdList   = bdModule + "/@v/list"
)

func TestUpstreamBadDays(t *testing.T) {
	t.Parallel()
	const html = "<!doctype html><title>sign in</title>"
	garbage := func([]byte) []byte { return []byte("this is no zip") }
	tests := []badDay{
		{name: "403", fault: upstreamtest.Fault{Status: 403, Body: "blocked by policy"}, status: 403, text: "blocked by policy"},
		{name: "404", fault: upstreamtest.Fault{Status: 404, Body: "not found: no such version"}, status: 404, text: "not found: example.com/m@v1.0.0", kept: true},
		{name: "410", fault: upstreamtest.Fault{Status: 410, Body: "gone"}, status: 410, text: "gone", kept: true},
		{name: "429", fault: upstreamtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"30"}}}, status: 503, text: "429", header: map[string]string{"Retry-After": "30"}},
		{name: "500", fault: upstreamtest.Fault{Status: 500, Body: "oops"}, status: 502, text: "500"},
		{name: "503", fault: upstreamtest.Fault{Status: 503}, status: 502, text: "503"},
		{name: "504", fault: upstreamtest.Fault{Status: 504}, status: 502, text: "504"},
		{name: "HTML with 200 for a list", target: bdList, fault: upstreamtest.Fault{Body: html, ContentType: "text/html"}, status: 502, text: "HTML"},
		{name: "HTML with 200 for a .mod", target: bdMod, fault: upstreamtest.Fault{Body: html, ContentType: "text/plain"}, status: 502, text: bdModule},
		{name: "HTML with 200 for an .info", target: bdInfo, fault: upstreamtest.Fault{Body: html, ContentType: "application/json"}, status: 502, text: bdModule},
		{name: "HTML with 200 for a zip", fault: upstreamtest.Fault{Body: html, ContentType: "text/html"}, status: 502, text: bdModule},
		{name: "wrong length", fault: upstreamtest.Fault{WrongLength: true, NoRange: true}},
		{name: "cut body", fault: upstreamtest.Fault{CutAfter: 200_000, NoRange: true}},
		{name: "cut body of a .mod", target: bdMod, fault: upstreamtest.Fault{CutAfter: 3, NoRange: true}, status: 502, text: bdModule},
		{name: "endless .mod", target: bdMod, fault: upstreamtest.Fault{Endless: true}, status: 502, text: "larger than"},
		{name: "endless list", target: bdList, fault: upstreamtest.Fault{Endless: true}, status: 502, text: "larger than"},
		{name: "stalled body", fault: upstreamtest.Fault{StallAfter: 200_000, NoRange: true}},
		{name: "stalled .mod", target: bdMod, fault: upstreamtest.Fault{StallAfter: 3, NoRange: true}, status: 504, text: bdModule},
		{name: "no answer", fault: upstreamtest.Fault{DelayHeader: time.Minute}, status: 504, text: bdModule},
		{name: "bad zip", fault: upstreamtest.Fault{Corrupt: garbage}, status: 502, text: "zip"},
		{name: "dropped connection", fault: upstreamtest.Fault{Drop: true}, status: 502, text: "connection"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			fake := upstreamtest.New(t, upstreamtest.Module{Path: bdModule, Version: "v1.0.0", Pad: 1 << 20})
			fake.Fault("", test.fault)
			stack := harness.NewStack(t, t.TempDir(), upstream.Config{List: fake.URL, Timeouts: quick})
			test.check(t, stack)
			fake.Heal()
			test.checkAfter(t, stack)
		})
	}
}

// TestUpstreamBelowHTTP takes away the connection, the name or the trust.
func TestUpstreamBelowHTTP(t *testing.T) {
	t.Parallel()
	for _, broken := range upstreamtest.Broken(t) {
		t.Run(broken.Name, func(t *testing.T) {
			t.Parallel()
			stack := harness.NewStack(t, t.TempDir(), upstream.Config{List: broken.URL, Dial: broken.Dial, Timeouts: quick})
			badDay{status: 502, text: broken.Text}.check(t, stack)
		})
	}
}

func (b badDay) path() string {
	if b.target == "" {
		return bdZip
	}
	return b.target
}

// check asks and compares status, headers and text; and that nothing stays.
func (b badDay) check(t *testing.T, stack *harness.Stack) {
	t.Helper()
	got, err := fetch(t, stack.URL+"/"+b.path())
	if b.status == 0 {
		if err == nil {
			t.Errorf("got status %d and a complete body of %d bytes, want a cut answer", got.status, len(got.body))
		}
	} else {
		if err != nil || got.status != b.status || !strings.Contains(got.body, b.text) {
			t.Fatalf("got %d %q, %v, want status %d and a text with %q", got.status, got.body, err, b.status, b.text)
		}
		if got, want := got.header.Get("Content-Type"), "text/plain; charset=utf-8"; got != want {
			t.Errorf("Content-Type %q, want %q", got, want)
		}
		if cacheable := strings.Contains(got.header.Get("Cache-Control"), "max-age"); cacheable != b.kept {
			t.Errorf("Cache-Control %q: cacheable %v, want %v", got.header.Get("Cache-Control"), cacheable, b.kept)
		}
		if strings.Count(strings.TrimRight(got.body, "\n"), "\n") > 7 || len(got.body) > 648 {
			t.Errorf("the text is more than the go command shows: %q", got.body)
		}
	}
	for name, want := range b.header {
		if got := got.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if files := filesBelow(t, stack.Objects); len(files) > 0 {
		t.Errorf("stored after a failure: %v", files)
	}
}

// checkAfter asks again when the upstream is well: only absence is remembered, and for
// seconds that nobody could be reached.
func (b badDay) checkAfter(t *testing.T, stack *harness.Stack) {
	t.Helper()
	want := http.StatusOK
	if b.kept || b.header["Retry-After"] != "" { // the upstream asked us to stay away
		want = b.status
	}
	got, err := fetch(t, stack.URL+"/"+b.path())
	for err == nil && got.status != want && strings.Contains(got.body, "not asked again yet") {
		<-time.After(100 * time.Millisecond)
		got, err = fetch(t, stack.URL+"/"+b.path())
	}
	if err != nil || got.status != want {
		t.Errorf("when the upstream is well again: %v, %v (%.200q), want status %d", got.status, err, got.body, want)
	}
}

// answer is a response that was read whole.
type answer struct {
	status int
	header http.Header
	body   string
}

// fetch asks for url; an answer that was cut is an error.
func fetch(t *testing.T, url string) (answer, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(body)}, err
}

func filesBelow(t *testing.T, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
