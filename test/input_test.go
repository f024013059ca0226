package test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// secret is the content of files that lie beside the folders in use.
const secret = "nobody may read this"

// malformed are request targets that name no module, version or database file,
// as bytes on the wire.
var malformed = []string{ //nolint:gochecknoglobals // a table
	// Out of the folder, in every spelling.
	"/../secret.zip", "/../../../../../../etc/passwd", "/example.com/m/@v/../../../../secret.zip", "/example.com/../../secret/@v/list",
	"/%2e%2e/%2e%2e/secret.zip", "/%2E%2E/secret/@v/list", "/.%2e/secret/@v/list", "/example.com/%2e%2e/%2e%2e/secret/@v/list",
	"/..%2fsecret/@v/list", "/%2e%2e%2fsecret/@v/list", "/example.com/m/@v/..%2f..%2f..%2f..%2fsecret.zip", "/example.com/m/@v/...info", "/example.com/m/@v/..%2fsecret.info",
	"/..%5csecret/@v/list", "/example.com/m/@v/..%5c..%5csecret.zip", `/..\secret/@v/list`, "/%252e%252e/secret/@v/list", "/..%252fsecret/@v/list",
	"/%c0%ae%c0%ae/secret/@v/list", "/..%c0%afsecret/@v/list", "/%e0%80%ae%e0%80%ae/secret/@v/list", "/..%e0%80%afsecret/@v/list", "/%f0%80%80%af/@v/list",
	"/\xc0\xae\xc0\xae/secret/@v/list", "/example.com/\xff/@v/list", "/example.com/%ff/@v/list", "/cached-only/../../secret/@v/list", "/cached-only/cached-only/example.com/m/@v/list",
	// Separators that are hidden or too many.
	"/example.com%2fm/@v/list", "/example.com%2Fm/@v/v1.0.0.zip", "/example.com/m/@v%2fv1.0.0.zip", "/example.com%5cm/@v/list", `/example.com\m/@v/list`, "/example.com/m/@v/a%2fb.info",
	"//example.com/m/@v/list", "///example.com/m/@v/list", "/example.com//m/@v/list", "/example.com/m//@v/list", "/example.com/m/@v//list", "/example.com/m/@v/list/", "//", "/.", "/./example.com/m/@v/list",
	"/example.com/./m/@v/list", "/example.com/%2e/m/@v/list", "/example.com/m/./@v/list",
	// Characters that nobody means.
	"/example.com/m/@v/v1.0.0.zip%00", "/example.com/%00m/@v/list", "/example.com/m/@v/v1.0.0%00.zip", "/example.com/m%20x/@v/list", "/example.com/m%0d%0aX-Evil:%201/@v/list", "/example.com/m%1b[2J/@v/list",
	"/example.com/m;x/@v/list", "/example.com/m:x/@v/list", "/example.com/m%3fx/@v/list", "/example.com/m*/@v/list", "/example.com/%", "/%zz/@v/list", "/example.com/m/@v/%e2%80%ae.info%00",
	// Case.
	"/example.com/M/@v/list", "/example.com/!A/@v/list", "/example.com/!!a/@v/list", "/example.com/m!/@v/list", "/example.com/!/@v/list", "/example.com/!1/@v/list", "/example.com/%21A/@v/list", "/example.com/%21%21/@v/list",
	"/Example.com/m/@v/list", "/example.com/m/@v/V1.0.0.zip", "/example.com/m/@v/v1.0.0-RC1.zip", "/example.com/m/@v/v1.0.0-!!rc.zip", "/example.com/m/@V/list", "/example.com/m/@v/LIST",
	// Paths.
	"/nodot/m/@v/list", "/-example.com/m/@v/list", "/example.com/m./@v/list", "/example.com/con/@v/list", "/example.com/aux.txt/@v/list", "/example.com/m~1/@v/list", "/example.com/.git/@v/list",
	"/gopkg.in/m/@v/list", "/example.com/m/v1/@v/list", "/example.com/m/v0/@v/list", "/example.com/m/v02/@v/list", "/@v/list", "/@latest", "/list", "/example.com/m", "/example.com/m/@v", "/example.com/m/@v/",
	"/example.com/m?/@v/list", "/example.com/m/@v/list/@latest", "/example.com/@v/m/@v/list", "/" + strings.Repeat("a", 300) + ".com/m/@v/list", "/a.com/" + strings.Repeat("m/", 2000) + "@v/list",
	// Versions.
	"/example.com/m/@v/v1.zip", "/example.com/m/@v/v1.0.zip", "/example.com/m/@v/v1.0.0.0.zip", "/example.com/m/@v/1.0.0.zip", "/example.com/m/@v/v1.0.0+meta.zip", "/example.com/m/@v/v01.0.0.zip", "/example.com/m/@v/v1.0.0-.zip",
	"/example.com/m/@v/v2.0.0.zip", "/example.com/m/v2/@v/v1.0.0.zip", "/example.com/m/@v/.zip", "/example.com/m/@v/master.zip", "/example.com/m/@v/master.mod",
	"/example.com/m/@v/v1.0.0.exe", "/example.com/m/@v/v1.0.0", "/example.com/m/@v/v1.0.0.ziphash", "/example.com/m/@v/.info", "/example.com/m/@v/" + strings.Repeat("9", 300) + ".info",
	// Checksum databases.
	"/sumdb/" + csName + "/lookup/../../x@v1.0.0", "/sumdb/" + csName + "/lookup/example.com/m@../v1.0.0", "/sumdb/" + csName + "/lookup/example.com/m", "/sumdb/" + csName + "/lookup/example.com/M@v1.0.0", "/sumdb/" + csName + "/lookup/example.com/m@v1",
	"/sumdb/" + csName + "/tile/8/0/../../0", "/sumdb/" + csName + "/tile/8/0/000.p/257", "/sumdb/" + csName + "/tile/8/0/000.p/0", "/sumdb/" + csName + "/tile/9/0/000", "/sumdb/" + csName + "/tile/8/64/000", "/sumdb/" + csName + "/tile/8/-1/000",
	"/sumdb/" + csName + "/tile/8/0/0", "/sumdb/" + csName + "/tile/8/0/x000/000", "/sumdb/../@v/list", "/sumdb//supported", "/sumdb/supported", "/sumdb/" + csName, "/sumdb/" + csName + "/etc/passwd", "/sumdb/..%2f..%2fsecret/supported",
}

// walled is a process whose folders lie beside secrets.
type walled struct {
	*harness.Process

	fake   *upstreamtest.Server
	parent string
	before map[string]string
}

func newWalled(t *testing.T) *walled {
	t.Helper()
	w := &walled{fake: upstreamtest.New(t, upstreamtest.Module{Path: "example.com/m", Version: "v1.0.0"}), parent: t.TempDir()}
	for _, name := range []string{"secret", "secret.zip", "secret.info", "secret.mod", "list"} {
		if err := os.WriteFile(filepath.Join(w.parent, name), []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	folder := filepath.Join(w.parent, "folder")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	w.before = w.outside(t)
	w.Process = verifying(t, w.fake, filepath.Join(w.parent, "data"), "--upstream", "file://"+folder+","+w.fake.URL)
	return w
}

// outside returns path, content and times of all beside the data folder.
func (w *walled) outside(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, path := range filesBelow(t, w.parent) {
		if !strings.HasPrefix(path, filepath.Join(w.parent, "data")+"/") {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(path)
			files[path] = fmt.Sprint(info.ModTime(), info.Mode(), string(data), err)
		}
	}
	return files
}

// intact checks that the process serves, touched nothing outside of its folder,
// stored nothing and asked nobody.
func (w *walled) intact(t *testing.T) {
	t.Helper()
	if got := w.fake.Requests(); len(got) > 0 {
		t.Errorf("upstream was asked: %q", got)
	}
	if after := w.outside(t); !maps.Equal(w.before, after) {
		t.Errorf("outside of the data folder there is now %q, want %q", slices.Collect(maps.Keys(after)), slices.Collect(maps.Keys(w.before)))
	}
	if got := filesBelow(t, filepath.Join(w.parent, "data", "objects")); len(got) > 0 {
		t.Errorf("stored: %q", got)
	}
	got, err := fetch(t, w.URL()+"/"+csBase+".mod")
	if err != nil || got.status != http.StatusOK || got.body != "module example.com/m\n" {
		t.Errorf("a regular request afterwards: %d %q, %v", got.status, got.body, err)
	}
}

// dial connects to the process's front door.
func (w *walled) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", w.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(2 * patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// raw sends bytes and reads one answer. No answer at all has status 0.
func (w *walled) raw(t *testing.T, request string) answer {
	t.Helper()
	conn := w.dial(t)
	sent := make(chan struct{})
	go func() { // the answer may come before all is sent
		defer close(sent)
		_, _ = io.WriteString(conn, request)
	}()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		conn.Close()
		<-sent
		return answer{}
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	conn.Close()
	<-sent
	return answer{resp.StatusCode, resp.Header, string(body)}
}

func TestMalformedTargets(t *testing.T) {
	t.Parallel()
	w := newWalled(t)
	for _, target := range malformed {
		for _, method := range []string{"GET", "HEAD"} {
			got := w.raw(t, method+" "+target+" HTTP/1.1\r\nHost: ringmod.test\r\nConnection: close\r\n\r\n")
			if got.status != http.StatusNotFound && got.status != http.StatusBadRequest && got.status != http.StatusRequestURITooLong {
				t.Errorf("%s %.200q: %d %.200q, want 404 or 400", method, target, got.status, got.body)
			}
			if strings.Contains(got.body, secret) || strings.Contains(got.body, "root:") || strings.ContainsAny(got.body, "\x1b\x00") || got.header.Get("X-Evil") != "" {
				t.Errorf("%s %.200q: answered with %q, %v", method, target, got.body, got.header)
			}
			if len(got.body) > 648 || !strings.HasPrefix(got.header.Get("Content-Type"), "text/plain") {
				t.Errorf("%s %.200q: %d bytes of %q, want a short text", method, target, len(got.body), got.header.Get("Content-Type"))
			}
		}
	}
	w.intact(t)
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	w := newWalled(t)
	const valid, host = "/" + csBase + ".mod", "Host: ringmod.test\r\nConnection: close\r\n"
	get := func(target, header string) string { return "GET " + target + " HTTP/1.1\r\n" + host + header + "\r\n" }
	with := func(method, header string) string {
		return method + " " + valid + " HTTP/1.1\r\n" + host + header + "\r\n"
	}
	for _, test := range []struct {
		name, request string
		status        []int // 0: the connection is closed without an answer
	}{
		{"URL of 8 KiB and more", get("/example.com/"+strings.Repeat("m", 8<<10)+"/@v/list", ""), []int{414, 431}},
		{"query of 8 KiB and more", get(valid+"?"+strings.Repeat("q", 9<<10), ""), []int{414, 431}},
		{"URL of 1 MiB", get("/example.com/"+strings.Repeat("m", 1<<20)+"/@v/list", ""), []int{414, 431, 0}},
		{"POST", with("POST", "Content-Length: 0\r\n"), []int{405}},
		{"POST with a body that does not come", with("POST", "Content-Length: 1000000000\r\n"), []int{405}},
		{"POST with a chunk that does not come", with("POST", "Transfer-Encoding: chunked\r\n"), []int{405}},
		{"PUT", with("PUT", "Content-Length: 0\r\n"), []int{405}},
		{"DELETE", with("DELETE", ""), []int{405}},
		{"OPTIONS", "OPTIONS * HTTP/1.1\r\n" + host + "\r\n", []int{405}},
		{"CONNECT", "CONNECT evil.test:443 HTTP/1.1\r\n" + host + "\r\n", []int{405}},
		{"unknown method", with("BREW", ""), []int{405}},
		{"TRACE", with("TRACE", "Cookie: a=b\r\n"), []int{405}},
		{"huge header", get(valid, "X-Huge: "+strings.Repeat("h", 64<<10)+"\r\n"), []int{431}},
		{"many headers", get(valid, strings.Repeat("X-Many: h\r\n", 10_000)), []int{431}},
		{"header with a line break", get(valid, "X-Bad: a\rb\r\n"), []int{400}},
		{"no host", "GET " + valid + " HTTP/1.1\r\n\r\n", []int{400}},
		{"two lengths", with("GET", "Content-Length: 1\r\nContent-Length: 2\r\n"), []int{400}},
		{"length and chunks", with("POST", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", []int{400, 405}},
		{"relative target", "GET example.com/m/@v/list HTTP/1.1\r\n" + host + "\r\n", []int{400}},
		{"HTTP/9.9", "GET " + valid + " HTTP/9.9\r\n" + host + "\r\n", []int{400, 505}},
		{"HTTP/2 without being asked", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{400, 405, 505, 0}},
		{"TLS on the plain port", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\x00", 512), []int{400, 0}},
		{"another protocol", "EHLO mail.test\r\n\r\n", []int{400}},
		{"zeros", strings.Repeat("\x00", 100<<10) + "\n\n", []int{400, 431, 0}},
		{"noise", strings.Repeat("\xde\xad\xbe\xef\r\n", 1000), []int{400, 0}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := w.raw(t, test.request)
			if !slices.Contains(test.status, got.status) {
				t.Errorf("got %d %.200q, want %d", got.status, got.body, test.status)
			}
			if got.status == http.StatusMethodNotAllowed && got.header.Get("Allow") != "GET, HEAD" {
				t.Errorf("Allow %q, want GET, HEAD", got.header.Get("Allow"))
			}
		})
	}
	w.intact(t)
}

// TestSlowClients holds connections without ever finishing a request: they are
// ended, and meanwhile nobody else notices.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	w := newWalled(t)
	var group sync.WaitGroup
	for i := range 90 {
		start := []string{"", "GET /" + csBase + ".mod HT", "GET /" + csBase + ".mod HTTP/1.1\r\nHost: ringmod.test\r\nX-Slow: "}[i%3]
		conn := w.dial(t)
		if _, err := io.WriteString(conn, start); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		if i%3 == 2 { // goes on with a byte now and then
			group.Go(func() {
				for tick := time.Tick(500 * time.Millisecond); ; {
					select {
					case <-ended:
						return
					case <-tick:
						_, _ = io.WriteString(conn, "s")
					}
				}
			})
		}
		group.Go(func() {
			defer close(ended)
			began := time.Now()
			_, err := io.Copy(io.Discard, conn) // until it is closed by the other side
			if errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) > patience {
				t.Errorf("a connection that began with %q was still open after %v", start, time.Since(began))
			}
		})
	}
	w.intact(t)
	group.Wait()
	if got := w.raw(t, "GET /healthz HTTP/1.1\r\nHost: ringmod.test\r\nConnection: close\r\n\r\n"); got.status != http.StatusOK {
		t.Errorf("afterwards: %d %q", got.status, got.body)
	}
}

// TestIdleConnection keeps a connection open after an answer.
func TestIdleConnection(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for two minutes")
	}
	w := newWalled(t)
	conn := w.dial(t)
	const limit = 3 * time.Minute
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: ringmod.test\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("an idle connection was still open after %v: %v", limit, err)
	}
	w.intact(t)
}
