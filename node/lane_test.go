package node_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// heldCache holds by name, and panics or hangs for some.
func heldCache(t *testing.T, held map[string][]byte) cacheFunc {
	t.Helper()
	return func(ctx context.Context, req cache.Request) (*cache.Object, error) {
		if req.Mode != cache.Peek {
			t.Errorf("%v asked with mode %v", req.Target, req.Mode)
		}
		switch name := req.Target.String(); {
		case strings.HasPrefix(name, "example.com/panic/"):
			panic("a test")
		case strings.HasPrefix(name, "example.com/hang/"):
			<-ctx.Done()
			return nil, &cache.Error{Reason: cache.Internal}
		case held[name] == nil:
			return nil, &cache.Error{Reason: cache.NotCached}
		default:
			data := held[name]
			body := io.NopCloser(bytes.NewReader(data[:max(0, len(data)-strings.Count(name, "short"))]))
			return &cache.Object{Size: int64(len(data)), SHA256: sha256.Sum256(data), Source: cache.Disk, Body: body}, nil
		}
	}
}

func smallOf(t *testing.T, cc grpc.ClientConnInterface) grpc.BidiStreamingClient[ringmodv1.GetSmallRequest, ringmodv1.GetSmallResponse] {
	t.Helper()
	stream, err := ringmodv1.NewCacheServiceClient(cc).GetSmall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// What is small, immutable and held is answered; nothing else is, and nothing that a
// caller sends ends the lane.
func TestLaneAnswers(t *testing.T) {
	t.Parallel()
	mod := []byte("module example.com/m\n")
	held := map[string][]byte{
		"example.com/m/@v/v1.0.0.mod":        mod,
		"example.com/m/@v/v1.0.0.zip":        mod,
		"example.com/m/@v/list":              mod,
		"example.com/short/@v/v1.0.0.mod":    mod,
		"example.com/large/@v/v1.0.0.mod":    make([]byte, wire.MaxInline+1),
		"sumdb/sum.example.com/tile/8/0/000": mod,
	}
	cc := serveCache(t, node.ServiceConfig{Cache: heldCache(t, held), View: func() (digest, seq uint64) { return 7, 8 }})
	stream := smallOf(t, cc)
	requests := []struct {
		get  *ringmodv1.GetRequest
		held bool
	}{
		{&ringmodv1.GetRequest{Target: "example.com/panic/@v/v1.0.0.mod", MaxInline: wire.MaxInline}, false},
		{&ringmodv1.GetRequest{Target: "example.com/hang/@v/v1.0.0.mod", MaxInline: wire.MaxInline}, false}, // answered by nobody
		{&ringmodv1.GetRequest{Target: "example.com/m/@v/v1.0.0.mod", MaxInline: wire.MaxInline}, true},
		{&ringmodv1.GetRequest{Target: "sumdb/sum.example.com/tile/8/0/000", MaxInline: wire.MaxInline}, true},
		{&ringmodv1.GetRequest{Target: "example.com/m/@v/v1.0.0.mod", MaxInline: 3}, false},
		{&ringmodv1.GetRequest{Target: "example.com/m/@v/v1.0.0.mod", MaxInline: wire.MaxInline, WantSha256: make([]byte, 32)}, false},
		{&ringmodv1.GetRequest{Target: "example.com/m/@v/v1.0.0.mod", MaxInline: wire.MaxInline, Hops: 77}, false},
		{&ringmodv1.GetRequest{Target: "example.com/m/@v/v1.0.0.zip", MaxInline: wire.MaxInline}, false},
		{&ringmodv1.GetRequest{Target: "example.com/m/@v/list", MaxInline: wire.MaxInline}, false},
		{&ringmodv1.GetRequest{Target: "example.com/m/@v/v1.0.1.mod", MaxInline: wire.MaxInline}, false},
		{&ringmodv1.GetRequest{Target: "example.com/short/@v/v1.0.0.mod", MaxInline: wire.MaxInline}, false},
		{&ringmodv1.GetRequest{Target: "example.com/large/@v/v1.0.0.mod", MaxInline: 1 << 30}, false},
		{&ringmodv1.GetRequest{Target: "../x"}, false},
		{nil, false},
	}
	for i, req := range requests {
		if err := stream.Send(&ringmodv1.GetSmallRequest{Id: uint64(i + 1), Get: req.get}); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.Send(&ringmodv1.GetSmallRequest{}); err != nil { // without a number nobody can be answered
		t.Fatal(err)
	}
	for range len(requests) - 1 {
		resp, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if resp.GetId() == 0 || resp.GetId() > uint64(len(requests)) {
			t.Fatalf("answer %d", resp.GetId())
		}
		req := requests[resp.GetId()-1]
		h := resp.GetHeader()
		if (h != nil) != req.held || h != nil && (!bytes.Equal(h.GetInline(), mod) || h.GetViewDigest() != 7 || h.GetViewSeq() != 8) {
			t.Errorf("%v: got %v, want it held: %v", req.get, h, req.held)
		}
	}
}

// A member that stops says so, and waits for the answers that it owes.
func TestLaneEnds(t *testing.T) {
	t.Parallel()
	ending := make(chan struct{})
	mod := []byte("module example.com/m\n")
	cc := serveCache(t, node.ServiceConfig{Cache: heldCache(t, map[string][]byte{"example.com/m/@v/v1.0.0.mod": mod}), Ending: ending})
	stream := smallOf(t, cc)
	close(ending)
	if resp, err := stream.Recv(); err != nil || resp.GetId() != 0 {
		t.Fatalf("got %v, %v, want the word that it stops", resp, err)
	}
	last := &ringmodv1.GetSmallRequest{Id: 1, Get: &ringmodv1.GetRequest{Target: "example.com/m/@v/v1.0.0.mod", MaxInline: wire.MaxInline}}
	if err := errors.Join(stream.Send(last), stream.CloseSend()); err != nil {
		t.Fatal(err)
	}
	if resp, err := stream.Recv(); err != nil || !bytes.Equal(resp.GetHeader().GetInline(), mod) {
		t.Errorf("got %v, %v, want the answer that was owed", resp, err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want the end", err)
	}
}

// What a client reads over a lane was used, and what another node looks for was not.
func TestLaneIsAUse(t *testing.T) {
	t.Parallel()
	disk, err := store.OpenDisk(store.DiskConfig{Dir: t.TempDir(), Place: func(string) (int, bool) { return 1, true }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { disk.Close() })
	mod := fileOf(t, modPath, modVers, target.Mod)
	p, err := disk.Create(mod.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(p, "module "+modPath+"\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Commit(store.Proof{Verified: true}); err != nil {
		t.Fatal(err)
	}
	before := time.Now().Add(-50 * 24 * time.Hour)
	if err := disk.Backdate(mod.String(), before); err != nil {
		t.Fatal(err)
	}
	n := node.New(node.Config{Store: disk, Documents: disk, Upstream: &scriptedUpstream{}})
	t.Cleanup(func() { stopNode(n) })
	cc := serveCache(t, node.ServiceConfig{Cache: n})
	used := func() time.Time {
		keys, err := disk.Keys(t.Context(), 1, store.Key{}, 2)
		if err != nil || len(keys) != 1 {
			t.Fatalf("%d keys, %v, want 1", len(keys), err)
		}
		return keys[0].Used
	}

	if _, _, err := fetchWire(t.Context(), cc, cache.Request{Target: mod, Mode: cache.Peek}, wire.Options{}); err != nil {
		t.Fatal(err)
	}
	if got := used(); !got.Equal(before) {
		t.Errorf("used at %v after a peek, want %v", got, before)
	}
	stream := smallOf(t, cc)
	get := &ringmodv1.GetRequest{Target: mod.String(), MaxInline: wire.MaxInline}
	if err := stream.Send(&ringmodv1.GetSmallRequest{Id: 1, Get: get}); err != nil {
		t.Fatal(err)
	}
	if resp, err := stream.Recv(); err != nil || resp.GetHeader() == nil {
		t.Fatalf("%v, %v", resp, err)
	}
	if got := used(); time.Since(got) > time.Minute {
		t.Errorf("used at %v after a read over a lane, want now", got)
	}
}
