package upstream_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

// The modules of every test's fake upstream.
var mods = []upstreamtest.Module{
	{Path: "example.com/a", Version: "v1.0.0", Pad: 20_000},
	{Path: "example.com/a", Version: "v1.1.0"},
	{Path: "example.com/Big", Version: "v1.0.0-RC1"},
}

const (
	list = "example.com/a/@v/list"
	mod  = "example.com/a/@v/v1.0.0.mod"
	zip  = "example.com/a/@v/v1.0.0.zip"
)

// quick has timeouts for tests on loopback.
var quick = upstream.Timeouts{Connect: 2 * time.Second, TLS: 2 * time.Second, Header: 2 * time.Second, Stall: 2 * time.Second, Retry: 500 * time.Millisecond}

func client(t *testing.T, cfg upstream.Config) *upstream.Client {
	t.Helper()
	if cfg.Timeouts == (upstream.Timeouts{}) {
		cfg.Timeouts = quick
	}
	if cfg.Dial == nil {
		cfg.Dial = upstreamtest.Dial
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	c, err := upstream.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func parse(t *testing.T, name string) target.Target {
	t.Helper()
	tt, err := target.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return tt
}

// read fetches name and reads it all.
func read(t *testing.T, c *upstream.Client, name string) (string, error) {
	t.Helper()
	return readCtx(t.Context(), t, c, name)
}

func readCtx(ctx context.Context, t *testing.T, c *upstream.Client, name string) (string, error) {
	t.Helper()
	tt := parse(t, name)
	var resp *upstream.Response
	var err error
	if tt.Kind.Sumdb() {
		resp, err = c.FetchSumdb(ctx, tt, nil)
	} else {
		resp, err = c.Fetch(ctx, tt, upstream.Validators{})
	}
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.Size >= 0 && resp.Size != int64(len(data)) {
		t.Errorf("%s: %d bytes, announced %d", name, len(data), resp.Size)
	}
	return string(data), err
}

// checkError compares reason and a part of the text, and the rules for all texts.
func checkError(t *testing.T, err error, reason cache.Reason, text string) *cache.Error {
	t.Helper()
	e, ok := errors.AsType[*cache.Error](err)
	if !ok {
		t.Fatalf("got %v, want a *cache.Error with reason %v", err, reason)
	}
	if e.Reason != reason || !strings.Contains(e.Text, text) {
		t.Errorf("got %v %q, want %v and %q", e.Reason, e.Text, reason, text)
	}
	if len(e.Text) > 320 || strings.ContainsAny(e.Text, "\n\r\t\x1b") || strings.Contains(e.Error(), "secret") {
		t.Errorf("text not fit for a terminal: %q", e.Error())
	}
	if errors.Is(err, io.EOF) {
		t.Errorf("%v matches io.EOF", err)
	}
	return e
}

func TestFetchesEveryKind(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	s.Query("example.com/a", "main", "v1.1.0")
	c := client(t, upstream.Config{List: s.URL})
	for name, want := range map[string][]byte{
		list:                                   s.List("example.com/a"),
		"example.com/a/@latest":                s.Info("example.com/a", "v1.1.0"),
		"example.com/a/@v/main.info":           s.Info("example.com/a", "v1.1.0"),
		"example.com/a/@v/v1.0.0.info":         s.Info("example.com/a", "v1.0.0"),
		mod:                                    s.Mod("example.com/a", "v1.0.0"),
		zip:                                    s.Zip("example.com/a", "v1.0.0"),
		"example.com/!big/@v/v1.0.0-!r!c1.zip": s.Zip("example.com/Big", "v1.0.0-RC1"),
	} {
		if got, err := read(t, c, name); err != nil || got != string(want) {
			t.Errorf("%s: %d bytes, %v, want %d bytes", name, len(got), err, len(want))
		}
	}
}

func TestRequestHeaders(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	front, seen := record(t, s)
	c := client(t, upstream.Config{List: front + "/base/", Version: "1.2", Contact: "https://ringmod.test/", Via: "1.1 ringmod-7"})
	for _, name := range []string{"example.com/!big/@v/v1.0.0-!r!c1.mod", zip} {
		if _, err := read(t, c, name); err != nil {
			t.Fatal(err)
		}
	}
	r := <-seen
	if got, want := r.URL.EscapedPath(), "/base/example.com/%21big/@v/v1.0.0-%21r%21c1.mod"; got != want {
		t.Errorf("path %q, want %q", got, want)
	}
	for key, want := range map[string]string{"Via": "1.1 ringmod-7", "User-Agent": "ringmod/1.2 (+https://ringmod.test/)", "Accept-Encoding": "gzip"} {
		if got := r.Header.Get(key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	if got := (<-seen).Header.Get("Accept-Encoding"); got != "identity" {
		t.Errorf("zip with Accept-Encoding %q", got)
	}
}

// record serves s below any first path element and tells what came.
func record(t *testing.T, s http.Handler) (base string, seen <-chan *http.Request) {
	t.Helper()
	requests := make(chan *http.Request, 100)
	base = serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests <- r.Clone(context.WithoutCancel(r.Context()))
		if rest, ok := strings.CutPrefix(r.URL.Path, "/base"); ok {
			r.URL.Path = rest
		}
		s.ServeHTTP(w, r)
	})
	return base, requests
}

func TestStatesOfAnUpstream(t *testing.T) {
	t.Parallel()
	const long = 400
	tests := []struct {
		name     string
		target   string
		fault    upstreamtest.Fault
		reason   cache.Reason
		text     string
		requests int
	}{
		{"404", mod, upstreamtest.Fault{Status: 404, Body: "not found: x: unknown revision\nmore"}, cache.NotFound, "not found: x: unknown revision", 1},
		{"404 html", mod, upstreamtest.Fault{Status: 404, Body: "<html>", ContentType: "text/html"}, cache.NotFound, "404 Not Found", 1},
		{"404 latin", mod, upstreamtest.Fault{Status: 404, Body: "caf\xe9", ContentType: "text/plain; charset=iso-8859-1"}, cache.NotFound, "404 Not Found", 1},
		{"404 long", mod, upstreamtest.Fault{Status: 404, Body: strings.Repeat("é", long)}, cache.NotFound, "éé…", 1},
		{"404 control", mod, upstreamtest.Fault{Status: 404, Body: "\n \x1b[31mred\x07\xff\tx\x00\n"}, cache.NotFound, "[31mred x", 1},
		{"404 endless", mod, upstreamtest.Fault{Status: 404, Body: "gone\n", Endless: true}, cache.NotFound, "gone", 1},
		{"410", zip, upstreamtest.Fault{Status: 410, Body: "removed"}, cache.Gone, "removed", 1},
		{"401", mod, upstreamtest.Fault{Status: 401}, cache.Denied, "401 Unauthorized", 1},
		{"403", zip, upstreamtest.Fault{Status: 403, Body: "policy 7"}, cache.Denied, "403 Forbidden: policy 7", 1},
		{"400", mod, upstreamtest.Fault{Status: 400}, cache.Broken, "400 Bad Request", 1},
		{"204", mod, upstreamtest.Fault{Status: 204}, cache.Broken, "204 No Content", 1},
		{"206 unasked", mod, upstreamtest.Fault{Status: 206}, cache.Broken, "206 Partial Content", 1},
		{"304 unasked", mod, upstreamtest.Fault{Status: 304}, cache.Broken, "304 Not Modified", 1},
		{"429", mod, upstreamtest.Fault{Status: 429}, cache.Busy, "429 Too Many Requests", 1},
		{"429 later", mod, upstreamtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"60"}}}, cache.Busy, "429 Too Many Requests", 1},
		{"429 now", mod, upstreamtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"0"}}}, cache.Busy, "429 Too Many Requests", 4},
		{"500", mod, upstreamtest.Fault{Status: 500, Body: "oops"}, cache.Broken, "500 Internal Server Error: oops", 1},
		{"502", mod, upstreamtest.Fault{Status: 502}, cache.Broken, "502 Bad Gateway", 4},
		{"503", list, upstreamtest.Fault{Status: 503}, cache.Broken, "503 Service Unavailable", 4},
		{"503 later", list, upstreamtest.Fault{Status: 503, Header: http.Header{"Retry-After": {"60"}}}, cache.Busy, "503 Service Unavailable", 1},
		{"504", zip, upstreamtest.Fault{Status: 504}, cache.Broken, "504 Gateway Timeout", 4},
		{"unknown status", mod, upstreamtest.Fault{Status: 599}, cache.Broken, "599", 1},
		{"html", list, upstreamtest.Fault{Body: "<html>", ContentType: "text/html; charset=utf-8"}, cache.Broken, "answered with an HTML page", 1},
		{"encoded", zip, upstreamtest.Fault{Header: http.Header{"Content-Encoding": {"br"}}}, cache.Broken, `content encoding "br"`, 1},
		{"drop", mod, upstreamtest.Fault{Drop: true}, cache.Broken, "connection reset", 4},
		{"silent", mod, upstreamtest.Fault{DelayHeader: time.Hour}, cache.Slow, "no answer within 300ms", 1},
		{"silent error body", mod, upstreamtest.Fault{Status: 404, Body: "half of it", StallAfter: 4}, cache.NotFound, "half", 1},
		{"large list", list, upstreamtest.Fault{Body: strings.Repeat("x", 16<<20+1)}, cache.Broken, "larger than 16 MiB, the most that a list may have", 1},
		{"large mod, no length", mod, upstreamtest.Fault{Chunked: true, Body: strings.Repeat("x", 16<<20+1)}, cache.Broken, "larger than 16 MiB", 1},
		{"large info", "example.com/a/@v/v1.0.0.info", upstreamtest.Fault{Body: strings.Repeat("x", 1<<20+1)}, cache.Broken, "larger than 1 MiB", 1},
		{"endless latest", "example.com/a/@latest", upstreamtest.Fault{Endless: true}, cache.Broken, "larger than 1 MiB", 1},
		{"zip announced too large", zip, upstreamtest.Fault{Header: http.Header{"Content-Length": {"524288001"}}}, cache.Broken, "larger than 500 MiB", 1},
		{"stalled body", zip, upstreamtest.Fault{StallAfter: 100}, cache.Slow, "no byte for 300ms after", 0},
		{"body cut each time", zip, upstreamtest.Fault{CutAfter: 100, NoRange: true}, cache.Broken, "connection broken after 100 of ", 0},
		{"wrong length", zip, upstreamtest.Fault{WrongLength: true}, cache.Broken, "", 0},
		{"chunks cut each time", list, upstreamtest.Fault{CutAfter: 3, Chunked: true, NoRange: true}, cache.Broken, "connection broken after 3 bytes", 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := upstreamtest.New(t, mods...)
			s.Fault("", test.fault)
			timeouts := upstream.Timeouts{Header: 2 * time.Second, Stall: 300 * time.Millisecond, Retry: 400 * time.Millisecond}
			if test.fault.DelayHeader > 0 {
				timeouts.Header = 300 * time.Millisecond
			}
			c := client(t, upstream.Config{List: s.URL, Timeouts: timeouts})
			_, err := read(t, c, test.target)
			e := checkError(t, err, test.reason, test.text)
			if u, _ := url.Parse(s.URL); e.Source != u.Host {
				t.Errorf("source %q, want %q", e.Source, u.Host)
			}
			if got := len(s.Requests()); test.requests != 0 && got != test.requests || got > 12 {
				t.Errorf("%d requests, want %d", got, test.requests)
			}
		})
	}
}

func TestBrokenServers(t *testing.T) {
	t.Parallel()
	texts := map[string]string{
		"refused":                 "connection refused",
		"no such host":            "no such host",
		"unknown CA":              "certificate not accepted: certificate signed by unknown authority",
		"plain http behind https": "does not speak HTTPS",
		"closes at once":          "connection closed without an answer",
		"speaks something else":   "malformed HTTP",
	}
	for _, b := range upstreamtest.Broken(t) {
		c := client(t, upstream.Config{List: b.URL, Dial: b.Dial})
		_, err := read(t, c, mod)
		want, ok := texts[b.Name]
		if !ok {
			t.Errorf("no row for %q", b.Name)
		}
		checkError(t, err, cache.Broken, want)
	}
}
