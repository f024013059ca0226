package node_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// TestServiceTellsOfDamage reads a copy that breaks off: the caller hears of it, and who
// looks after the copies.
func TestServiceTellsOfDamage(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	damaged := make(chan string, 10)
	breaks := cacheFunc(func(context.Context, cache.Request) (*cache.Object, error) {
		body := io.MultiReader(bytes.NewReader(make([]byte, size/2)), iotest.ErrReader(errors.New("input/output error")))
		return &cache.Object{Size: size, SHA256: [32]byte{1}, Source: cache.Disk, Body: io.NopCloser(body)}, nil
	})
	cc := serveCache(t, node.ServiceConfig{Cache: breaks, OnDamaged: func(name string) { damaged <- name }})
	zip := fileOf(t, modPath, modVers, target.Zip)
	_, _, err := fetchWire(t.Context(), cc, cache.Request{Target: zip}, wire.Options{})
	if trouble, ok := errors.AsType[*wire.PeerError](err); !ok || trouble.Code != codes.DataLoss {
		t.Errorf("the caller gets %v, want %v", err, codes.DataLoss)
	}
	if got := <-damaged; got != zip.String() {
		t.Errorf("told of %s, want %s", got, zip)
	}
}

// TestServiceOnADeadDisk sends the caller elsewhere, without a word on the object.
func TestServiceOnADeadDisk(t *testing.T) {
	t.Parallel()
	dead := cacheFunc(func(context.Context, cache.Request) (*cache.Object, error) {
		return nil, &cache.Error{Reason: cache.Internal, Err: fmt.Errorf("%w: no answer", store.ErrDead)}
	})
	cc := serveCache(t, node.ServiceConfig{Cache: dead})
	stream, err := ringmodv1.NewCacheServiceClient(cc).Get(t.Context(), &ringmodv1.GetRequest{Target: fileOf(t, modPath, modVers, target.Zip).String()})
	if err == nil {
		_, err = stream.Recv()
	}
	if s := status.Convert(err); s.Code() != codes.Unavailable || len(s.Details()) > 0 {
		t.Errorf("%v with %v, want %v without details", err, s.Details(), codes.Unavailable)
	}
}

// TestReplace takes another copy in place of the one that is here, if it is right; what the
// other node says of it counts for nothing.
func TestReplace(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t, oneModule(1<<20))
	n, mem := newNode(t, node.Config{Upstream: loopbackClient(t, fake.URL), Peers: newPeers(t, "self")})
	object := func(data []byte) *cache.Object {
		return &cache.Object{Size: int64(len(data)), SHA256: sha256.Sum256(data), H1: "h1:claimed", Verified: true, Body: io.NopCloser(bytes.NewReader(data))}
	}
	f, right := fileOf(t, modPath, modVers, target.Mod), fake.Mod(modPath, modVers)
	const older = "module example.com/older\n"
	p, err := mem.Create(f.String())
	if err == nil {
		_, _ = io.WriteString(p, older)
		_, err = p.Commit(store.Proof{})
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name string
		take func(context.Context, target.Target, *cache.Object) error
		data []byte
		fail bool
		want string
	}{
		{"Take leaves what is here", n.Take, right, false, older},
		{"Replace refuses what is no go.mod", n.Replace, []byte("<html>"), true, older},
		{"Replace takes what is right", n.Replace, right, false, string(right)},
	} {
		err := step.take(t.Context(), f, object(step.data))
		obj, openErr := mem.Open(t.Context(), f.String())
		if openErr != nil {
			t.Fatal(openErr)
		}
		got, _ := io.ReadAll(obj.File)
		obj.File.Close()
		if (err != nil) != step.fail || string(got) != step.want {
			t.Errorf("%s: %v, %q is here, want %q", step.name, err, got, step.want)
		}
	}
}
