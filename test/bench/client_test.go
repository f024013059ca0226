package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"
)

// serveBodies answers with bodies of size bytes in the way the path names.
func serveBodies(t *testing.T, size int) *httptest.Server {
	t.Helper()
	body := bytes.Repeat([]byte("x"), size)
	mux := http.NewServeMux()
	mux.HandleFunc("/plain", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	})
	mux.HandleFunc("/chunked", func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush()
		w.Write(body)
	})
	mux.HandleFunc("/cut", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		w.Write(body[:size/2])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/cutchunked", func(w http.ResponseWriter, _ *http.Request) {
		w.Write(body[:size/2])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func TestGetKeepsTheConnectionInStep(t *testing.T) {
	t.Parallel()
	const size = 3 << 20
	s := serveBodies(t, size)
	conn, err := newClient(s.Listener.Addr().String()).dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 5 {
		var seen int64
		total, err := conn.get("/plain", false, func(n int) bool { seen += int64(n); return true })
		if err != nil || total != size || seen != size {
			t.Fatalf("answer %d: got %d bytes, %d seen, %v; want %d", i, total, seen, err, size)
		}
	}
}

func TestStampede(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	s := serveBodies(t, size)
	tests := []struct {
		path string
		ok   bool
	}{{"/plain", true}, {"/chunked", true}, {"/cut", false}, {"/cutchunked", false}, {"/none", false}}
	for _, tt := range tests {
		t.Run(tt.path[1:], func(t *testing.T) {
			t.Parallel()
			h, err := stampede(t.Context(), s.Listener.Addr().String(), tt.path, 8, size)
			if (err == nil) != tt.ok {
				t.Fatalf("got %v, want success: %v", err, tt.ok)
			}
			if first := spreadOf(h.firsts); tt.ok && (first.min <= 0 || first.max > h.wall.Seconds()) {
				t.Errorf("got first bytes at %s of %s", first, h.wall)
			}
		})
	}
}

func TestStreamCountsPartsOfABody(t *testing.T) {
	t.Parallel()
	s := serveBodies(t, 1<<20)
	rate, err := stream(t.Context(), s.Listener.Addr().String(), newTour("/plain"), 2, 100*time.Millisecond)
	if err != nil || rate <= 0 {
		t.Errorf("got %v bytes a second, %v", rate, err)
	}
	if _, err := stream(t.Context(), s.Listener.Addr().String(), newTour("/chunked"), 2, time.Second); err == nil {
		t.Error("an answer without a length on a kept connection: got no error")
	}
}

func TestOwnLoad(t *testing.T) {
	t.Parallel()
	s := serveBodies(t, 100)
	got, err := ownLoad(t.Context(), s.Listener.Addr().String(), newTour("/plain"), 100*time.Millisecond)
	if err != nil || got.rate <= 0 || got.p99 <= 0 {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := ownLoad(t.Context(), s.Listener.Addr().String(), newTour("/none"), time.Second); err == nil {
		t.Error("a status of 404: got no error")
	}
}

func TestTogetherEndsTheOthers(t *testing.T) {
	t.Parallel()
	want := io.ErrClosedPipe
	err := together(t.Context(), 3, func(ctx context.Context, i int) error {
		if i == 1 {
			return want
		}
		<-ctx.Done()
		return ctx.Err()
	})
	if err != want { //nolint:errorlint // itself, not something around it
		t.Errorf("got %v, want %v", err, want)
	}
}

func TestFakeUpstream(t *testing.T) {
	t.Parallel()
	u := newFakeUpstream(0)
	defer u.Close()
	m := module.Version{Path: "bench.example/m", Version: "v1.2.0"}
	if err := u.add(m, 3<<20); err != nil {
		t.Fatal(err)
	}
	zip, err := fetch(t.Context(), u.Listener.Addr().String(), "/bench.example/m/@v/v1.2.0.zip")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "m.zip")
	if err := os.WriteFile(file, zip, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := modzip.CheckZip(m, file); err != nil {
		t.Errorf("the zip is not one of a module: %v", err)
	}
	if again, err := makeZip(m, 3<<20); err != nil || !bytes.Equal(again, zip) {
		t.Errorf("made again: got another zip, %v; want the same", err)
	}
	list, err := fetch(t.Context(), u.Listener.Addr().String(), "/bench.example/m/@v/list")
	if string(list) != "v1.2.0\n" || err != nil {
		t.Errorf("got list %q, %v", list, err)
	}
	if _, err := fetch(t.Context(), u.Listener.Addr().String(), "/bench.example/m/@v/v1.3.0.zip"); err == nil {
		t.Error("an unknown version: got no error")
	}
	if got := u.zips.Load(); got != 2 {
		t.Errorf("got %d zip requests, want 2", got)
	}
}

func TestNginxServesTheTree(t *testing.T) {
	t.Parallel()
	nginx, _ := lookUp()
	if nginx == "" {
		t.Skip("nginx is not installed")
	}
	b := &bench{nginx: nginx}
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "list"), []byte("v1.0.0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	static, err := b.startNginx(t.Context(), t.TempDir(), staticSite(root))
	if err != nil {
		t.Fatal(err)
	}
	defer static.stop()
	cache, err := b.startNginx(t.Context(), t.TempDir(), cachingSite(static.addr))
	if err != nil {
		t.Fatal(err)
	}
	defer cache.stop()
	for _, p := range []*process{static, cache} {
		if got, err := fetch(t.Context(), p.addr, "/list"); string(got) != "v1.0.0\n" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	}
}

func TestServerThatEndsAtOnce(t *testing.T) {
	t.Parallel()
	b := &bench{options: options{ringmod: "/bin/false"}}
	if p, err := b.startRingmod(t.Context(), node{}); err == nil {
		p.stop()
		t.Error("got no error")
	}
}
