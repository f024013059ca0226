package cluster_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// BenchmarkZip sends a zip of 32 MiB from a node over TCP and gRPC through a
// gateway to an HTTP client: straight through, by way of a new spool each time, and
// from a spool that is there.
func BenchmarkZip(b *testing.B) {
	const size = 32 << 20
	pool := new(wire.Pool)
	n := &wireNode{pool: pool, data: pattern(size), server: grpc.NewServer(wire.ServerOptions(pool)...)}
	ringmodv1.RegisterCacheServiceServer(n.server, n)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() { _ = n.server.Serve(l) }()
	b.Cleanup(n.server.Stop)
	w := &wireNodes{v: viewOf(b, ring.Member{ID: "n1", Region: "eu", State: ring.Active, Role: ring.Node, Weight: 1, Addr: "n1:1"})}
	set := peers.New(peers.Config{Region: "eu", View: w, Dial: func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}})
	for _, mode := range []string{"straight", "spooled", "kept"} {
		b.Run(mode, func(b *testing.B) {
			cfg := cluster.Config{Region: "eu", Peers: set, View: w, SpoolDir: b.TempDir()}
			if mode == "straight" {
				cfg.SpoolLimit = -1
			}
			g, err := gateway.New(gateway.Config{Cache: cluster.New(cfg), Memory: -1})
			if err != nil {
				b.Fatal(err)
			}
			server := httptest.NewServer(g)
			defer server.Close()
			b.SetBytes(size)
			i := 0
			for b.Loop() {
				if mode != "kept" {
					i++
				}
				resp, err := server.Client().Get(fmt.Sprintf("%s/example.com/m%d/@v/v1.0.0.zip", server.URL, i))
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, 256<<10))
				resp.Body.Close()
				if err != nil || n != size || resp.StatusCode != http.StatusOK {
					b.Fatalf("got %d bytes, %v", n, err)
				}
			}
		})
	}
}
