package peers_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"hash/crc32"
	"io"
	"sync"
	"testing"

	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

type getStream = grpc.ServerStreamingServer[ringmodv1.GetResponse]

type getFunc func(*ringmodv1.GetRequest, getStream) error

// view is what a test says of the cluster.
type view struct {
	mu      sync.Mutex
	members map[string]ring.Member
	down    map[string]bool
	made    *ring.View // of members, made when it is asked for
}

func newView(ms ...ring.Member) *view {
	v := &view{members: map[string]ring.Member{}, down: map[string]bool{}}
	for _, m := range ms {
		v.members[m.ID] = m
	}
	return v
}

func entry(id string) ring.Member {
	return ring.Member{
		ID: id, Boot: "b1", Epoch: 1, State: ring.Active, Role: ring.Node, Region: "eu", Weight: 1,
		Addr: id + ":1", Spec: ring.DefaultSpec().Hash(),
	}
}

// View implements peers.View.
func (v *view) View() *ring.View {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.made != nil {
		return v.made
	}
	var table ring.Members
	for _, m := range v.members {
		if _, err := table.Put(m); err != nil {
			panic(err)
		}
	}
	var err error
	if v.made, err = ring.NewView(ring.DefaultSpec(), &table); err != nil {
		panic(err)
	}
	return v.made
}

// Up implements peers.View.
func (v *view) Up(id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, in := v.members[id]
	return in && !v.down[id]
}

// Member implements peers.View.
func (v *view) Member(id string) (ring.Member, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	m, ok := v.members[id]
	return m, ok
}

func (v *view) put(m ring.Member) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.members[m.ID], v.made = m, nil
}

func (v *view) drop(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.members, id)
	v.made = nil
}

func (v *view) setDown(id string, down bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.down[id] = down
}

// start runs a Set until the test ends.
func start(t *testing.T, cfg peers.Config) *peers.Set {
	t.Helper()
	s := peers.New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

func request(t testing.TB) cache.Request {
	t.Helper()
	parsed, err := target.Parse("example.com/m/@v/v1.0.0.zip")
	if err != nil {
		t.Fatal(err)
	}
	return cache.Request{Target: parsed, Mode: cache.OnlyIfCached}
}

// fetch reads an object whole.
func fetch(ctx context.Context, t testing.TB, s *peers.Set, id string) ([]byte, error) {
	t.Helper()
	obj, err := s.Get(ctx, id, request(t), wire.Options{})
	if err != nil {
		return nil, err
	}
	defer obj.Body.Close()
	var b bytes.Buffer
	_, err = io.Copy(&b, obj.Body)
	return b.Bytes(), err
}

// Parts of streams.

var data = bytes.Repeat([]byte("0123456789abcdef"), 1<<10)

func headerOf(change func(*ringmodv1.Header)) *ringmodv1.GetResponse {
	sum := sha256.Sum256(data)
	h := &ringmodv1.Header{Size: new(uint64(len(data))), Sha256: sum[:], Source: ringmodv1.Source_SOURCE_DISK}
	if change != nil {
		change(h)
	}
	return &ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Header{Header: h}}
}

func chunk(from, to int) *ringmodv1.GetResponse {
	crc := crc32.Checksum(data[from:to], crc32.MakeTable(crc32.Castagnoli))
	return &ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Chunk{Chunk: &ringmodv1.Chunk{Offset: uint64(from), Data: data[from:to], Crc32C: &crc}}}
}

func trailer() *ringmodv1.GetResponse {
	sum := sha256.Sum256(data)
	return &ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Trailer{Trailer: &ringmodv1.Trailer{Size: uint64(len(data)), Sha256: sum[:]}}}
}

// play sends messages in their order and ends with err.
func play(err error, messages ...*ringmodv1.GetResponse) getFunc {
	return func(_ *ringmodv1.GetRequest, stream getStream) error {
		for _, m := range messages {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		return err
	}
}

// well answers with data.
func well() getFunc { return play(nil, headerOf(nil), chunk(0, len(data)), trailer()) }

// inline answers with data in the header.
func inline() getFunc {
	return play(nil, headerOf(func(h *ringmodv1.Header) { h.Inline = data }))
}

// stuck answers nothing until the caller leaves.
func stuck(_ *ringmodv1.GetRequest, stream getStream) error {
	<-stream.Context().Done()
	return stream.Context().Err()
}
