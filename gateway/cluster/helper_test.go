package cluster_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
)

type inline struct{ *bytes.Reader }

func (inline) Close() error { return nil }

// fakeBody is what *peers.Body is.
type fakeBody struct {
	f    *fakeNodes
	gone <-chan struct{}
	err  func() error // of the caller's context
	node fakeNode
	data []byte
	sum  [32]byte

	offset int64
	closed bool
}

const piece = 16 << 10

func (b *fakeBody) Read(p []byte) (int, error) {
	if b.node.steps > 0 {
		select {
		case <-time.After(b.node.steps):
		case <-b.gone:
		}
	}
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	end := int64(len(b.data))
	switch {
	case b.closed:
		return 0, fs.ErrClosed
	case b.err() != nil:
		return 0, b.err()
	case b.node.breakAt > 0 && b.offset >= b.node.breakAt:
		if b.node.broken != nil {
			return 0, b.node.broken
		}
		return 0, &wire.PeerError{Node: b.node.member.ID, Code: codes.Unavailable, Err: errors.New("reset")}
	case b.offset == end:
		return 0, io.EOF
	case b.node.breakAt > 0:
		end = min(end, b.node.breakAt)
	}
	n := copy(p[:min(len(p), piece)], b.data[b.offset:end])
	b.offset += int64(n)
	return n, nil
}

func (b *fakeBody) Resume() (wire.Resume, bool) {
	return wire.Resume{Offset: b.offset, SHA256: b.sum}, b.sum != [32]byte{}
}

func (b *fakeBody) Prefix() (int64, [32]byte) { return b.offset, sha256.Sum256(b.data[:b.offset]) }

func (b *fakeBody) Close() error {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	if !b.closed {
		b.f.open--
	}
	b.closed = true
	return nil
}

// newCluster is a gateway's cluster in region eu, zone a.
func newCluster(t testing.TB, f *fakeNodes, change func(*cluster.Config)) *cluster.Cluster {
	t.Helper()
	cfg := cluster.Config{
		Cluster: "test", Region: "eu", Zone: "a", Peers: f, View: f, SpoolDir: t.TempDir(),
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&cfg)
	}
	return cluster.New(cfg)
}

// get asks and reads all of the answer.
func get(t testing.TB, c *cluster.Cluster, req cache.Request) ([]byte, *cache.Object, error) {
	t.Helper()
	obj, err := c.Get(t.Context(), req)
	if err != nil {
		return nil, nil, err
	}
	defer obj.Body.Close()
	data, err := io.ReadAll(obj.Body)
	return data, obj, err
}

func request(t testing.TB, name string) cache.Request {
	t.Helper()
	return cache.Request{Target: mustParse(t, name)}
}

// checkGet holds an answer against what is wanted.
func checkGet(t testing.TB, c *cluster.Cluster, req cache.Request, want []byte) *cache.Object {
	t.Helper()
	got, obj, err := get(t, c, req)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s: got %d bytes, %v, want %d", req.Target, len(got), err, len(want))
	}
	return obj
}

func checkAsked(t testing.TB, f *fakeNodes, want ...string) {
	t.Helper()
	if got := f.asked(); !slices.Equal(got, want) {
		t.Errorf("asked %q, want %q", got, want)
	}
}

func reasonIs(err error, want cache.Reason) bool {
	e, ok := errors.AsType[*cache.Error](err)
	return ok && e.Reason == want
}
