package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/spans"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// Cache is what the service answers from; *Node is one.
type Cache interface {
	Get(ctx context.Context, req cache.Request) (*cache.Object, error)
}

// Holder tells what is held without reading it; *Node is one.
type Holder interface {
	Holding(ctx context.Context, t target.Target) (*ringmodv1.Holding, error)
}

// Heat finds out what is asked for more than the replicas should bear; *hot.Keys does.
type Heat interface {
	// Sent notes that size bytes of t go to somebody. It returns over how many ranks
	// callers may spread t for a minute; 0: over its replicas.
	Sent(t target.Target, size int64) int
	// Lacks says that somebody who spreads t over that many ranks was told that it is
	// not here. It does not block.
	Lacks(t target.Target, ranks int)
}

// ServiceConfig says what CacheService answers from.
type ServiceConfig struct {
	Cache   Cache
	Holder  Holder     // nil = Stat is not offered
	Heat    Heat       // nil = nothing is spread
	Metrics *Metrics   // nil = not measured
	Pool    *wire.Pool // the server's, see wire.ServerOptions; nil = one of its own
	// View returns digest and sequence number of this member's view, which go with
	// every answer; nil = it has none.
	View func() (digest, seq uint64)
	// OnView is told of requests that come with another digest than ours, so that
	// whoever is behind can refresh. caller is the id of the member that asks, ""
	// where it is not known. It must not block; nil = nobody.
	OnView func(caller string, digest, seq uint64)
	// Caller returns the id of the member that makes a call; nil = not known.
	Caller func(ctx context.Context) string
	// OnDamaged is told of an object whose copy here could not be read to its end. It
	// must not block; nil = nobody.
	OnDamaged func(name string)
	Ending    <-chan struct{} // closed when this member stops, so that lanes end; nil = never
	Logger    *slog.Logger    // nil = silent
}

// Register offers CacheService on server, which must have been made with
// wire.ServerOptions.
func Register(server grpc.ServiceRegistrar, cfg ServiceConfig) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Pool == nil {
		cfg.Pool = new(wire.Pool)
	}
	if cfg.View == nil {
		cfg.View = func() (digest, seq uint64) { return 0, 0 }
	}
	if cfg.Caller == nil {
		cfg.Caller = func(context.Context) string { return "" }
	}
	ringmodv1.RegisterCacheServiceServer(server, &service{cfg: cfg})
}

// service is CacheService. Whatever a caller sends, it ends that call and nothing
// else.
type service struct {
	ringmodv1.UnimplementedCacheServiceServer

	cfg ServiceConfig
}

// Get implements CacheService.
func (s *service) Get(req *ringmodv1.GetRequest, stream grpc.ServerStreamingServer[ringmodv1.GetResponse]) (err error) {
	ctx := stream.Context()
	defer s.end(ctx, "Get", &err)
	parsed, err := parseGet(req)
	if err != nil {
		return err
	}
	if spans.Sampled(ctx) {
		trace.SpanFromContext(ctx).SetAttributes(spans.Key.String(req.GetTarget()))
	}
	s.compare(ctx, req.GetViewDigest(), req.GetViewSeq())
	out := newSender(ctx, stream, s.cfg.Pool, s.cfg.View)
	out.metrics = s.cfg.Metrics
	defer out.stop()
	ctx = out.disk.with(ctx)
	if parsed.Mode == cache.Peek { // another node, which has the use
		ctx = store.Unused(ctx)
	}
	obj, err := s.cfg.Cache.Get(ctx, parsed)
	if err != nil {
		s.lacks(parsed, req, err)
		return err
	}
	defer obj.Body.Close()
	if s.cfg.Heat != nil && parsed.Mode != cache.Peek {
		out.fanout = uint32(s.cfg.Heat.Sent(parsed.Target, obj.Size-int64(req.GetOffset())))
	}
	err = answer(out, req, parsed.Target.Kind, obj)
	if status.Code(err) == codes.DataLoss && s.cfg.OnDamaged != nil {
		s.cfg.OnDamaged(parsed.Target.String())
	}
	return err
}

// lacks notes that a spare rank was asked for what is hot elsewhere.
func (s *service) lacks(parsed cache.Request, req *ringmodv1.GetRequest, err error) {
	if s.cfg.Heat != nil && req.GetFanout() > 0 && parsed.Mode == cache.OnlyIfCached && cache.ReasonOf(err) == cache.NotCached {
		s.cfg.Heat.Lacks(parsed.Target, int(req.GetFanout()))
	}
}

// Stat implements CacheService.
func (s *service) Stat(ctx context.Context, req *ringmodv1.StatRequest) (_ *ringmodv1.StatResponse, err error) {
	defer s.end(ctx, "Stat", &err)
	if s.cfg.Holder == nil {
		return nil, status.Error(codes.Unimplemented, "this member holds nothing")
	}
	if n := len(req.GetTargets()); n == 0 || n > wire.MaxStatTargets {
		return nil, invalid("%d targets, want 1 to %d", n, wire.MaxStatTargets)
	}
	s.compare(ctx, req.GetViewDigest(), req.GetViewSeq())
	resp := &ringmodv1.StatResponse{}
	resp.ViewDigest, resp.ViewSeq = s.cfg.View()
	for _, name := range req.GetTargets() {
		t, err := parseTarget(name)
		if err != nil {
			return nil, err
		}
		holding, err := s.cfg.Holder.Holding(ctx, t)
		if err != nil {
			return nil, err
		}
		resp.Holdings = append(resp.Holdings, holding)
	}
	return resp, nil
}

// compare tells OnView when the caller's view is not ours.
func (s *service) compare(ctx context.Context, digest, seq uint64) {
	if s.cfg.OnView == nil || seq == 0 {
		return
	}
	if ours, _ := s.cfg.View(); ours != digest {
		s.cfg.OnView(s.cfg.Caller(ctx), digest, seq)
	}
}

// end turns what ended a call into its status. A node that is stopping, or whose disk is
// dead, says nothing of the object: whoever asks takes the next rank.
func (s *service) end(ctx context.Context, method string, err *error) {
	if p := recover(); p != nil {
		s.cfg.Logger.ErrorContext(ctx, "panic in a call", "method", method, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = &cache.Error{Reason: cache.Internal, Text: "the cache failed while answering"}
	}
	if _, known := errors.AsType[*cache.Error](*err); *err != nil && !known && ctx.Err() == nil {
		s.cfg.Logger.WarnContext(ctx, "call failed", "method", method, "err", *err)
	}
	for _, ours := range []error{errStopping, store.ErrDead} {
		if errors.Is(*err, ours) {
			*err = status.Error(codes.Unavailable, ours.Error())
		}
	}
	*err = wire.Status(*err)
}

// parseGet holds a request to its limits. Only a bad target is the developer's
// fault; anything else is between us and the caller and must not look like an
// answer about the object.
func parseGet(req *ringmodv1.GetRequest) (cache.Request, error) {
	t, err := parseTarget(req.GetTarget())
	if err != nil {
		return cache.Request{}, err
	}
	switch n := len(req.GetWantSha256()); {
	case n != 0 && n != sha256.Size:
		return cache.Request{}, invalid("want_sha256 of %d bytes", n)
	case n == 0 && req.GetOffset() != 0:
		return cache.Request{}, invalid("offset without want_sha256")
	case req.GetHops() > wire.MaxHops:
		return cache.Request{}, invalid("%d hops", req.GetHops())
	case len(req.GetRequestId()) > wire.MaxRequestID:
		return cache.Request{}, invalid("request_id of %d bytes", len(req.GetRequestId()))
	}
	return cache.Request{
		Target: t, Mode: modeOf(req.GetMode()), Hops: wire.MaxHops - int(req.GetHops()), Refresh: req.GetRefresh(),
		// What is being filled has no digest to compare yet.
		Whole: req.GetWhole() || len(req.GetWantSha256()) > 0,
	}, nil
}

func parseTarget(name string) (target.Target, error) {
	t, err := target.Parse(name)
	if err != nil {
		return t, &cache.Error{Reason: cache.Malformed, Text: err.Error(), Err: err}
	}
	return t, nil
}

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// modeOf takes the unknown for the least that a caller can have meant.
func modeOf(m ringmodv1.Mode) cache.Mode {
	switch m {
	case ringmodv1.Mode_MODE_ALLOW_FILL:
		return cache.AllowFill
	case ringmodv1.Mode_MODE_COORDINATE:
		return cache.Coordinate
	case ringmodv1.Mode_MODE_PEEK:
		return cache.Peek
	default:
		return cache.OnlyIfCached
	}
}

// sourceOf is the source on the wire, which has the same numbers.
func sourceOf(s cache.Source) ringmodv1.Source { return ringmodv1.Source(s) }

// ageOf returns how long ago t was, never less than nothing.
func ageOf(t time.Time) time.Duration { return max(0, time.Since(t)) }
