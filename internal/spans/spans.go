// Package spans writes what a request does here into the trace that it belongs to.
//
// It promises whoever marks a piece of work that it costs next to nothing where nobody
// traces: a span is begun only under one that this process has begun for the request
// (a gateway's HTTP handler, a node's gRPC server), by the provider of that one. Work
// that no request has asked for is never traced by it, and nothing is global.
package spans

import (
	"context"
	"net/http"
	"strings"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// scope is the name under which ringmod's own spans appear.
const scope = "github.com/ringmod/ringmod"

// What ringmod's own spans are about.
const (
	Key  = attribute.Key("ringmod.key")  // of the object, as logs call it
	Node = attribute.Key("ringmod.node") // that is asked
)

// Start begins a span under that of ctx; who began it ends it with [End].
func Start(ctx context.Context, kind trace.SpanKind, name string, about ...attribute.KeyValue) (context.Context, trace.Span) {
	return trace.SpanFromContext(ctx).TracerProvider().Tracer(scope).
		Start(ctx, name, trace.WithSpanKind(kind), trace.WithAttributes(about...))
}

// End ends s with the error that the work has ended with, nil where it went well.
func End(s trace.Span, err error) {
	if err != nil {
		s.SetStatus(codes.Error, err.Error())
	}
	s.End()
}

// Of names the span of ctx, for [Join].
func Of(ctx context.Context) trace.SpanContext { return trace.SpanContextFromContext(ctx) }

// Join says in the span of ctx that its request waits for work that another one has
// begun, in whose trace that work is.
func Join(ctx context.Context, other trace.SpanContext) {
	if other.IsValid() {
		trace.SpanFromContext(ctx).AddLink(trace.Link{SpanContext: other})
	}
}

// DialOptions send the trace of a request along with the calls of Get that it makes to
// that node, each of which is a span; nil: they send nothing.
func DialOptions(tracers trace.TracerProvider, node string) []grpc.DialOption {
	if tracers == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithStatsHandler(otelgrpc.NewClientHandler(append(options(tracers), otelgrpc.WithSpanAttributes(Node.String(node)))...))}
}

// ServerOptions take up the traces of calls of Get; nil: they take up nothing.
func ServerOptions(tracers trace.TracerProvider) []grpc.ServerOption {
	if tracers == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(options(tracers)...))}
}

func options(tracers trace.TracerProvider) []otelgrpc.Option {
	return []otelgrpc.Option{
		otelgrpc.WithTracerProvider(tracers), otelgrpc.WithMeterProvider(noop.NewMeterProvider()), otelgrpc.WithPropagators(propagation.TraceContext{}),
		otelgrpc.WithFilter(func(call *stats.RPCTagInfo) bool {
			return call.FullMethodName == ringmodv1.CacheService_Get_FullMethodName
		}),
	}
}

// Handler begins a span for each request for an object that h answers, as part of the client's trace
// where it has sent one; nil: h itself.
func Handler(tracers trace.TracerProvider, h http.Handler) http.Handler {
	if tracers == nil {
		return h
	}
	return otelhttp.NewHandler(h, "gateway", otelhttp.WithTracerProvider(tracers), otelhttp.WithMeterProvider(noop.NewMeterProvider()),
		otelhttp.WithPropagators(propagation.TraceContext{}),
		otelhttp.WithFilter(func(r *http.Request) bool {
			return strings.Contains(r.URL.Path, "/@") || strings.HasPrefix(r.URL.Path, "/sumdb/")
		}))
}

// Sampled tells whether the request of ctx is traced.
func Sampled(ctx context.Context) bool { return Of(ctx).IsSampled() }
