package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/internal/cache"
)

// failure is one row of the table of errors.
type failure struct {
	name    string
	err     error
	status  int
	caching string
	retry   string
	detail  string
	text    string
}

var failures = []failure{
	{
		"not found", &cache.Error{Reason: cache.NotFound, Source: "proxy.example.com", Text: "no such version"},
		404, "public, max-age=60", "", "not_found", "not found: golang.org/x/mod@v0.20.0: proxy.example.com: no such version\n",
	},
	{
		"wrapped", fmt.Errorf("asking: %w", &cache.Error{Reason: cache.NotFound, Text: "no such version"}),
		404, "public, max-age=60", "", "not_found", "not found: golang.org/x/mod@v0.20.0: no such version\n",
	},
	{
		"gone", &cache.Error{Reason: cache.Gone, Source: "proxy.example.com", Text: "removed"},
		410, "public, max-age=60", "", "gone", "not found: golang.org/x/mod@v0.20.0: proxy.example.com: removed\n",
	},
	{
		"not cached", &cache.Error{Reason: cache.NotCached, Text: "not cached, and fetching is off"},
		404, "no-store", "", "not_cached", "not found: golang.org/x/mod@v0.20.0: not cached, and fetching is off\n",
	},
	{
		"malformed", &cache.Error{Reason: cache.Malformed, Text: "no such name"},
		404, "public, max-age=86400", "", "malformed", "not found: golang.org/x/mod@v0.20.0: no such name\n",
	},
	{
		"denied", &cache.Error{Reason: cache.Denied, Source: "policy", Text: "licence"},
		403, "no-store", "", "denied", "golang.org/x/mod@v0.20.0: denied: policy: licence\n",
	},
	{
		"busy", &cache.Error{Reason: cache.Busy, RetryAfter: 1500 * time.Millisecond},
		503, "no-store", "2", "busy", "golang.org/x/mod@v0.20.0: busy; try again in 2 s\n",
	},
	{
		"broken", &cache.Error{Reason: cache.Broken, Source: "proxy.example.com", Text: "connection refused"},
		502, "no-store", "1", "upstream_broken", "golang.org/x/mod@v0.20.0: proxy.example.com is failing, not this proxy; try again later: proxy.example.com: connection refused\n",
	},
	{
		"broken by nobody", &cache.Error{Reason: cache.Broken, Text: "no database knows it; list it with --private"},
		502, "no-store", "1", "upstream_broken", "golang.org/x/mod@v0.20.0: no database knows it; list it with --private\n",
	},
	{
		"slow", &cache.Error{Reason: cache.Slow, Source: "proxy.example.com", Text: "silent for 30 s", RetryAfter: time.Minute},
		504, "no-store", "60", "upstream_slow", "golang.org/x/mod@v0.20.0: proxy.example.com did not answer in time; try again later: proxy.example.com: silent for 30 s\n",
	},
	{
		"mismatch", &cache.Error{Reason: cache.Mismatch, Source: "sum.golang.org", Text: "h1 differs", RetryAfter: time.Minute},
		502, "no-store", "", "checksum_mismatch", "golang.org/x/mod@v0.20.0: checksum mismatch, nothing was kept; do not switch verification off, tell whoever runs the source: sum.golang.org: h1 differs\n",
	},
	{
		"internal", &cache.Error{Reason: cache.Internal, Text: "secret detail"},
		500, "no-store", "", "internal", "golang.org/x/mod@v0.20.0: internal server error of this proxy; its log says more\n",
	},
	{
		"foreign", fs.ErrNotExist,
		500, "no-store", "", "internal", "golang.org/x/mod@v0.20.0: internal server error of this proxy; its log says more\n",
	},
}

// TestErrors holds each failure against its answer, before and in the middle of
// the first read, for what goes through memory and what does not, GET and HEAD.
func TestErrors(t *testing.T) {
	t.Parallel()
	for _, test := range failures {
		for _, name := range []string{modName, zipName} {
			t.Run(test.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				c := newFakeCache(t)
				g := newGateway(t, gateway.Config{Cache: c})
				check := func(how, method string) {
					r := do(g, method, "/"+name)
					want := test.text
					if method == "HEAD" {
						want = ""
					}
					if got := body(t, r); r.StatusCode != test.status || got != want {
						t.Errorf("%s: got %d %q, want %d %q", how, r.StatusCode, got, test.status, want)
					}
					checkHeaders(t, r, "Cache-Control", test.caching, "Retry-After", test.retry, "Content-Type", "text/plain; charset=utf-8",
						"X-Content-Type-Options", "nosniff", "Cache-Status", "ringmod; fwd=miss; detail="+test.detail,
						"ETag", "", "Last-Modified", "", "Age", "", "Accept-Ranges", "", "Content-Length", fmt.Sprint(len(test.text)))
				}
				c.fail(name, test.err)
				check("Get fails", "GET")
				check("Get fails", "HEAD")
				for how, object := range map[string]*cache.Object{
					"first Read fails":    {Size: 9, ModTime: modTime, Body: &fill{err: test.err}},
					"first WriteTo fails": {Size: -1, Body: &pushed{fill{err: test.err}}},
				} {
					c.on(name, func(context.Context, cache.Request) (*cache.Object, error) { return object, nil })
					check(how, "GET")
				}
			})
		}
	}
}

func TestErrorsOfPrivateModules(t *testing.T) {
	t.Parallel()
	c := newFakeCache(t)
	c.fail("corp.example.com/secret/@v/list", &cache.Error{Reason: cache.NotFound})
	c.fail("golang.org/x/mod/@v/list", &cache.Error{Reason: cache.NotFound})
	g := newGateway(t, gateway.Config{Cache: c, Private: "*.example.com"})
	checkHeaders(t, do(g, "GET", "/corp.example.com/secret/@v/list"), "Cache-Control", "private, max-age=60")
	checkHeaders(t, do(g, "GET", "/golang.org/x/mod/@v/list"), "Cache-Control", "public, max-age=60")
}

// TestErrorTextFitsTheGoCommand applies the go command's own rules
// (cmd/go/internal/web/api.go) to texts that upstreams might send.
func TestErrorTextFitsTheGoCommand(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"two\nlines", "\n\nblank first", "tab\tand \x1b[31mcolour\x1b[0m", "bad \xff\xfe utf8", "\u202eright to left\u200b",
		strings.Repeat("long ", 500), strings.Repeat("é", 1000), strings.Repeat("\n", 1000), strings.Repeat("<html>", 10) + "\r\n\x00", "",
	} {
		c := newFakeCache(t)
		c.fail(modName, &cache.Error{Reason: cache.Broken, Source: "proxy.example.com", Text: text})
		got := body(t, do(newGateway(t, gateway.Config{Cache: c}), "GET", "/"+modName))
		line, ended := strings.CutSuffix(got, "\n")
		if !ended || strings.TrimSpace(line) == "" || strings.Contains(line, "\n") || len(got) > 640 || !utf8.ValidString(got) {
			t.Errorf("%q became %q", text, got)
		}
		if i := strings.IndexFunc(line, func(r rune) bool { return !unicode.IsGraphic(r) }); i >= 0 {
			t.Errorf("%q became %q with a character that the go command refuses at %d", text, got, i)
		}
		if !strings.HasPrefix(line, "golang.org/x/mod@v0.20.0: ") {
			t.Errorf("%q became %q without the module", text, got)
		}
	}
}

// TestPaths sends each path as it stands over a real connection. The cache
// fails the test when anything but a proper target reaches it.
func TestPaths(t *testing.T) {
	t.Parallel()
	tests := []struct {
		path   string
		status int
		text   string // in the body
	}{
		{"/golang.org/x/mod/@v/list", 200, "v1.0.0"},
		{"/golang.org/x/mod/@v/list?go-get=1&token=secret", 200, "v1.0.0"},
		{"/golang.org%2fx%2fmod/@v/list", 400, "malformed"},
		{"/golang.org%2Fx%2Fmod/@v/list", 400, "malformed"},
		{"/golang.org/x/mod%5c@v/list", 400, "malformed"},
		{"/golang.org/x/mod%5C@v/list", 400, "malformed"},
		{"/golang.org/x/mod/@v/list%00", 400, "malformed"},
		{"/golang.org/x/mod/@v/list%0a", 400, "malformed"},
		{"/golang.org/x/mod/@v/..%2f..%2f..%2fetc%2fpasswd", 400, "malformed"},
		{"/golang.org/x/mod/@v/%2e%2e/%2e%2e/list", 400, "malformed"},
		{"/golang.org/x/../mod/@v/list", 400, "malformed"},
		{"/golang.org/x/./mod/@v/list", 400, "malformed"},
		{"/../../etc/passwd", 400, "malformed"},
		{"/%2e%2e/%2e%2e/etc/passwd", 400, "malformed"},
		{"/%252e%252e/%252e%252e/etc/passwd", 400, "malformed"},
		{"//golang.org/x/mod/@v/list", 400, "malformed"},
		{"/golang.org//x/mod/@v/list", 400, "malformed"},
		{"/golang.org/x/mod/@v/list/", 400, "malformed"},
		{"/golang.org/x/mod/", 400, "malformed"},
		{"/favicon.ico", 400, "malformed"},
		{"/cached-only", 400, "malformed"},
		{"/cached-only/", 400, "malformed"},
		{"/cached-only/cached-only/golang.org/x/mod/@v/list", 404, "malformed"},
		{"/golang.org/X/mod/@v/list", 404, "not found: malformed"},
		{"/golang.org/!X/mod/@v/list", 404, "not found: malformed"},
		{"/golang.org/!!x/mod/@v/list", 404, "not found: malformed"},
		{"/golang.org/x/mod!/@v/list", 404, "not found: malformed"},
		{"/golang.org/x/m%C3%A9/@v/list", 404, "not found: malformed"},
		{"/golang.org/x/mod/@v/master.zip", 404, "not found: malformed"},
		{"/golang.org/x/mod/@v/v1.0.0+meta.mod", 404, "not found: malformed"},
		{"/golang.org/x/mod/@v/a%252fb.zip", 404, "not found: malformed"},
		{"/nodot/@v/list", 404, "not found: malformed"},
		{"/sumdb/sum.golang.org/other", 404, "malformed"},
		{"/sumdb/sum.golang.org/tile/8/0/1", 404, "malformed"},
		{"/sumdb/other.example.com/supported", 404, "not served here"},
		{"/sumdb/other.example.com/latest", 404, "not served here"},
		{"/sumdb/other.example.com/lookup/golang.org/x/mod@v1.0.0", 404, "not served here"},
		{"/sumdb/other.example.com/tile/8/0/001", 404, "not served here"},
		{"/sumdb/localhost/supported", 404, "not served here"},
		{"/sumdb/sum.golang.org/supported", 200, ""},
		{"/sumdb/localhost/a/b/supported", 200, ""},
		{"/cached-only/sumdb/sum.golang.org/supported", 200, ""},
	}
	c := newFakeCache(t)
	c.serve(listName, []byte("v1.0.0\n"), cache.Object{})
	url := start(t, newGateway(t, gateway.Config{Cache: c, Sumdbs: []string{"sum.golang.org", "localhost/a/b"}}))
	for _, test := range tests {
		r := raw(t, url, "GET "+test.path+" HTTP/1.1\r\nHost: x\r\n\r\n")
		got := body(t, r)
		if r.StatusCode != test.status || !strings.Contains(got, test.text) {
			t.Errorf("%s: got %d %q, want %d with %q", test.path, r.StatusCode, got, test.status, test.text)
		}
		if r.StatusCode == http.StatusOK {
			continue
		}
		checkHeaders(t, r, "Content-Type", "text/plain; charset=utf-8", "Location", "")
		if strings.Contains(got, "malformed") {
			checkHeaders(t, r, "Cache-Control", "public, max-age=86400")
		}
	}
}

// TestEscapes asks for one object in every spelling that the go command uses.
func TestEscapes(t *testing.T) {
	t.Parallel()
	const name = "github.com/!azure/sdk/@v/v1.0.0-!r!c1+incompatible.zip"
	c := newFakeCache(t)
	c.fail(name, &cache.Error{Reason: cache.NotFound})
	c.serve("github.com/!azure/sdk/@v/v1.0.0-!r!c1.info", []byte("{}"), cache.Object{})
	url := start(t, newGateway(t, gateway.Config{Cache: c}))
	for _, path := range []string{
		"/github.com/!azure/sdk/@v/v1.0.0-!r!c1.info",
		"/github.com/%21azure/sdk/@v/v1.0.0-%21r%21c1.info",
		"/github.com/%21azure/sdk/%40v/v1.0.0-!r%21c1.info",
		"/cached-only/github.com/%21azure/sdk/@v/v1.0.0-%21r%21c1.info",
	} {
		r := raw(t, url, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n")
		if got := body(t, r); r.StatusCode != http.StatusOK || got != "{}" {
			t.Errorf("%s: got %d %q, want 200 {}", path, r.StatusCode, got)
		}
	}
	if got := len(c.asked()); got != 1 {
		t.Errorf("got %d Gets for spellings of one object, want 1", got)
	}
}

func TestSupported(t *testing.T) {
	t.Parallel()
	g := newGateway(t, gateway.Config{Sumdbs: []string{"sum.golang.org"}})
	for _, method := range []string{"GET", "HEAD"} {
		r := do(g, method, "/sumdb/sum.golang.org/supported")
		if got := body(t, r); r.StatusCode != http.StatusOK || got != "" {
			t.Errorf("%s: got %d %q, want 200 and nothing", method, r.StatusCode, got)
		}
		checkHeaders(t, r, "Content-Length", "0", "Content-Type", "text/plain; charset=UTF-8")
	}
}

func TestMethods(t *testing.T) {
	t.Parallel()
	url := start(t, newGateway(t, gateway.Config{}))
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"} {
		for _, path := range []string{"/golang.org/x/mod/@v/list", "/", "/healthz", "*"} {
			if method == "CONNECT" {
				path = "x:80"
			} else if path == "*" && method != "OPTIONS" {
				continue
			}
			r := raw(t, url, method+" "+path+" HTTP/1.1\r\nHost: x:80\r\n\r\n")
			if r.StatusCode != http.StatusMethodNotAllowed {
				t.Errorf("%s %s: got %d, want 405", method, path, r.StatusCode)
			}
			checkHeaders(t, r, "Allow", "GET, HEAD", "Content-Type", "text/plain; charset=utf-8")
		}
	}
}

func TestLongURL(t *testing.T) {
	t.Parallel()
	url := start(t, newGateway(t, gateway.Config{}))
	for _, path := range []string{"/golang.org/" + strings.Repeat("a/", 5000) + "@v/list", "/golang.org/x/@v/list?" + strings.Repeat("q", 9000)} {
		r := raw(t, url, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n")
		if got := body(t, r); r.StatusCode != http.StatusRequestURITooLong || !strings.Contains(got, "longer") {
			t.Errorf("got %d %q, want 414", r.StatusCode, got)
		}
	}
}

func TestLoop(t *testing.T) {
	t.Parallel()
	c := newFakeCache(t)
	c.serve(modName, []byte("module golang.org/x/mod\n"), cache.Object{})
	g := newGateway(t, gateway.Config{Cache: c, Via: "1.1 ringmod-7f3a"})
	for via, want := range map[string]int{
		"":                                     200,
		"1.1 ringmod-other":                    200,
		"1.1 ringmod-7f3abc, 1.0 fred":         200,
		"1.1 ringmod-7f3a":                     502,
		"1.0 fred, 2.0 ringmod-7f3a (comment)": 502,
	} {
		r := do(g, "GET", "/"+modName, "Via", "1.0 first", "Via", via)
		if r.StatusCode != want {
			t.Errorf("Via %q: got %d, want %d", via, r.StatusCode, want)
		}
		if want == 502 {
			checkHeaders(t, r, "Cache-Control", "no-store")
			if got := body(t, r); !strings.Contains(got, "upstream list") {
				t.Errorf("got %q, want a text about the upstream list", got)
			}
		}
	}
}

// TestNoFetch checks that nobody who asked for the cache alone causes a fill.
func TestNoFetch(t *testing.T) {
	t.Parallel()
	tests := []struct {
		path, header string
		want         cache.Mode
	}{
		{"/" + listName, "", cache.AllowFill},
		{"/" + listName, "false", cache.AllowFill},
		{"/" + listName, "true", cache.OnlyIfCached},
		{"/" + zipName, "TRUE", cache.OnlyIfCached},
		{"/cached-only/" + zipName, "", cache.OnlyIfCached},
		{"/cached-only/" + listName, "", cache.OnlyIfCached},
	}
	for _, test := range tests {
		c := newFakeCache(t)
		for _, name := range []string{listName, zipName} {
			c.fail(name, &cache.Error{Reason: cache.NotCached, Text: "not cached"})
		}
		r := do(newGateway(t, gateway.Config{Cache: c}), "GET", test.path, "Disable-Module-Fetch", test.header)
		checkHeaders(t, r, "Cache-Control", "no-store")
		if got := c.asked(); r.StatusCode != http.StatusNotFound || len(got) != 1 || got[0].Mode != test.want {
			t.Errorf("%s with %q: got %d after %v, want 404 after mode %d", test.path, test.header, r.StatusCode, got, test.want)
		}
	}
}

// TestWhole checks who asks for complete objects.
func TestWhole(t *testing.T) {
	t.Parallel()
	for _, name := range []string{modName, zipName} {
		for _, test := range []struct {
			method string
			header []string
			want   bool
		}{
			{"GET", nil, false},
			{"HEAD", nil, true},
			{"GET", []string{"Range", "bytes=0-1"}, true},
			{"GET", []string{"If-None-Match", `"x"`}, true},
			{"GET", []string{"If-Modified-Since", lastModified}, true},
		} {
			c := newFakeCache(t)
			c.serve(name, []byte("0123456789"), cache.Object{})
			do(newGateway(t, gateway.Config{Cache: c}), test.method, "/"+name, test.header...)
			if !slices.ContainsFunc(c.asked(), func(r cache.Request) bool { return r.Whole == test.want }) {
				t.Errorf("%s %s %q: got %v, want Whole = %v", test.method, name, test.header, c.asked(), test.want)
			}
		}
	}
}

func TestCacheAnswersNothing(t *testing.T) {
	t.Parallel()
	for _, name := range []string{modName, zipName} {
		c := newFakeCache(t)
		c.on(name, func(context.Context, cache.Request) (*cache.Object, error) { return nil, nil })
		if r := do(newGateway(t, gateway.Config{Cache: c}), "GET", "/"+name); r.StatusCode != http.StatusInternalServerError {
			t.Errorf("%s: got %d, want 500", name, r.StatusCode)
		}
	}
}

var errUnexpected = errors.New("an error of the test")
