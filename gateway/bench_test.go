package gateway_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/internal/cache"
)

// cacheFunc is a Cache without checks, for benchmarks.
type cacheFunc func(context.Context, cache.Request) (*cache.Object, error)

func (f cacheFunc) Get(ctx context.Context, req cache.Request) (*cache.Object, error) {
	return f(ctx, req)
}

// sink is a ResponseWriter that keeps nothing.
type sink struct{ header http.Header }

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }
func (s *sink) WriteHeader(int)             {}

func (s *sink) SetWriteDeadline(time.Time) error { return nil }

// nowhere is where lines go; slog would not even build them for io.Discard.
type nowhere struct{}

func (nowhere) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkMemoryHit is what the gateway adds to net/http for a small object.
func BenchmarkMemoryHit(b *testing.B) {
	for name, logger := range map[string]*slog.Logger{
		"quiet":  nil,
		"logged": slog.New(slog.NewJSONHandler(nowhere{}, nil)),
	} {
		for _, object := range []string{infoName, listName} {
			b.Run(name+"/"+object, func(b *testing.B) {
				g, err := gateway.New(gateway.Config{
					Logger: logger, Region: "eu", Node: "n1",
					Cache: cacheFunc(func(context.Context, cache.Request) (*cache.Object, error) {
						return whole(make([]byte, 200), cache.Object{ModTime: modTime, TTL: 1 << 60}), nil
					}),
				})
				if err != nil {
					b.Fatal(err)
				}
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					r := httptest.NewRequest(http.MethodGet, "/"+object, nil)
					w := &sink{http.Header{}}
					for pb.Next() {
						clear(w.header)
						g.ServeHTTP(w, r)
					}
				})
			})
		}
	}
}

// BenchmarkFile sends a 64 MiB zip over loopback.
func BenchmarkFile(b *testing.B) {
	const size = 64 << 20
	name := filepath.Join(b.TempDir(), "zip")
	if err := os.WriteFile(name, bytes.Repeat([]byte("0123456789abcdef"), size/16), 0o600); err != nil {
		b.Fatal(err)
	}
	g, err := gateway.New(gateway.Config{Cache: cacheFunc(func(context.Context, cache.Request) (*cache.Object, error) {
		f, err := os.Open(name)
		return &cache.Object{Size: size, SHA256: [32]byte{1}, Source: cache.Disk, Body: f}, err
	})})
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := gateway.Server(g, nil)
	go func() { _ = s.Serve(l) }()
	defer s.Close()
	b.SetBytes(size)
	for b.Loop() {
		r, err := http.Get("http://" + l.Addr().String() + "/" + zipName)
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, r.Body)
		if n != size || err != nil {
			b.Fatalf("got %d bytes, %v", n, err)
		}
		_ = r.Body.Close()
	}
}
