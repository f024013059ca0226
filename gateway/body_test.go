package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/internal/cache"
)

// start serves h with the gateway's own server limits and returns host:port.
func start(t *testing.T, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, l, gateway.Server(h, nil))
}

func startOn(t *testing.T, l net.Listener, s *http.Server) string {
	t.Helper()
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return l.Addr().String()
}

// raw sends text over a connection of its own and reads one answer.
func raw(t *testing.T, addr, text string) *answer {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(text, " ")
	r, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%.60q: %v", text, err)
	}
	t.Cleanup(func() { _ = r.Body.Close() })
	t.Cleanup(func() { _ = r.Body.Close() })
	return newAnswer(r)
}

// holders are the ways in which an object can be held.
func holders(t *testing.T, content []byte) map[string]*fakeCache {
	t.Helper()
	obj := cache.Object{ModTime: modTime}
	files, seekers := newFakeCache(t), newFakeCache(t)
	files.on(zipName, func(context.Context, cache.Request) (*cache.Object, error) { return file(t, content, obj), nil })
	seekers.serve(zipName, content, obj)
	return map[string]*fakeCache{"file": files, "seeker": seekers}
}

// TestPartial is the matrix of HEAD, ranges and conditions, for a zip in
// memory, one that is too large for it, and one held elsewhere.
func TestPartial(t *testing.T) {
	t.Parallel()
	const size = 300 << 10 // more than is kept in memory
	large := bytes.Repeat([]byte("0123456789"), size/10)
	small := []byte("0123456789")
	tests := []struct {
		name, method string
		header       []string
		status       int
		from, to     int // of the content in the body; to < 0 is the end
		contentRange string
	}{
		{"GET", "GET", nil, 200, 0, -1, ""},
		{"HEAD", "HEAD", nil, 200, 0, 0, ""},
		{"first bytes", "GET", []string{"Range", "bytes=0-3"}, 206, 0, 4, "bytes 0-3/%d"},
		{"middle", "GET", []string{"Range", "bytes=2-5"}, 206, 2, 6, "bytes 2-5/%d"},
		{"behind the end", "GET", []string{"Range", "bytes=99999999-"}, 416, 0, 0, "bytes */%d"},
		{"other unit", "GET", []string{"Range", "lines=1-2"}, 416, 0, 0, ""},
		{"HEAD of a range", "HEAD", []string{"Range", "bytes=0-3"}, 206, 0, 0, "bytes 0-3/%d"},
		{"If-Range fits", "GET", []string{"Range", "bytes=0-3", "If-Range", "ETAG"}, 206, 0, 4, "bytes 0-3/%d"},
		{"If-Range differs", "GET", []string{"Range", "bytes=0-3", "If-Range", `"other"`}, 200, 0, -1, ""},
		{"If-Range by date", "GET", []string{"Range", "bytes=0-3", "If-Range", lastModified}, 206, 0, 4, "bytes 0-3/%d"},
		{"If-None-Match fits", "GET", []string{"If-None-Match", "ETAG"}, 304, 0, 0, ""},
		{"If-None-Match in a list", "GET", []string{"If-None-Match", `"a", W/ETAG, "b"`}, 304, 0, 0, ""},
		{"If-None-Match *", "GET", []string{"If-None-Match", "*"}, 304, 0, 0, ""},
		{"If-None-Match differs", "GET", []string{"If-None-Match", `"other"`}, 200, 0, -1, ""},
		{"If-None-Match HEAD", "HEAD", []string{"If-None-Match", "ETAG"}, 304, 0, 0, ""},
		{"If-Modified-Since same", "GET", []string{"If-Modified-Since", lastModified}, 304, 0, 0, ""},
		{"If-Modified-Since before", "GET", []string{"If-Modified-Since", "Wed, 04 Mar 2020 05:06:07 GMT"}, 200, 0, -1, ""},
		{"If-Modified-Since garbage", "GET", []string{"If-Modified-Since", "yesterday"}, 200, 0, -1, ""},
		{"If-Match differs", "GET", []string{"If-Match", `"other"`}, 412, 0, 0, ""},
	}
	for size, content := range map[string][]byte{"small": small, "large": large} {
		for holder, c := range holders(t, content) {
			addr := start(t, newGateway(t, gateway.Config{Cache: c}))
			for _, test := range tests {
				t.Run(size+"/"+holder+"/"+test.name, func(t *testing.T) {
					t.Parallel()
					request := test.method + " /" + zipName + " HTTP/1.1\r\nHost: x\r\n"
					etag := digest(string(content))
					for i := 0; i < len(test.header); i += 2 {
						request += test.header[i] + ": " + strings.ReplaceAll(test.header[i+1], "ETAG", etag) + "\r\n"
					}
					r := raw(t, addr, request+"\r\n")
					to := test.to
					if to < 0 {
						to = len(content)
					}
					got, err := io.ReadAll(r.Body)
					if err != nil {
						t.Fatal(err)
					}
					if r.StatusCode != test.status || test.status < 400 && !bytes.Equal(got, content[test.from:to]) {
						t.Errorf("got %d and %d bytes, want %d and %d", r.StatusCode, len(got), test.status, to-test.from)
					}
					contentRange := test.contentRange
					if strings.Contains(contentRange, "%d") {
						contentRange = fmt.Sprintf(contentRange, len(content))
					}
					if test.name != "other unit" {
						checkHeaders(t, r, "Content-Range", contentRange)
					}
					if test.status < 300 {
						checkHeaders(t, r, "ETag", etag, "Last-Modified", lastModified, "Accept-Ranges", "bytes", "Content-Type", "application/zip",
							"Cache-Control", "public, max-age=604800, immutable")
					}
					if test.method == "HEAD" && test.status == 200 {
						checkHeaders(t, r, "Content-Length", fmt.Sprint(len(content)))
					}
				})
			}
		}
	}
}

// TestFill streams a zip that is being filled, with and without a known size.
func TestFill(t *testing.T) {
	t.Parallel()
	parts := func() [][]byte {
		return [][]byte{[]byte("first "), bytes.Repeat([]byte("x"), 600<<10), []byte(" last")}
	}
	want := string(bytes.Join(parts(), nil))
	for _, size := range []int64{-1, int64(len(want))} {
		for how, b := range map[string]io.ReadCloser{"read": &fill{parts: parts()}, "pushed": &pushed{fill{parts: parts()}}} {
			c := newFakeCache(t)
			c.on(zipName, func(context.Context, cache.Request) (*cache.Object, error) {
				return &cache.Object{Size: size, Source: cache.Upstream, Body: b}, nil
			})
			r := raw(t, start(t, newGateway(t, gateway.Config{Cache: c})), "GET /"+zipName+" HTTP/1.1\r\nHost: x\r\n\r\n")
			if got := body(t, r); got != want {
				t.Errorf("%s of size %d: got %d bytes, want %d", how, size, len(got), len(want))
			}
			if r.ContentLength != size {
				t.Errorf("%s: got Content-Length %d, want %d", how, r.ContentLength, size)
			}
			checkHeaders(t, r, "ETag", "", "Accept-Ranges", "", "Last-Modified", "", "Cache-Status", "ringmod; fwd=miss; stored; detail=upstream")
		}
	}
}

// brokenBodies are bodies that cannot be completed once the header is out.
func brokenBodies(t *testing.T) map[string]func() *cache.Object {
	t.Helper()
	first := bytes.Repeat([]byte("x"), 100<<10)
	err := &cache.Error{Reason: cache.Broken, Source: "proxy.example.com", Text: "cut"}
	object := func(size int64, b io.ReadCloser) *cache.Object {
		return &cache.Object{Size: size, Source: cache.Upstream, Body: b}
	}
	return map[string]func() *cache.Object{
		"read fails":              func() *cache.Object { return object(-1, &fill{[][]byte{first}, err}) },
		"read fails, sized":       func() *cache.Object { return object(200<<10, &fill{[][]byte{first}, err}) },
		"read fails at the end":   func() *cache.Object { return object(100<<10, &fill{[][]byte{first}, err}) },
		"push fails":              func() *cache.Object { return object(-1, &pushed{fill{[][]byte{first}, err}}) },
		"plain error":             func() *cache.Object { return object(-1, &pushed{fill{[][]byte{first}, errUnexpected}}) },
		"shorter than its size":   func() *cache.Object { return object(200<<10, &fill{[][]byte{first}, nil}) },
		"longer than its size":    func() *cache.Object { return object(50<<10, &fill{[][]byte{first}, nil}) },
		"file that was cut":       func() *cache.Object { o := file(t, first, cache.Object{}); o.Size *= 3; return o },
		"panic in the middle":     func() *cache.Object { return object(-1, &panicking{fill{[][]byte{first}, nil}}) },
		"only the first is there": func() *cache.Object { return object(2, &fill{[][]byte{[]byte("x")}, nil}) },
	}
}

type panicking struct{ fill }

func (f *panicking) Read(p []byte) (int, error) {
	if len(f.parts) == 0 {
		panic("in the middle of a body")
	}
	return f.fill.Read(p)
}

// TestAbort checks that no broken answer looks whole, on HTTP/1 and HTTP/2.
func TestAbort(t *testing.T) {
	t.Parallel()
	for _, protocol := range []int{1, 2} {
		for name, object := range brokenBodies(t) {
			t.Run(fmt.Sprintf("HTTP%d/%s", protocol, name), func(t *testing.T) {
				t.Parallel()
				c := newFakeCache(t)
				c.on(zipName, func(context.Context, cache.Request) (*cache.Object, error) { return object(), nil })
				s := httptest.NewUnstartedServer(nil)
				s.Config = gateway.Server(newGateway(t, gateway.Config{Cache: c}), nil)
				s.EnableHTTP2 = protocol == 2
				s.StartTLS()
				defer s.Close()
				r, err := s.Client().Get(s.URL + "/" + zipName)
				if err != nil {
					// net/http had sent nothing yet: cut before the header is as good.
					return
				}
				defer r.Body.Close()
				if r.ProtoMajor != protocol {
					t.Fatalf("got HTTP/%d", r.ProtoMajor)
				}
				got, err := io.ReadAll(r.Body)
				if err == nil {
					t.Errorf("an answer of %d bytes ended cleanly", len(got))
				}
				if protocol == 1 && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("got %v, want an unexpected EOF", err)
				}
			})
		}
	}
}

// countingConn counts how much goes out by ReadFrom, which is sendfile's door.
type countingConn struct {
	*net.TCPConn

	readFrom *atomic.Int64
}

func (c countingConn) ReadFrom(src io.Reader) (int64, error) {
	lr, ok := src.(*io.LimitedReader)
	if ok {
		src = lr.R
	}
	if _, isFile := src.(interface{ Fd() uintptr }); !isFile {
		return 0, fmt.Errorf("sendfile cannot see the file in a %T", src)
	}
	n, err := c.TCPConn.ReadFrom(lr)
	c.readFrom.Add(n)
	return n, err
}

type countingListener struct {
	net.Listener

	readFrom atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countingConn{c.(*net.TCPConn), &l.readFrom}, nil
}

// TestSendfile proves that a file's bytes reach the connection as a file, whole
// and in ranges, apart from the first KiB.
func TestSendfile(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("0123456789abcdef"), 3<<20/16)
	c := holders(t, content)["file"]
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &countingListener{Listener: tcp}
	addr := startOn(t, l, gateway.Server(newGateway(t, gateway.Config{Cache: c}), nil))
	for rng, want := range map[string][]byte{"": content, "Range: bytes=1000000-2999999\r\n": content[1e6:3e6]} {
		before := l.readFrom.Load()
		r := raw(t, addr, "GET /"+zipName+" HTTP/1.1\r\nHost: x\r\n"+rng+"\r\n")
		if got := body(t, r); got != string(want) {
			t.Errorf("%q: got %d bytes, want %d, or other ones", rng, len(got), len(want))
		}
		// The client may have the last bytes before the server has counted them.
		counted := func() int64 { return l.readFrom.Load() - before }
		for deadline := time.Now().Add(10 * time.Second); counted() < int64(len(want))-2<<10; {
			if time.Now().After(deadline) {
				t.Fatalf("%q: got %d bytes by ReadFrom, want nearly all of %d", rng, counted(), len(want))
			}
			<-time.After(time.Millisecond)
		}
	}
}

// spooled is a fill that hands its bytes on out of a file, as a node does that
// lets waiters read the growing temporary file.
type spooled struct {
	*os.File

	size int64
	err  error
}

func (s *spooled) Read([]byte) (int, error) { panic("a fill that can hand its bytes on was read") }

func (s *spooled) WriteTo(w io.Writer) (n int64, err error) {
	for n < s.size {
		m, err := io.Copy(w, io.LimitReader(s.File, min(1<<20, s.size-n)))
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, s.err
}

// TestSendfileOfFills proves the same for a fill, whose last byte is held back.
func TestSendfileOfFills(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("0123456789abcdef"), 3<<20/16)
	for _, sized := range []bool{true, false} {
		for _, broken := range []error{nil, errUnexpected} {
			c := newFakeCache(t)
			c.on(zipName, func(context.Context, cache.Request) (*cache.Object, error) {
				o := file(t, content, cache.Object{Source: cache.Upstream})
				f, _ := o.Body.(*os.File)
				o.Body = &spooled{f, o.Size, broken}
				if !sized {
					o.Size = -1
				}
				return o, nil
			})
			tcp, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			l := &countingListener{Listener: tcp}
			addr := startOn(t, l, gateway.Server(newGateway(t, gateway.Config{Cache: c}), nil))
			r := raw(t, addr, "GET /"+zipName+" HTTP/1.1\r\nHost: x\r\n\r\n")
			got, err := io.ReadAll(r.Body)
			if broken == nil && (err != nil || !bytes.Equal(got, content)) || broken != nil && err == nil {
				t.Errorf("sized %v, broken by %v: got %d of %d bytes and %v", sized, broken, len(got), len(content), err)
			}
			// Chunks have to be written one by one.
			if sent := l.readFrom.Load(); sized && sent < int64(len(content))-64<<10 {
				t.Errorf("got %d bytes by ReadFrom, want nearly all of %d", sent, len(content))
			}
		}
	}
}

// TestUnwantedBody checks that a request's body cannot hold its connection.
func TestUnwantedBody(t *testing.T) {
	t.Parallel()
	addr := start(t, newGateway(t, gateway.Config{}))
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx")
	b, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200") {
		t.Errorf("got %q, %v, want an answer and the end of the connection", b, err)
	}
}

// TestDeadline checks that writing has a deadline that moves with the bytes.
func TestDeadline(t *testing.T) {
	t.Parallel()
	c := newFakeCache(t)
	c.serve(modName, []byte("module golang.org/x/mod\n"), cache.Object{})
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	newGateway(t, gateway.Config{Cache: c}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/"+modName, nil))
	if len(w.set) == 0 || time.Until(w.set[0]) > time.Minute || time.Until(w.set[0]) < 50*time.Second {
		t.Errorf("got deadlines %v, want one a minute ahead", w.set)
	}
}

type deadlines struct {
	*httptest.ResponseRecorder

	set []time.Time
}

func (d *deadlines) SetWriteDeadline(at time.Time) error {
	d.set = append(d.set, at)
	return nil
}
