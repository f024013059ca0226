package wire_test

import (
	"context"
	"crypto/sha256"
	"hash/crc32"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

const zipName = "example.com/m/@v/v1.0.0.zip"

type getStream = grpc.ServerStreamingServer[ringmodv1.GetResponse]

// scripted is a node that does what a test says.
type scripted struct {
	ringmodv1.UnimplementedCacheServiceServer

	get func(*ringmodv1.GetRequest, getStream) error
}

func (s *scripted) Get(req *ringmodv1.GetRequest, stream getStream) error { return s.get(req, stream) }

// serve runs a node that answers with get and returns a connection to it. It
// needs no network, so that it works in a synctest bubble.
func serve(t *testing.T, get func(*ringmodv1.GetRequest, getStream) error, options ...grpc.ServerOption) (*grpc.ClientConn, *grpc.Server) {
	t.Helper()
	return serveCacheService(t, &scripted{get: get}, options...)
}

func serveCacheService(t *testing.T, node ringmodv1.CacheServiceServer, options ...grpc.ServerOption) (*grpc.ClientConn, *grpc.Server) {
	t.Helper()
	pool := new(wire.Pool)
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(append(wire.ServerOptions(pool), options...)...)
	ringmodv1.RegisterCacheServiceServer(server, node)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	dial := func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }
	cc, err := grpc.NewClient("passthrough:///node", append(wire.DialOptions(pool, wire.Near),
		grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cc.Close()
		server.Stop()
		<-done
	})
	return cc, server
}

func mustParse(t testing.TB, name string) target.Target {
	t.Helper()
	parsed, err := target.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func zipRequest(t testing.TB) cache.Request {
	t.Helper()
	return cache.Request{Target: mustParse(t, zipName)}
}

// pattern returns n bytes that differ from place to place.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8*13 + i>>16)
	}
	return b
}

// Parts of a stream, in protobuf's own shape.

func header(h *ringmodv1.Header) *ringmodv1.GetResponse {
	return &ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Header{Header: h}}
}

func headerOf(data []byte) *ringmodv1.GetResponse {
	sum := sha256.Sum256(data)
	return header(&ringmodv1.Header{Size: new(uint64(len(data))), Sha256: sum[:], Source: ringmodv1.Source_SOURCE_DISK})
}

func chunk(offset int, data []byte) *ringmodv1.GetResponse {
	crc := crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))
	return &ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Chunk{Chunk: &ringmodv1.Chunk{Offset: uint64(offset), Data: data, Crc32C: &crc}}}
}

func trailerOf(data []byte) *ringmodv1.GetResponse {
	sum := sha256.Sum256(data)
	return &ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Trailer{Trailer: &ringmodv1.Trailer{Size: uint64(len(data)), Sha256: sum[:]}}}
}

func progress() *ringmodv1.GetResponse {
	return &ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Progress{Progress: &ringmodv1.Progress{}}}
}

// play sends messages in their order and then ends with err.
func play(err error, messages ...*ringmodv1.GetResponse) func(*ringmodv1.GetRequest, getStream) error {
	return func(_ *ringmodv1.GetRequest, stream getStream) error {
		for _, m := range messages {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		return err
	}
}
