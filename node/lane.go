package node

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// laneWidth is how many requests of one lane are answered at the same time; more
// wait to be read, and their callers do not wait long.
const laneWidth = 64

// lane is the node's end of a GetSmall.
type lane struct {
	*service

	stream grpc.BidiStreamingServer[ringmodv1.GetSmallRequest, ringmodv1.GetSmallResponse]
	work   chan *ringmodv1.GetSmallRequest

	sending sync.Mutex
}

// GetSmall implements CacheService.
func (s *service) GetSmall(stream grpc.BidiStreamingServer[ringmodv1.GetSmallRequest, ringmodv1.GetSmallResponse]) (err error) {
	ctx := stream.Context()
	defer s.end(ctx, "GetSmall", &err)
	l := &lane{service: s, stream: stream, work: make(chan *ringmodv1.GetSmallRequest)}
	var running sync.WaitGroup
	defer running.Wait()
	over := make(chan struct{})
	defer close(over)
	running.Go(func() { l.goodbye(over) })
	defer close(l.work)
	for workers := 0; ; {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case l.work <- req:
			continue
		default:
		}
		if workers < laneWidth {
			workers++
			running.Go(func() { l.serve(ctx) })
		}
		l.work <- req
	}
}

// serve answers until the lane ends. Goroutines are kept, as each new one would have to
// grow its stack.
func (l *lane) serve(ctx context.Context) {
	for req := range l.work {
		l.answer(ctx, req)
	}
}

// goodbye tells the caller when this member stops.
func (l *lane) goodbye(over <-chan struct{}) {
	select {
	case <-over:
	case <-l.cfg.Ending:
		l.send(&ringmodv1.GetSmallResponse{})
	}
}

// send sends an answer. When it cannot, Recv says why.
func (l *lane) send(resp *ringmodv1.GetSmallResponse) {
	l.sending.Lock()
	defer l.sending.Unlock()
	_ = l.stream.Send(resp)
}

func (l *lane) answer(ctx context.Context, req *ringmodv1.GetSmallRequest) {
	resp := &ringmodv1.GetSmallResponse{Id: req.GetId()}
	if req.GetId() != 0 {
		resp.Header = l.header(ctx, req.GetGet())
		l.send(resp)
	}
}

// header returns the whole object, nil for what is to be asked with Get.
func (l *lane) header(ctx context.Context, req *ringmodv1.GetRequest) (h *ringmodv1.Header) {
	var err error
	defer func() {
		if err != nil {
			h = nil
		}
	}()
	defer l.end(ctx, "GetSmall", &err)
	parsed, err := parseGet(req)
	k := parsed.Target.Kind
	if err != nil || !k.Immutable() || k == target.Zip || len(req.GetWantSha256()) > 0 {
		return nil
	}
	l.compare(ctx, req.GetViewDigest(), req.GetViewSeq())
	parsed.Mode = cache.Peek
	obj, err := l.cfg.Cache.Get(ctx, parsed)
	if err != nil {
		return nil
	}
	defer obj.Body.Close()
	if obj.SHA256 == [32]byte{} || obj.Size < 0 || obj.Size > int64(min(req.GetMaxInline(), wire.MaxInline)) {
		return nil
	}
	h = headerOf(obj, k)
	h.Inline = make([]byte, obj.Size)
	_, err = io.ReadFull(obj.Body, h.Inline)
	h.ViewDigest, h.ViewSeq = l.cfg.View()
	if l.cfg.Heat != nil {
		h.Fanout = uint32(l.cfg.Heat.Sent(parsed.Target, obj.Size))
	}
	l.cfg.Metrics.sent(len(h.GetInline()))
	return h
}
