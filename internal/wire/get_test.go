package wire_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// drain reads an answer to its end, by Read and by WriteTo alike.
func drain(ctx context.Context, cc grpc.ClientConnInterface, req cache.Request, o wire.Options) ([]byte, *cache.Object, error) {
	obj, err := wire.Get(ctx, cc, req, o)
	if err != nil {
		return nil, nil, err
	}
	defer obj.Body.Close()
	var b bytes.Buffer
	_, err = io.Copy(&b, obj.Body)
	return b.Bytes(), obj, err
}

func TestGetStream(t *testing.T) {
	t.Parallel()
	data := pattern(3*wire.ChunkSize + 17)
	var messages []*ringmodv1.GetResponse
	messages = append(messages, progress(), headerOf(data), progress())
	for at := 0; at < len(data); at += wire.ChunkSize {
		messages = append(messages, chunk(at, data[at:min(at+wire.ChunkSize, len(data))]))
	}
	messages = append(messages, progress(), trailerOf(data))
	cc, _ := serve(t, play(nil, messages...))

	got, obj, err := drain(t.Context(), cc, zipRequest(t), wire.Options{})
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("WriteTo: %d bytes, %v, want %d", len(got), err, len(data))
	}
	if obj.Size != int64(len(data)) || obj.Source != cache.Disk {
		t.Errorf("got %+v", obj)
	}
	obj, err = wire.Get(t.Context(), cc, zipRequest(t), wire.Options{})
	if err != nil {
		t.Fatal(err)
	}
	got, err = io.ReadAll(struct{ io.Reader }{obj.Body})
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("Read: %d bytes, %v, want %d", len(got), err, len(data))
	}
	if n, err := obj.Body.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("Read behind the end = %d, %v, want io.EOF", n, err)
	}
}

// A server with gRPC's own codec is as good, and so is a client with it.
func TestPlainProtobufAtTheOtherEnd(t *testing.T) {
	t.Parallel()
	data := pattern(2*wire.ChunkSize + 1)
	plain := grpc.ForceServerCodecV2(encoding.GetCodecV2(protocodec.Name))
	cc, _ := serve(t, play(nil, headerOf(data), chunk(0, data[:100]), chunk(100, data[100:wire.ChunkSize]), chunk(wire.ChunkSize, data[wire.ChunkSize:2*wire.ChunkSize]),
		chunk(2*wire.ChunkSize, data[2*wire.ChunkSize:]), trailerOf(data)), plain)
	got, _, err := drain(t.Context(), cc, zipRequest(t), wire.Options{})
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("from a plain server: %d bytes, %v, want %d", len(got), err, len(data))
	}

	pool := new(wire.Pool)
	cc, _ = serve(t, func(_ *ringmodv1.GetRequest, stream getStream) error {
		buf := pool.Get(wire.ChunkSize)
		copy(*buf, data)
		return wire.SendChunk(stream, pool, 7, buf)
	})
	stream, err := ringmodv1.NewCacheServiceClient(cc).Get(t.Context(), &ringmodv1.GetRequest{Target: zipName})
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	want := chunk(7, data[:wire.ChunkSize]).GetChunk()
	if c := m.GetChunk(); c.GetOffset() != 7 || c.GetCrc32C() != want.GetCrc32C() || !bytes.Equal(c.GetData(), want.GetData()) {
		t.Errorf("a plain client got offset %d, crc %x, %d bytes", c.GetOffset(), c.GetCrc32C(), len(c.GetData()))
	}
}

func TestGetInline(t *testing.T) {
	t.Parallel()
	data := []byte("module example.com/m\n")
	h := headerOf(data)
	h.GetHeader().Inline = data
	h.GetHeader().StoredAge = durationpb.New(time.Hour)
	h.GetHeader().Age, h.GetHeader().Ttl = durationpb.New(20*time.Second), durationpb.New(40*time.Second)
	h.GetHeader().Stale, h.GetHeader().Private = true, true
	h.GetHeader().H1, h.GetHeader().Verified = "h1:x", true
	cc, _ := serve(t, play(nil, h))
	var seen string
	got, obj, err := drain(t.Context(), cc, zipRequest(t), wire.Options{OnHeader: func(h *ringmodv1.Header) { seen = h.GetH1() }})
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("got %q, %v, want %q", got, err, data)
	}
	if _, ok := obj.Body.(io.ReadSeeker); !ok {
		t.Errorf("the body is a %T, want an io.ReadSeeker", obj.Body)
	}
	if age := time.Since(obj.ModTime); age < time.Hour || age > 2*time.Hour {
		t.Errorf("stored %v ago, want 1h", age)
	}
	if obj.Age != 20*time.Second || obj.TTL != 40*time.Second || !obj.Stale || !obj.Private || obj.H1 != "h1:x" || !obj.Verified || seen != "h1:x" {
		t.Errorf("got %+v, h1 %q", obj, seen)
	}
}

// What is known of the module hash comes with the header of what is held, and
// with the trailer of a fill.
func TestProof(t *testing.T) {
	t.Parallel()
	data := pattern(100)
	with := func(m *ringmodv1.GetResponse, h1 string, verified bool) *ringmodv1.GetResponse {
		switch part := m.GetPart().(type) {
		case *ringmodv1.GetResponse_Header:
			part.Header.H1, part.Header.Verified = h1, verified
		case *ringmodv1.GetResponse_Trailer:
			part.Trailer.H1, part.Trailer.Verified = h1, verified
		}
		return m
	}
	filling := header(&ringmodv1.Header{})
	for _, test := range []struct {
		name            string
		header, trailer *ringmodv1.GetResponse
		early           string
		h1              string
		verified, ok    bool
	}{
		{"held", with(headerOf(data), "h1:x", true), with(trailerOf(data), "h1:x", true), "h1:x", "h1:x", true, true},
		{"held, not repeated", with(headerOf(data), "h1:x", true), trailerOf(data), "h1:x", "h1:x", true, true},
		{"filling", filling, with(trailerOf(data), "h1:x", true), "", "h1:x", true, true},
		{"filling, not verified", filling, with(trailerOf(data), "h1:x", false), "", "h1:x", false, true},
		{"none", headerOf(data), trailerOf(data), "", "", false, true},
		{"contradiction", with(headerOf(data), "h1:x", true), with(trailerOf(data), "h1:y", true), "h1:x", "", false, false},
		{"long", filling, with(trailerOf(data), strings.Repeat("x", 65), true), "", "", false, false},
	} {
		cc, _ := serve(t, play(nil, test.header, chunk(0, data), test.trailer))
		_, obj, err := drain(t.Context(), cc, zipRequest(t), wire.Options{})
		if (err == nil) != test.ok || obj == nil || obj.H1 != test.early {
			t.Errorf("%s: %+v, %v", test.name, obj, err)
			continue
		}
		body := obj.Body.(*wire.Body)
		if h1, verified := body.Proof(); test.ok && (h1 != test.h1 || verified != test.verified) {
			t.Errorf("%s: got %q, %v, want %q, %v", test.name, h1, verified, test.h1, test.verified)
		}
	}
	cc, _ := serve(t, play(nil, with(headerOf(data), strings.Repeat("x", 65), true), chunk(0, data), trailerOf(data)))
	if _, _, err := drain(t.Context(), cc, zipRequest(t), wire.Options{}); !errors.Is(err, wire.ErrProtocol) {
		t.Errorf("a long hash: %v, want ErrProtocol", err)
	}
}

func TestRequestOnTheWire(t *testing.T) {
	t.Parallel()
	got := make(chan *ringmodv1.GetRequest, 1)
	cc, _ := serve(t, func(req *ringmodv1.GetRequest, _ getStream) error {
		got <- req
		return wire.Status(&cache.Error{Reason: cache.NotCached})
	})
	tests := []struct {
		name string
		req  cache.Request
		o    wire.Options
		want *ringmodv1.GetRequest
	}{
		{"plain", cache.Request{}, wire.Options{}, &ringmodv1.GetRequest{Mode: ringmodv1.Mode_MODE_ALLOW_FILL, MaxInline: wire.MaxInline, Hops: 2}},
		{
			"peek",
			cache.Request{Mode: cache.Peek, Whole: true, Hops: 2},
			wire.Options{MaxInline: -1},
			&ringmodv1.GetRequest{Mode: ringmodv1.Mode_MODE_PEEK, Whole: true},
		},
		{
			"resume",
			cache.Request{Mode: cache.OnlyIfCached, Hops: 99},
			wire.Options{MaxInline: 1 << 30, Resume: &wire.Resume{Offset: 5, SHA256: [32]byte{1}}},
			&ringmodv1.GetRequest{Mode: ringmodv1.Mode_MODE_ONLY_IF_CACHED, Offset: 5, WantSha256: append([]byte{1}, make([]byte, 31)...)},
		},
		{
			"template",
			cache.Request{Mode: cache.Coordinate, Hops: 1},
			wire.Options{Template: &ringmodv1.GetRequest{Target: "x", Mode: ringmodv1.Mode_MODE_PEEK, Offset: 9, Hops: 7, RequestId: "r", ViewSeq: 3}},
			&ringmodv1.GetRequest{Mode: ringmodv1.Mode_MODE_COORDINATE, MaxInline: wire.MaxInline, Hops: 1, RequestId: "r", ViewSeq: 3},
		},
	}
	for _, test := range tests {
		test.req.Target = mustParse(t, zipName)
		test.want.Target = zipName
		if _, err := wire.Get(t.Context(), cc, test.req, test.o); cache.ReasonOf(err) != cache.NotCached {
			t.Errorf("%s: %v, want NotCached", test.name, err)
		}
		if req := <-got; req.String() != test.want.String() {
			t.Errorf("%s: got %v, want %v", test.name, req, test.want)
		}
	}
}

func TestResume(t *testing.T) {
	t.Parallel()
	for _, o := range []wire.Options{{}, {CRCOnly: true}} {
		testResume(t, o)
	}
}

func testResume(t *testing.T, o wire.Options) {
	t.Helper()
	data := pattern(1000)
	cc, _ := serve(t, func(req *ringmodv1.GetRequest, stream getStream) error {
		at := int(req.GetOffset())
		if at == 0 {
			return play(status.Error(codes.Unavailable, "dying"), headerOf(data), chunk(0, data[:400]))(req, stream)
		}
		return play(nil, headerOf(data), chunk(at, data[at:700]), chunk(700, data[700:]), trailerOf(data))(req, stream)
	})
	for _, stop := range []int{1, 399, 400} { // bytes read before the first stream is left
		obj, err := wire.Get(t.Context(), cc, zipRequest(t), o)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, stop)
		if _, err := io.ReadFull(obj.Body, got); err != nil {
			t.Fatal(err)
		}
		obj.Body.Close()
		resume, ok := obj.Body.(*wire.Body).Resume()
		if !ok || resume.Offset != int64(stop) {
			t.Errorf("Resume = %d, %v, want %d", resume.Offset, ok, stop)
		}
		rest, whole, err := drain(t.Context(), cc, zipRequest(t), wire.Options{Resume: &resume})
		if err != nil || !bytes.Equal(slices.Concat(got, rest), data) || whole.Size != 1000 {
			t.Errorf("from %d: %d bytes, %v, want the other %d", stop, len(rest), err, 1000-stop)
		}
	}
}

func TestResumeElsewhereWithOtherBytes(t *testing.T) {
	t.Parallel()
	data, other := pattern(1000), pattern(1001)[1:]
	first := true
	cc, _ := serve(t, func(req *ringmodv1.GetRequest, stream getStream) error {
		if first {
			first = false
			return play(status.Error(codes.Unavailable, ""), headerOf(data), chunk(0, data[:400]))(req, stream)
		}
		return play(nil, headerOf(other), chunk(400, other[400:]), trailerOf(other))(req, stream)
	})
	obj, err := wire.Get(t.Context(), cc, zipRequest(t), wire.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, obj.Body)
	resume, _ := obj.Body.(*wire.Body).Resume()
	if _, _, err := drain(t.Context(), cc, zipRequest(t), wire.Options{Resume: &resume}); !errors.Is(err, wire.ErrProtocol) {
		t.Errorf("got %v, want ErrProtocol", err)
	}
}
