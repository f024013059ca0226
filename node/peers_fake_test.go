package node_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"io/fs"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

// fakePeers are nodes that do what a test says. They hold their caller to the
// rules: who is asked, as what, and that each body is closed.
type fakePeers struct {
	t     *testing.T
	route []node.Coordinator
	peek  func(t target.Target) (*cache.Object, error)
	home  func(ctx context.Context, id string, req cache.Request) (*cache.Object, error)

	silent []string // who does not say how he is

	mu    sync.Mutex
	asked []string // ids, in their order
	peeks int
	open  int // bodies
}

func newPeers(t *testing.T, ids ...string) *fakePeers {
	t.Helper()
	p := &fakePeers{t: t}
	for _, id := range ids {
		p.route = append(p.route, node.Coordinator{ID: id, Self: id == "self", Far: id[0] == 'f'})
	}
	t.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.open != 0 {
			t.Errorf("%d bodies were not closed", p.open)
		}
	})
	return p
}

func (p *fakePeers) Coordinators(target.Target) []node.Coordinator { return p.route }

func (p *fakePeers) Peek(_ context.Context, t target.Target) (*cache.Object, error) {
	p.mu.Lock()
	p.peeks++
	p.mu.Unlock()
	if p.peek == nil {
		return nil, &cache.Error{Reason: cache.NotCached}
	}
	obj, err := p.peek(t)
	return p.watched(obj), err
}

func (p *fakePeers) Coordinate(ctx context.Context, id string, req cache.Request) (*cache.Object, error) {
	if req.Mode != cache.Coordinate || req.Hops != 1 || id == "self" || ctx.Err() != nil {
		p.t.Errorf("%s was asked with mode %d and %d hops, %v", id, req.Mode, req.Hops, ctx.Err())
	}
	p.mu.Lock()
	p.asked = append(p.asked, id)
	p.mu.Unlock()
	obj, err := p.home(ctx, id, req)
	return p.watched(obj), err
}

func (p *fakePeers) Answers(_ context.Context, id string) bool {
	if !slices.Contains(p.silent, id) {
		return true
	}
	time.Sleep(wire.Silence / 2)
	return false
}

// requests returns who was asked since the last time.
func (p *fakePeers) requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() { p.asked = nil }()
	return p.asked
}

func (p *fakePeers) watched(obj *cache.Object) *cache.Object {
	if obj == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open++
	obj.Body = &watchedBody{ReadCloser: obj.Body, peers: p}
	return obj
}

type watchedBody struct {
	io.ReadCloser

	peers  *fakePeers
	closed bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	if b.closed {
		b.peers.t.Error("a closed body is read")
		return 0, fs.ErrClosed
	}
	return b.ReadCloser.Read(p)
}

func (b *watchedBody) Close() error {
	if !b.closed {
		b.closed = true
		b.peers.mu.Lock()
		b.peers.open--
		b.peers.mu.Unlock()
	}
	return b.ReadCloser.Close()
}

// Proof implements an ability of cache.Object.Body where what is behind it has it.
func (b *watchedBody) Proof() (string, bool) {
	if inner, ok := b.ReadCloser.(interface{ Proof() (string, bool) }); ok {
		return inner.Proof()
	}
	return "", false
}

// partly is a body that yields data and then err.
type partly struct {
	io.Reader

	err      error
	h1       string
	verified bool
}

func (b *partly) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = b.err
	}
	return n, err
}

func (*partly) Close() error            { return nil }
func (b *partly) Proof() (string, bool) { return b.h1, b.verified }

// filling is a fill that yields data and then err, io.EOF for a good end with a
// proof.
func filling(data []byte, size int64, err error, h1 string) *cache.Object {
	return &cache.Object{Size: size, Source: cache.Upstream, Body: &partly{bytes.NewReader(data), err, h1, true}}
}

// heldBy is a copy on a node's disk.
func heldBy(data []byte, h1 string) *cache.Object {
	return &cache.Object{
		Size: int64(len(data)), SHA256: sha256.Sum256(data), H1: h1, Verified: true, Source: cache.Disk,
		Body: &partly{bytes.NewReader(data), io.EOF, h1, true},
	}
}

func trouble(id string) error {
	return &wire.PeerError{Node: id, Code: codes.Unavailable, Err: wire.ErrSilent}
}

// zipOf returns the zip of oneModule and its h1.
func zipOf(t testing.TB, pad int64) (data []byte, h1 string) {
	t.Helper()
	data, err := oneModule(pad).File(".zip")
	if err != nil {
		t.Fatal(err)
	}
	h1, err = upstreamtest.HashZip(data)
	if err != nil {
		t.Fatal(err)
	}
	return data, h1
}

func sameStrings(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}
