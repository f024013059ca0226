package wire_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
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
	h.GetHeader().H1 = "h1:x"
	cc, _ := serve(t, play(nil, h))
	var h1 string
	got, obj, err := drain(t.Context(), cc, zipRequest(t), wire.Options{OnHeader: func(h *ringmodv1.Header) { h1 = h.GetH1() }})
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("got %q, %v, want %q", got, err, data)
	}
	if _, ok := obj.Body.(io.ReadSeeker); !ok {
		t.Errorf("the body is a %T, want an io.ReadSeeker", obj.Body)
	}
	if age := time.Since(obj.ModTime); age < time.Hour || age > 2*time.Hour {
		t.Errorf("stored %v ago, want 1h", age)
	}
	if obj.Age != 20*time.Second || obj.TTL != 40*time.Second || !obj.Stale || !obj.Private || h1 != "h1:x" {
		t.Errorf("got %+v, h1 %q", obj, h1)
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
		{"plain", cache.Request{}, wire.Options{}, &ringmodv1.GetRequest{Mode: ringmodv1.Mode_MODE_ALLOW_FILL, MaxInline: wire.MaxInline}},
		{
			"peek",
			cache.Request{Mode: cache.Peek, Whole: true},
			wire.Options{MaxInline: -1},
			&ringmodv1.GetRequest{Mode: ringmodv1.Mode_MODE_PEEK, Whole: true},
		},
		{
			"resume",
			cache.Request{Mode: cache.OnlyIfCached},
			wire.Options{MaxInline: 1 << 30, Resume: &wire.Resume{Offset: 5, SHA256: [32]byte{1}}},
			&ringmodv1.GetRequest{Mode: ringmodv1.Mode_MODE_ONLY_IF_CACHED, Offset: 5, WantSha256: append([]byte{1}, make([]byte, 31)...)},
		},
		{
			"template",
			cache.Request{},
			wire.Options{Template: &ringmodv1.GetRequest{Target: "x", Mode: ringmodv1.Mode_MODE_COORDINATE, Offset: 9, Hops: 1, RequestId: "r"}},
			&ringmodv1.GetRequest{Mode: ringmodv1.Mode_MODE_COORDINATE, MaxInline: wire.MaxInline, Hops: 1, RequestId: "r"},
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

// wrongStreams are what a node must not send. None may end in io.EOF, and where
// the size is known none may hand out the last byte.
func wrongStreams() map[string][]*ringmodv1.GetResponse {
	data := pattern(1000)
	other := bytes.Clone(data)
	other[500]++
	damaged := chunk(0, other)
	damaged.GetChunk().Crc32C = chunk(0, data).GetChunk().Crc32C
	unsized := header(&ringmodv1.Header{})
	inline := func(data []byte, change func(*ringmodv1.Header)) *ringmodv1.GetResponse {
		h := headerOf(data)
		h.GetHeader().Inline = data
		change(h.GetHeader())
		return h
	}
	huge := pattern(wire.ChunkSize + 1)
	shortSum := trailerOf(data)
	shortSum.GetTrailer().Sha256 = shortSum.GetTrailer().GetSha256()[:31]
	return map[string][]*ringmodv1.GetResponse{
		"nothing":                  {},
		"progress only":            {progress()},
		"chunk first":              {chunk(0, data)},
		"trailer first":            {trailerOf(data)},
		"no trailer":               {headerOf(data), chunk(0, data)},
		"no trailer, no size":      {unsized, chunk(0, data)},
		"header only":              {headerOf(data)},
		"short":                    {headerOf(data), chunk(0, data[:999]), trailerOf(data)},
		"short, both agree":        {headerOf(data), chunk(0, data[:999]), trailerOf(data[:999])},
		"short, no size":           {unsized, chunk(0, data[:999]), trailerOf(data)},
		"more than the size":       {headerOf(data), chunk(0, append(bytes.Clone(data), 'x')), trailerOf(data)},
		"more chunks":              {headerOf(data), chunk(0, data), chunk(1000, []byte{1}), trailerOf(data)},
		"gap":                      {headerOf(data), chunk(0, data[:500]), chunk(501, data[501:]), trailerOf(data)},
		"repeated":                 {headerOf(data), chunk(0, data[:500]), chunk(0, data[:500]), trailerOf(data)},
		"out of order":             {headerOf(data), chunk(500, data[500:]), chunk(0, data[:500]), trailerOf(data)},
		"wrong crc":                {headerOf(data), damaged, trailerOf(data)},
		"other bytes, its own crc": {headerOf(data), chunk(0, other), trailerOf(data)},
		"other bytes, no size":     {unsized, chunk(0, other), trailerOf(data)},
		"trailer of other bytes":   {headerOf(data), chunk(0, data), trailerOf(other)},
		"header of other bytes":    {headerOf(other), chunk(0, data), trailerOf(data)},
		"short digest":             {headerOf(data), chunk(0, data), shortSum},
		"empty chunk":              {headerOf(data), chunk(0, nil), chunk(0, data), trailerOf(data)},
		"huge chunk":               {headerOf(huge), chunk(0, huge), trailerOf(huge)},
		"two headers":              {headerOf(data), headerOf(data), chunk(0, data), trailerOf(data)},
		"two trailers":             {headerOf(data), chunk(0, data), trailerOf(data), trailerOf(data)},
		"chunk after trailer":      {headerOf(data), chunk(0, data), trailerOf(data), chunk(1000, data)},
		"size beyond int64":        {header(&ringmodv1.Header{Size: new(uint64(1 << 63))}), chunk(0, data), trailerOf(data)},
		"digest of 5 bytes":        {header(&ringmodv1.Header{Size: new(uint64(1000)), Sha256: data[:5]}), chunk(0, data), trailerOf(data)},
		"inline short":             {inline(data, func(h *ringmodv1.Header) { h.Inline = h.GetInline()[:999] })},
		"inline other bytes":       {inline(data, func(h *ringmodv1.Header) { h.Inline = other })},
		"inline without digest":    {inline(data, func(h *ringmodv1.Header) { h.Sha256 = nil })},
		"inline without size":      {inline(data, func(h *ringmodv1.Header) { h.Size = nil })},
		"inline huge":              {inline(pattern(wire.MaxInline+1), func(*ringmodv1.Header) {})},
		"inline and chunk":         {inline(data, func(*ringmodv1.Header) {}), chunk(0, data)},
	}
}

func TestWrongStreams(t *testing.T) {
	t.Parallel()
	for name, messages := range wrongStreams() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testWrongStream(t, messages, wire.Options{Node: "n1"})
		})
		if strings.HasSuffix(name, "bytes, its own crc") {
			continue // that the digest finds
		}
		t.Run(name+", no digest", func(t *testing.T) {
			t.Parallel()
			testWrongStream(t, messages, wire.Options{Node: "n1", CRCOnly: true})
		})
	}
}

func testWrongStream(t *testing.T, messages []*ringmodv1.GetResponse, o wire.Options) {
	t.Helper()
	cc, _ := serve(t, play(nil, messages...))
	got, obj, err := drain(t.Context(), cc, zipRequest(t), o)
	if peer, ok := errors.AsType[*wire.PeerError](err); !ok || !errors.Is(err, wire.ErrProtocol) || peer.Node != "n1" {
		t.Errorf("got %d bytes, %v, want ErrProtocol of n1", len(got), err)
	}
	if obj != nil && obj.Size >= 0 && int64(len(got)) >= obj.Size {
		t.Errorf("all %d bytes were handed out before they were known to be right", len(got))
	}
	if obj != nil {
		if _, again := obj.Body.Read(make([]byte, 1)); again == nil || again == io.EOF {
			t.Errorf("the next Read: %v, want an error", again)
		}
	}
}

// Without a digest the CRC must be there.
func TestChunkWithoutCRC(t *testing.T) {
	t.Parallel()
	data := pattern(1000)
	bare := chunk(0, data)
	bare.GetChunk().Crc32C = nil
	cc, _ := serve(t, play(nil, headerOf(data), bare, trailerOf(data)))
	if got, _, err := drain(t.Context(), cc, zipRequest(t), wire.Options{}); err != nil || !bytes.Equal(got, data) {
		t.Errorf("with a digest: %d bytes, %v, want %d", len(got), err, len(data))
	}
	testWrongStream(t, []*ringmodv1.GetResponse{headerOf(data), bare, trailerOf(data)}, wire.Options{Node: "n1", CRCOnly: true})
	testWrongStream(t, []*ringmodv1.GetResponse{header(&ringmodv1.Header{}), chunk(0, data), trailerOf(data[1:])}, wire.Options{Node: "n1", CRCOnly: true})
}

func TestStatusInMidStream(t *testing.T) {
	t.Parallel()
	data := pattern(1000)
	tests := []struct {
		name string
		err  error
		want func(error) bool
	}{
		{"mismatch", wire.Status(&cache.Error{Reason: cache.Mismatch}), func(err error) bool { return cache.ReasonOf(err) == cache.Mismatch }},
		{"no detail", status.Error(codes.Unavailable, "gone"), isPeer(codes.Unavailable)},
		{"bad copy", status.Error(codes.DataLoss, "bad"), isPeer(codes.DataLoss)},
		{"not found without detail", status.Error(codes.NotFound, "?"), isPeer(codes.NotFound)},
		{"the node's own deadline", status.Error(codes.DeadlineExceeded, "?"), isPeer(codes.DeadlineExceeded)},
		{"canceled by the node", status.Error(codes.Canceled, "?"), isPeer(codes.Canceled)},
	}
	for _, test := range tests {
		for _, sent := range [][]*ringmodv1.GetResponse{
			nil,
			{headerOf(data)},
			{headerOf(data), chunk(0, data[:500])},
			{headerOf(data), chunk(0, data)},
			{headerOf(data), chunk(0, data), trailerOf(data)},
		} {
			cc, _ := serve(t, play(test.err, sent...))
			got, _, err := drain(t.Context(), cc, zipRequest(t), wire.Options{})
			if !test.want(err) || len(got) == len(data) {
				t.Errorf("%s after %d messages: %d bytes, %v", test.name, len(sent), len(got), err)
			}
		}
	}
}

func isPeer(code codes.Code) func(error) bool {
	return func(err error) bool {
		e, ok := errors.AsType[*wire.PeerError](err)
		return ok && e.Code == code
	}
}

func TestServerDiesInMidStream(t *testing.T) {
	t.Parallel()
	data := pattern(1000)
	sent := make(chan struct{})
	cc, server := serve(t, func(_ *ringmodv1.GetRequest, stream getStream) error {
		_ = play(nil, headerOf(data), chunk(0, data[:500]))(nil, stream)
		close(sent)
		<-stream.Context().Done()
		return nil
	})
	obj, err := wire.Get(t.Context(), cc, zipRequest(t), wire.Options{})
	if err != nil {
		t.Fatal(err)
	}
	<-sent
	if _, err := io.ReadFull(obj.Body, make([]byte, 500)); err != nil {
		t.Fatal(err)
	}
	server.Stop()
	if _, err := obj.Body.Read(make([]byte, 1)); !isPeer(codes.Unavailable)(err) {
		t.Errorf("got %v, want a *PeerError", err)
	}
}

func TestSilence(t *testing.T) {
	t.Parallel()
	data := pattern(1000)
	tests := map[string][]*ringmodv1.GetResponse{
		"from the start": nil, "after the header": {headerOf(data)}, "after bytes": {headerOf(data), chunk(0, data[:500])},
		"before the trailer": {headerOf(data), chunk(0, data)}, "before the end": {headerOf(data), chunk(0, data), trailerOf(data)},
	}
	for name, messages := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				left := make(chan struct{})
				cc, _ := serve(t, func(_ *ringmodv1.GetRequest, stream getStream) error {
					_ = play(nil, messages...)(nil, stream)
					<-stream.Context().Done()
					close(left)
					return nil
				})
				start := time.Now()
				got, _, err := drain(t.Context(), cc, zipRequest(t), wire.Options{})
				if !errors.Is(err, wire.ErrSilent) || !isPeer(codes.Unavailable)(err) || len(got) == len(data) {
					t.Errorf("got %d bytes, %v, want ErrSilent", len(got), err)
				}
				if d := time.Since(start); d != wire.Silence {
					t.Errorf("noticed after %v, want %v", d, wire.Silence)
				}
				<-left
			})
		})
	}
}

// A fill that takes its time is alive, and so is a reader that does.
func TestSlowIsNotSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		data := pattern(1000)
		cc, _ := serve(t, func(_ *ringmodv1.GetRequest, stream getStream) error {
			for range 600 {
				time.Sleep(wire.Heartbeat)
				if err := stream.Send(progress()); err != nil {
					return err
				}
			}
			return play(nil, headerOf(data), chunk(0, data[:500]), chunk(500, data[500:]), trailerOf(data))(nil, stream)
		})
		obj, err := wire.Get(t.Context(), cc, zipRequest(t), wire.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer obj.Body.Close()
		var got []byte
		for {
			time.Sleep(time.Minute)
			buf := make([]byte, 100)
			n, err := obj.Body.Read(buf)
			got = append(got, buf[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, data) {
			t.Errorf("got %d bytes, want %d", len(got), len(data))
		}
	})
}

func TestContextAndClose(t *testing.T) {
	t.Parallel()
	data := pattern(1000)
	left := make(chan struct{}, 4)
	hang := func(_ *ringmodv1.GetRequest, stream getStream) error {
		_ = play(nil, headerOf(data), chunk(0, data[:500]))(nil, stream)
		<-stream.Context().Done()
		left <- struct{}{}
		return nil
	}
	cc, _ := serve(t, hang)
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		obj, err := wire.Get(ctx, cc, zipRequest(t), wire.Options{})
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := io.Copy(io.Discard, obj.Body); !errors.Is(err, context.Canceled) || isPeer(codes.Canceled)(err) {
			t.Errorf("got %v, want context.Canceled alone", err)
		}
		<-left
	})
	t.Run("deadline", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, _, err := drain(ctx, cc, zipRequest(t), wire.Options{}); !errors.Is(err, context.DeadlineExceeded) || isPeer(codes.DeadlineExceeded)(err) {
			t.Errorf("got %v, want context.DeadlineExceeded alone", err)
		}
		<-left
	})
	t.Run("closed while reading", func(t *testing.T) {
		obj, err := wire.Get(t.Context(), cc, zipRequest(t), wire.Options{})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, obj.Body)
			ended <- err
		}()
		obj.Body.Close()
		if err := <-ended; err == nil {
			t.Error("a closed body ended well")
		}
		<-left
		obj.Body.Close()
	})
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
