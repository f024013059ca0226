package node_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store/storetest"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// serveCache offers cfg over gRPC in memory and returns a connection to it.
func serveCache(t testing.TB, cfg node.ServiceConfig) *grpc.ClientConn {
	t.Helper()
	pool := new(wire.Pool)
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(wire.ServerOptions(pool)...)
	cfg.Pool = pool
	node.Register(server, cfg)
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
	return cc
}

// cacheFunc is a cache that is a function.
type cacheFunc func(context.Context, cache.Request) (*cache.Object, error)

func (f cacheFunc) Get(ctx context.Context, req cache.Request) (*cache.Object, error) {
	return f(ctx, req)
}

// fetchWire asks over the wire and reads all.
func fetchWire(ctx context.Context, cc grpc.ClientConnInterface, req cache.Request, o wire.Options) ([]byte, *cache.Object, error) {
	obj, err := wire.Get(ctx, cc, req, o)
	if err != nil {
		return nil, nil, err
	}
	defer obj.Body.Close()
	body, err := io.ReadAll(obj.Body)
	return body, obj, err
}

func TestServiceFillsThenServes(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t, oneModule(1<<20))
	n, mem := newNode(t, node.Config{Upstream: loopbackClient(t, fake.URL)})
	cc := serveCache(t, node.ServiceConfig{Cache: n, Holder: n})
	zip := fileOf(t, modPath, modVers, target.Zip)
	want := fake.Zip(modPath, modVers)

	got, obj, err := fetchWire(t.Context(), cc, cache.Request{Target: zip}, wire.Options{})
	if err != nil || !bytes.Equal(got, want) || obj.Source != cache.Upstream {
		t.Fatalf("cold: %d bytes, %v, %+v, want %d", len(got), err, obj, len(want))
	}
	filled, ok := obj.Body.(*wire.Body)
	if !ok {
		t.Fatalf("the body of a fill is a %T", obj.Body)
	}
	eventually(t, "the zip is stored", func() bool { return isStored(t, mem, zip.String()) })
	got, obj, err = fetchWire(t.Context(), cc, cache.Request{Target: zip, Mode: cache.Peek}, wire.Options{})
	if h1, _ := filled.Proof(); err != nil || obj.H1 == "" || h1 != obj.H1 {
		t.Errorf("module hash %q as a fill, %q as held", h1, obj.H1)
	}
	if err != nil || !bytes.Equal(got, want) || obj.Source != cache.Disk || obj.SHA256 != sha256.Sum256(want) || obj.ModTime.IsZero() {
		t.Errorf("held: %d bytes, %v, %+v, want %d", len(got), err, obj, len(want))
	}
	for _, kind := range []target.Kind{target.Info, target.Mod} {
		for range 2 {
			_, obj, err := fetchWire(t.Context(), cc, cache.Request{Target: fileOf(t, modPath, modVers, kind)}, wire.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := obj.Body.(io.ReadSeeker); !ok {
				t.Errorf("%v: the body is a %T, want an inline one", kind, obj.Body)
			}
		}
	}
	list, err := target.ForModule(modPath, target.List)
	if err != nil {
		t.Fatal(err)
	}
	if _, obj, err := fetchWire(t.Context(), cc, cache.Request{Target: list}, wire.Options{}); err != nil || obj.TTL <= 0 || obj.TTL > time.Minute {
		t.Errorf("list: %+v, %v, want a TTL of about a minute", obj, err)
	}
	if got := fake.Count(".zip"); got != 1 {
		t.Errorf("upstream zip requests = %d, want 1", got)
	}
}

func TestServiceModes(t *testing.T) {
	t.Parallel()
	zip := fileOf(t, modPath, modVers, target.Zip)
	seen := make(chan cache.Request, 1)
	cc := serveCache(t, node.ServiceConfig{Cache: cacheFunc(func(_ context.Context, req cache.Request) (*cache.Object, error) {
		seen <- req
		return nil, &cache.Error{Reason: cache.Gone, Source: "up", Text: "410"}
	})})
	client := ringmodv1.NewCacheServiceClient(cc)
	for mode, want := range map[ringmodv1.Mode]cache.Mode{
		ringmodv1.Mode_MODE_UNSPECIFIED: cache.OnlyIfCached, ringmodv1.Mode_MODE_ONLY_IF_CACHED: cache.OnlyIfCached,
		ringmodv1.Mode_MODE_ALLOW_FILL: cache.AllowFill, ringmodv1.Mode_MODE_COORDINATE: cache.Coordinate,
		ringmodv1.Mode_MODE_PEEK: cache.Peek, 77: cache.OnlyIfCached, -1: cache.OnlyIfCached,
	} {
		stream, err := client.Get(t.Context(), &ringmodv1.GetRequest{Target: zip.String(), Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		if got := wire.FromStatus(err, ""); cache.ReasonOf(got) != cache.Gone {
			t.Errorf("%v: %v, want Gone", mode, got)
		}
		if req := <-seen; req.Mode != want || req.Target != zip {
			t.Errorf("%v: asked as %v, want %v", mode, req.Mode, want)
		}
	}
}

func TestServiceRefuses(t *testing.T) {
	t.Parallel()
	zip := fileOf(t, modPath, modVers, target.Zip).String()
	cc := serveCache(t, node.ServiceConfig{Cache: cacheFunc(func(context.Context, cache.Request) (*cache.Object, error) {
		t.Error("the cache was asked")
		return nil, errors.New("no")
	})})
	client := ringmodv1.NewCacheServiceClient(cc)
	tests := []struct {
		name      string
		req       *ringmodv1.GetRequest
		malformed bool // and so the developer's fault
	}{
		{"no target", &ringmodv1.GetRequest{}, true},
		{"bad target", &ringmodv1.GetRequest{Target: "../etc/passwd"}, true},
		{"long target", &ringmodv1.GetRequest{Target: "example.com/" + strings.Repeat("a/", 1100) + "@v/list"}, true},
		{"offset alone", &ringmodv1.GetRequest{Target: zip, Offset: 1}, false},
		{"short digest", &ringmodv1.GetRequest{Target: zip, WantSha256: []byte{1}}, false},
		{"hops", &ringmodv1.GetRequest{Target: zip, Hops: 3}, false},
		{"request id", &ringmodv1.GetRequest{Target: zip, RequestId: strings.Repeat("a", 65)}, false},
	}
	for _, test := range tests {
		stream, err := client.Get(t.Context(), test.req)
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		if got := status.Code(err); got != codes.InvalidArgument {
			t.Errorf("%s: %v, want InvalidArgument", test.name, err)
		}
		_, developer := errors.AsType[*cache.Error](wire.FromStatus(err, ""))
		if developer != test.malformed {
			t.Errorf("%s: %v, want a *cache.Error: %v", test.name, err, test.malformed)
		}
	}
	for _, targets := range [][]string{nil, make([]string, 257), {"../x"}} {
		if _, err := client.Stat(t.Context(), &ringmodv1.StatRequest{Targets: targets}); err == nil {
			t.Errorf("Stat of %d targets succeeds", len(targets))
		}
	}
}

func TestServiceResumes(t *testing.T) {
	t.Parallel()
	n, mem := newNode(t, node.Config{Upstream: newScripted(nil)})
	cc := serveCache(t, node.ServiceConfig{Cache: n})
	zip := fileOf(t, modPath, modVers, target.Zip)
	data := bytes.Repeat([]byte("0123456789abcdef"), 40<<10)
	entry := storetest.Put(t, mem, zip.String(), string(data), "")
	size := int64(len(data))
	for _, at := range []int64{0, 1, wire.ChunkSize, size - wire.MaxInline, size - 1, size} {
		obj, err := wire.Get(t.Context(), cc, cache.Request{Target: zip}, wire.Options{})
		if err != nil {
			t.Fatal(err)
		}
		head := make([]byte, at)
		if _, err := io.ReadFull(obj.Body, head); err != nil {
			t.Fatal(err)
		}
		obj.Body.Close()
		resume, _ := obj.Body.(*wire.Body).Resume()
		rest, whole, err := fetchWire(t.Context(), cc, cache.Request{Target: zip, Mode: cache.Peek}, wire.Options{Resume: &resume})
		if err != nil || whole.Size != size || !bytes.Equal(slices.Concat(head, rest), data) {
			t.Errorf("from %d: %d bytes, %v, want %d", at, len(rest), err, size-at)
		}
	}
	other := wire.Resume{Offset: 1, SHA256: [32]byte{1}}
	if _, _, err := fetchWire(t.Context(), cc, cache.Request{Target: zip}, wire.Options{Resume: &other}); cache.ReasonOf(err) != cache.NotCached {
		t.Errorf("other bytes: %v, want NotCached", err)
	}
	client := ringmodv1.NewCacheServiceClient(cc)
	stream, err := client.Get(t.Context(), &ringmodv1.GetRequest{Target: zip.String(), WantSha256: entry.SHA256[:], Offset: uint64(size) + 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("beyond the end: %v, want InvalidArgument", err)
	}
}

func TestServicePanicEndsTheCallOnly(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	cc := serveCache(t, node.ServiceConfig{
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Cache:  cacheFunc(func(context.Context, cache.Request) (*cache.Object, error) { panic("oops") }),
	})
	for range 2 {
		_, _, err := fetchWire(t.Context(), cc, cache.Request{Target: fileOf(t, modPath, modVers, target.Zip)}, wire.Options{})
		if e, ok := errors.AsType[*cache.Error](err); !ok || e.Reason != cache.Internal {
			t.Errorf("got %v, want Internal", err)
		}
	}
	if !strings.Contains(log.String(), "oops") {
		t.Errorf("the log has no word of it: %s", log.String())
	}
}

func TestServiceStat(t *testing.T) {
	t.Parallel()
	up := newScripted(map[string]string{modPath + "/@v/list": "v1.0.0\n"})
	n, mem := newNode(t, node.Config{Upstream: up, Private: "corp.example"})
	cc := serveCache(t, node.ServiceConfig{Cache: n, Holder: n})
	zip := fileOf(t, modPath, modVers, target.Zip)
	private := fileOf(t, "corp.example/x", modVers, target.Zip)
	entry := storetest.Put(t, mem, zip.String(), "bytes", "h1:x")
	storetest.Put(t, mem, private.String(), "bytes", "")
	if _, _, err := fetchWire(t.Context(), cc, cache.Request{Target: mustParse(t, modPath+"/@v/list")}, wire.Options{}); err != nil {
		t.Fatal(err)
	}
	resp, err := ringmodv1.NewCacheServiceClient(cc).Stat(t.Context(), &ringmodv1.StatRequest{Targets: []string{
		zip.String(), modPath + "/@v/v1.2.0-x.zip", private.String(), modPath + "/@v/list",
	}})
	if err != nil {
		t.Fatal(err)
	}
	h := resp.GetHoldings()
	if len(h) != 4 {
		t.Fatalf("%d holdings, want 4", len(h))
	}
	c := h[0].GetCopy()
	if c.GetSize() != 5 || !bytes.Equal(c.GetSha256(), entry.SHA256[:]) || c.GetH1() != "h1:x" || c.GetPrivate() || c.StoredAge == nil {
		t.Errorf("held: %v", h[0])
	}
	if h[1].Copy != nil || h[1].GetTarget() != modPath+"/@v/v1.2.0-x.zip" {
		t.Errorf("not held: %v", h[1])
	}
	if !h[2].GetCopy().GetPrivate() {
		t.Errorf("private: %v", h[2])
	}
	if c := h[3].GetCopy(); c.GetSize() != 7 || c.Age == nil || c.GetTtl().AsDuration() <= 0 {
		t.Errorf("list: %v", h[3])
	}
}

// FuzzServiceGet sends arbitrary requests: whatever comes ends in an answer or a
// status, and only requests within the limits reach the cache.
func FuzzServiceGet(f *testing.F) {
	f.Add("example.com/m/@v/v1.0.0.zip", int32(2), uint64(0), []byte{}, uint32(1<<16), uint32(1), "id")
	f.Add("example.com/m/@v/v1.0.0.zip", int32(4), uint64(1<<63), make([]byte, 32), uint32(1<<31), uint32(9), "")
	f.Add("sumdb/x/latest", int32(-4), uint64(5), make([]byte, 31), uint32(0), uint32(0), "")
	data := []byte(strings.Repeat("x", 3000))
	sum := sha256.Sum256(data)
	f.Add("example.com/m/@v/v1.0.0.zip", int32(4), uint64(2999), sum[:], uint32(0), uint32(0), "")
	cc := serveCache(f, node.ServiceConfig{Cache: cacheFunc(func(_ context.Context, req cache.Request) (*cache.Object, error) {
		if _, err := target.Parse(req.Target.String()); err != nil {
			panic(fmt.Sprintf("asked for %q", req.Target))
		}
		return &cache.Object{Size: int64(len(data)), SHA256: sum, Body: io.NopCloser(bytes.NewReader(data))}, nil
	})})
	f.Fuzz(func(t *testing.T, name string, mode int32, offset uint64, want []byte, inline, hops uint32, id string) {
		stream, err := ringmodv1.NewCacheServiceClient(cc).Get(t.Context(), &ringmodv1.GetRequest{
			Target: strings.ToValidUTF8(name, ""), Mode: ringmodv1.Mode(mode), Offset: offset, WantSha256: want, MaxInline: inline, Hops: hops,
			RequestId: strings.ToValidUTF8(id, ""),
		})
		for err == nil {
			_, err = stream.Recv()
		}
		switch code := status.Code(err); {
		case errors.Is(err, io.EOF), code == codes.InvalidArgument, code == codes.NotFound:
		default:
			t.Errorf("got %v", err)
		}
	})
}
