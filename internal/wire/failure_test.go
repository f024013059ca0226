package wire_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

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

func TestGiantMessage(t *testing.T) {
	t.Parallel()
	data := pattern(2 << 20)
	cc, _ := serve(t, play(nil, headerOf(data), chunk(0, data), trailerOf(data)))
	got, _, err := drain(t.Context(), cc, zipRequest(t), wire.Options{})
	if _, ok := errors.AsType[*wire.PeerError](err); !ok || len(got) > 0 {
		t.Errorf("got %d bytes, %v, want a *PeerError", len(got), err)
	}
}

// The server puts up with the client's pings, and a connection that nothing is
// asked on for an hour is still there.
func TestKeepalivesAgree(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cc, _ := serve(t, func(_ *ringmodv1.GetRequest, stream getStream) error {
			<-stream.Context().Done()
			return nil
		})
		_, err := wire.Get(t.Context(), cc, zipRequest(t), wire.Options{Silence: time.Hour})
		if !errors.Is(err, wire.ErrSilent) {
			t.Errorf("after an hour of pings: %v, want the silence of the handler alone", err)
		}
		if got := cc.GetState(); got != connectivity.Ready {
			t.Errorf("the connection is %v, want READY", got)
		}
	})
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

// The first message has a limit of its own, in which connecting is included.
func TestFirstMessage(t *testing.T) {
	t.Parallel()
	const first = 1500 * time.Millisecond
	for name, test := range map[string]struct {
		messages []*ringmodv1.GetResponse
		want     time.Duration
	}{
		"silent": {nil, first}, "silent later": {[]*ringmodv1.GetResponse{progress()}, wire.Silence},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cc, _ := serve(t, func(_ *ringmodv1.GetRequest, stream getStream) error {
					_ = play(nil, test.messages...)(nil, stream)
					<-stream.Context().Done()
					return nil
				})
				start := time.Now()
				_, err := wire.Get(t.Context(), cc, zipRequest(t), wire.Options{First: first})
				if got := time.Since(start); !errors.Is(err, wire.ErrSilent) || got != test.want {
					t.Errorf("got %v after %v, want ErrSilent after %v", err, got, test.want)
				}
			})
		})
	}
	t.Run("no connection", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			cc, err := grpc.NewClient("passthrough:///node", append(wire.DialOptions(new(wire.Pool), wire.Near),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
					<-ctx.Done()
					return nil, ctx.Err()
				}), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
			if err != nil {
				t.Fatal(err)
			}
			defer cc.Close()
			start := time.Now()
			_, err = wire.Get(t.Context(), cc, zipRequest(t), wire.Options{First: first})
			if got := time.Since(start); !errors.Is(err, wire.ErrSilent) || got != first {
				t.Errorf("got %v after %v, want ErrSilent after %v", err, got, first)
			}
		})
	})
}

// All streams taken is a busy node, which a silent one is not.
func TestCrowdedIsNotSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		data := pattern(1000)
		cc, _ := serve(t, func(_ *ringmodv1.GetRequest, stream getStream) error {
			_ = play(nil, headerOf(data))(nil, stream)
			<-stream.Context().Done()
			return nil
		}, grpc.MaxConcurrentStreams(1))
		obj, err := wire.Get(t.Context(), cc, zipRequest(t), wire.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer obj.Body.Close()
		_, err = wire.Get(t.Context(), cc, zipRequest(t), wire.Options{})
		if !errors.Is(err, wire.ErrCrowded) || !isPeer(codes.ResourceExhausted)(err) {
			t.Errorf("got %v, want ErrCrowded", err)
		}
	})
}

// Who does not read stops the node after what the windows take.
func TestSlowReaderHoldsLittle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		data := pattern(wire.ChunkSize)
		var sent atomic.Int64
		cc, _ := serve(t, func(_ *ringmodv1.GetRequest, stream getStream) error {
			if err := stream.Send(header(&ringmodv1.Header{})); err != nil {
				return err
			}
			for {
				if err := stream.Send(chunk(int(sent.Load()), data)); err != nil {
					return err
				}
				sent.Add(int64(len(data)))
			}
		})
		obj, err := wire.Get(t.Context(), cc, zipRequest(t), wire.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer obj.Body.Close()
		for range 100 {
			if _, err := io.ReadFull(obj.Body, make([]byte, wire.ChunkSize)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if ahead := sent.Load() - 100*wire.ChunkSize; ahead > 20<<20 {
			t.Errorf("the node is %d bytes ahead of a reader that has stopped", ahead)
		} else {
			t.Logf("the node is %d KiB ahead", ahead>>10)
		}
	})
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
