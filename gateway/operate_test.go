package gateway_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/internal/cache"
)

var update = flag.Bool("update", false, "write golden files")

// golden compares got with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it); got:\n%s", file, got)
	}
}

func TestPage(t *testing.T) {
	t.Parallel()
	g := newGateway(t, gateway.Config{
		Version: "v0.1.0",
		Upstreams: []string{
			"https://user:hunter2@proxy.example.com/path?key=hunter2,https://hunter2@other.example.com|direct", "file:///srv/<modules>",
		},
		Sumdbs: []string{"sum.golang.org", "localhost/a/b"},
		Regions: func() []gateway.Region {
			return []gateway.Region{{Name: "eu", Nodes: 3, Up: 2, Short: true}, {Name: "<us>", Nodes: 2, Up: 2}}
		},
	})
	r := do(g, "GET", "http://cache.example.com:8080/")
	got := body(t, r)
	golden(t, "page.html", got)
	checkHeaders(t, r, "Content-Type", "text/html; charset=utf-8", "X-Content-Type-Options", "nosniff", "Cache-Control", "no-cache")
	if strings.Contains(got, "hunter2") {
		t.Error("the page shows a secret")
	}
	policy := r.Header.Get("Content-Security-Policy")
	if !strings.HasPrefix(policy, "default-src 'none'; style-src 'sha256-") || strings.Contains(policy, "unsafe") {
		t.Errorf("got policy %q", policy)
	}
	_, style, _ := strings.Cut(got, "<style>")
	style, _, _ = strings.Cut(style, "</style>")
	digest := sha256.Sum256([]byte(style))
	if want := "'sha256-" + base64.StdEncoding.EncodeToString(digest[:]) + "'"; !strings.Contains(policy, want) {
		t.Errorf("got policy %q, want %s, or no browser applies the style", policy, want)
	}
	if got := body(t, do(g, "HEAD", "/")); got != "" {
		t.Errorf("HEAD: got %q", got)
	}
}

func TestPageOfAClusterIsOfNow(t *testing.T) {
	t.Parallel()
	var regions []gateway.Region
	g := newGateway(t, gateway.Config{Regions: func() []gateway.Region { return regions }})
	if got := body(t, do(g, "GET", "/")); !strings.Contains(got, "No node has been met yet") {
		t.Errorf("got %s, want that no node has been met", got)
	}
	regions = []gateway.Region{{Name: "eu", Nodes: 1, Up: 1}}
	if got := body(t, do(g, "GET", "/")); !strings.Contains(got, "<td>eu</td><td>1 of 1</td><td>all in reach</td>") {
		t.Errorf("got %s, want region eu", got)
	}
	if got := body(t, do(newGateway(t, gateway.Config{}), "GET", "/")); strings.Contains(got, "cluster</h2>") {
		t.Errorf("got %s, want nothing of a cluster", got)
	}
}

func TestPageNamesTheHostAsked(t *testing.T) {
	t.Parallel()
	g := newGateway(t, gateway.Config{})
	for host, want := range map[string]string{
		"127.0.0.1:8080": "GOPROXY=http://127.0.0.1:8080<",
		"[::1]:8080":     "GOPROXY=http://[::1]:8080<",
		"a.example.com":  "GOPROXY=http://a.example.com<",
		"":               "GOPROXY=http://HOST<",
		`x"><script>`:    "GOPROXY=http://HOST<",
		"a;rm -rf":       "GOPROXY=http://HOST<",
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = host
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		if got := w.Body.String(); !strings.Contains(got, want) || strings.Contains(got, "<script>") {
			t.Errorf("host %q: got %s, want %q in it", host, got, want)
		}
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	var reason error
	ready := func() error { return reason }
	g := newGateway(t, gateway.Config{Ready: ready})
	admin := gateway.Admin(prometheus.NewRegistry(), ready)
	for _, h := range []http.Handler{g, admin} {
		reason = nil
		for _, path := range []string{"/healthz", "/readyz"} {
			if r := do(h, "GET", path); r.StatusCode != http.StatusOK || body(t, r) != "ok\n" {
				t.Errorf("%s: got %d, want 200 ok", path, r.StatusCode)
			}
		}
		reason = errors.New("no node\nto ask")
		r := do(h, "GET", "/readyz")
		if got := body(t, r); r.StatusCode != http.StatusServiceUnavailable || got != "not ready: no node to ask\n" {
			t.Errorf("got %d %q, want 503 and the reason", r.StatusCode, got)
		}
		checkHeaders(t, r, "Cache-Control", "no-store")
		if r := do(h, "GET", "/healthz"); r.StatusCode != http.StatusOK {
			t.Errorf("got %d, want health to be another thing than readiness", r.StatusCode)
		}
	}
	if r := do(g, "GET", "/robots.txt"); body(t, r) != "User-agent: *\nDisallow: /\n" {
		t.Errorf("robots.txt: got %d", r.StatusCode)
	}
}

// TestAccessLines freezes the access lines: keys, order, levels.
func TestAccessLines(t *testing.T) {
	t.Parallel()
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	c := newFakeCache(t)
	c.serve(zipName, []byte("PK"), cache.Object{ModTime: modTime})
	c.fail(modName, &cache.Error{Reason: cache.Broken, Source: "proxy.example.com", Text: "connection refused", Err: errors.New("dial tcp")})
	c.fail(infoName, &cache.Error{Reason: cache.Busy})
	c.fail(listName, &cache.Error{Reason: cache.NotFound, Text: "no such module"})
	c.fail("golang.org/x/mod/@latest", errUnexpected)
	c.on("golang.org/x/cut/@v/v1.0.0.zip", func(context.Context, cache.Request) (*cache.Object, error) {
		return &cache.Object{Size: -1, Body: &fill{[][]byte{[]byte("PK")}, &cache.Error{Reason: cache.Slow, Text: "silent"}}}, nil
	})
	logger, lines := logged(slog.LevelDebug)
	g := newGateway(t, gateway.Config{Cache: c, Logger: logger, Region: "eu", Node: "n1"})
	do(g, "GET", "/"+zipName+"?token=hunter2", "Traceparent", trace, "Authorization", "Bearer hunter2")
	do(g, "HEAD", "/"+zipName, "Traceparent", "00-zz")
	do(g, "GET", "/"+zipName, "Range", "bytes=0-0")
	for _, path := range []string{"/" + modName, "/" + infoName, "/" + listName, "/golang.org/x/mod/@latest", "/golang.org/x/cut/@v/v1.0.0.zip", "/golang.org/X/@v/list", "/healthz", "/"} {
		do(g, "GET", path)
	}
	do(g, "POST", "/")
	got := regexp.MustCompile(`"time":"[^"]*"`).ReplaceAllString(lines(), `"time":"T"`)
	got = regexp.MustCompile(`"duration_ms":[0-9.e-]+`).ReplaceAllString(got, `"duration_ms":D`)
	golden(t, "access.jsonl", got)
	if strings.Contains(got, "hunter2") {
		t.Error("a line shows a secret")
	}
}

func TestTraceID(t *testing.T) {
	t.Parallel()
	const id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for header, want := range map[string]string{
		"00-" + id + "-" + parent + "-01":                      id,
		"cc-" + id + "-" + parent + "-01-later":                id,
		"00-" + id + "-" + parent + "-01-later":                "",
		"ff-" + id + "-" + parent + "-01":                      "",
		"00-" + strings.ToUpper(id) + "-" + parent + "-01":     "",
		"00-" + strings.Repeat("0", 32) + "-" + parent + "-01": "",
		"00-" + id + "-" + strings.Repeat("0", 16) + "-01":     "",
		"00_" + id + "-" + parent + "-01":                      "",
		"00-" + id:                                             "",
		"":                                                     "",
	} {
		logger, lines := logged(slog.LevelDebug)
		do(newGateway(t, gateway.Config{Logger: logger}), "GET", "/healthz", "Traceparent", header)
		var line struct {
			TraceID string `json:"trace_id"`
		}
		if err := json.Unmarshal([]byte(lines()), &line); err != nil || line.TraceID != want {
			t.Errorf("%q: got %q, %v, want %q", header, line.TraceID, err, want)
		}
	}
}

// TestPanics checks that a panic is one request's misfortune, wherever it happens.
func TestPanics(t *testing.T) {
	t.Parallel()
	for _, name := range []string{modName, zipName} {
		c := newFakeCache(t)
		c.on(name, func(context.Context, cache.Request) (*cache.Object, error) { panic("boom") })
		logger, lines := logged(slog.LevelInfo)
		r := do(newGateway(t, gateway.Config{Cache: c, Logger: logger}), "GET", "/"+name)
		if got := body(t, r); r.StatusCode != http.StatusInternalServerError || strings.Contains(got, "boom") {
			t.Errorf("%s: got %d %q, want 500 without details", name, r.StatusCode, got)
		}
		checkHeaders(t, r, "Cache-Control", "no-store")
		if got := lines(); !strings.Contains(got, `"stack":`) || !strings.Contains(got, `"status":500`) || !strings.Contains(got, "boom") {
			t.Errorf("%s: got %s, want a stack and an access line", name, got)
		}
	}
	c := newFakeCache(t)
	c.on(zipName, func(context.Context, cache.Request) (*cache.Object, error) { panic(http.ErrAbortHandler) })
	logger, lines := logged(slog.LevelInfo)
	if r := do(newGateway(t, gateway.Config{Cache: c, Logger: logger}), "GET", "/"+zipName); r != nil {
		t.Errorf("got %d, want ErrAbortHandler to be passed on", r.StatusCode)
	}
	if got := lines(); strings.Contains(got, "stack") || !strings.Contains(got, `"msg":"request"`) {
		t.Errorf("got %s, want an access line alone", got)
	}
}

// TestMetrics reads what a registry gathers after a few requests.
func TestMetrics(t *testing.T) {
	t.Parallel()
	c := newFakeCache(t)
	c.serve(modName, []byte("content"), cache.Object{})
	c.fail(listName, &cache.Error{Reason: cache.NotFound})
	registry := prometheus.NewRegistry()
	g := newGateway(t, gateway.Config{Cache: c, Metrics: registry})
	for _, path := range []string{modName, modName, listName, "golang.org/X/@v/list", "healthz", ""} {
		do(g, "GET", "/"+path)
	}
	text := body(t, do(gateway.Admin(registry, nil), "GET", "/metrics"))
	for _, want := range []string{
		`ringmod_http_requests_total{cache="hit",kind="mod",status="200"} 2`,
		`ringmod_http_requests_total{cache="miss",kind="list",status="404"} 1`,
		`ringmod_http_requests_total{cache="bypass",kind="none",status="404"} 1`,
		`ringmod_http_requests_total{cache="bypass",kind="health",status="200"} 1`,
		`ringmod_http_requests_total{cache="bypass",kind="page",status="200"} 1`,
		`ringmod_http_request_duration_seconds_count{kind="mod"} 2`,
		`ringmod_http_requests_in_flight 0`,
		`ringmod_http_memory_bytes `,
		`ringmod_http_response_bytes_total `,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("got no %s", want)
		}
	}
	if _, err := gateway.New(gateway.Config{Cache: c, Metrics: registry}); err == nil {
		t.Error("a second gateway with the same registry: no error")
	}
}

func TestAdminProfiles(t *testing.T) {
	t.Parallel()
	if r := do(gateway.Admin(prometheus.NewRegistry(), nil), "GET", "/debug/pprof/goroutine?debug=1"); r.StatusCode != http.StatusOK {
		t.Errorf("got %d, want a profile", r.StatusCode)
	}
}

// TestImports holds the direction of dependencies.
func TestImports(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(pkg, "github.com/ringmod/ringmod/node") || strings.Contains(pkg, "memberlist") {
			t.Errorf("the gateway imports %s", pkg)
		}
	}
}

// FuzzServeHTTP sends what may come from outside. Nothing may panic, be
// answered with 5xx or reach the Cache malformed.
func FuzzServeHTTP(f *testing.F) {
	f.Add("GET", "/golang.org/x/mod/@v/list", "Range", "bytes=0-")
	f.Add("HEAD", "/cached-only/golang.org/x/mod/@v/v1.0.0.zip", "If-None-Match", "*")
	f.Add("GET", "/sumdb/sum.golang.org/tile/8/0/x001/234", "If-Range", `W/"x"`)
	f.Add("GET", "/sumdb/sum.golang.org/lookup/golang.org/x/mod@v1.0.0", "Via", "1.1 x,, 2")
	f.Add("GET", "/golang.org/%21x/@v/v1.0.0%2f..%00.mod?a=b", "Traceparent", "00-")
	f.Add("OPTIONS", "/", "Disable-Module-Fetch", "true")
	f.Fuzz(func(t *testing.T, method, uri, key, value string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\n%s: %s\r\n\r\n", method, uri, key, value))))
		if err != nil {
			return
		}
		c := &anything{newFakeCache(t)}
		g := newGateway(t, gateway.Config{Cache: c, Via: "1.1 ringmod-x y", Sumdbs: []string{"sum.golang.org"}})
		for range 2 {
			w := httptest.NewRecorder()
			g.ServeHTTP(w, r)
			if w.Code >= 500 && !strings.Contains(w.Body.String(), "upstream list") {
				t.Errorf("%s %q, %q: %q: got %d %q", method, uri, key, value, w.Code, w.Body)
			}
			if got, _, _ := strings.Cut(w.Header().Get("Content-Type"), ";"); w.Code >= 400 && w.Body.Len() > 0 && got != "text/plain" {
				t.Errorf("got an error of type %q", got)
			}
		}
	})
}

// anything is a Cache that has everything and asks that names be proper.
type anything struct{ *fakeCache }

func (a *anything) Get(ctx context.Context, req cache.Request) (*cache.Object, error) {
	a.serve(req.Target.String(), []byte("content"), cache.Object{ModTime: modTime, TTL: time.Minute})
	return a.fakeCache.Get(ctx, req)
}
