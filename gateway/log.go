package gateway

import (
	"errors"
	"log/slog"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/spans"
)

// accessLogger returns the logger of cfg with what is the same on each line.
func accessLogger(cfg Config) *slog.Logger {
	l := cfg.Logger
	if l == nil {
		l = slog.New(slog.DiscardHandler)
	}
	if cfg.Region != "" {
		l = l.With("region", cfg.Region)
	}
	if cfg.Node != "" {
		l = l.With("node", cfg.Node)
	}
	return l
}

// maxLoggedPath bounds what a client can put on an access line.
const maxLoggedPath = 1 << 10

// logRequest writes the access line. It holds the path without its query, in
// which credentials might be.
func (g *Gateway) logRequest(x *exchange, took time.Duration) {
	level := levelOf(x)
	ctx := x.r.Context()
	if !g.log.Enabled(ctx, level) {
		return
	}
	path := x.r.URL.Path
	path = path[:min(len(path), maxLoggedPath)]
	attrs := make([]slog.Attr, 0, 11)
	attrs = append(attrs,
		slog.String("method", x.r.Method),
		slog.String("path", path),
		slog.Int("status", x.status),
		slog.Int64("bytes", x.bytes),
		slog.Float64("duration_ms", float64(took.Microseconds())/1e3),
		slog.String("cache", x.outcome.String()))
	if x.target.Path != "" {
		attrs = append(attrs, slog.String("module", x.target.Path))
	}
	if x.target.Version != "" {
		attrs = append(attrs, slog.String("version", x.target.Version))
	}
	if span := spanOf(x.r); span.IsValid() {
		attrs = append(attrs, slog.String("trace_id", span.TraceID().String()))
	}
	if x.err != nil {
		attrs = append(attrs, slog.String("err", inFull(x.err)))
	}
	g.log.LogAttrs(ctx, level, "request", attrs...)
}

// trace says in the span of x how it was answered, as far as HTTP does not tell.
func (x *exchange) trace() {
	span := trace.SpanFromContext(x.r.Context())
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(attribute.String("ringmod.cache", x.outcome.String()), spans.Key.String(x.target.String()))
	if x.err != nil {
		span.SetAttributes(attribute.String("ringmod.err", inFull(x.err)))
	}
}

// inFull returns the text of err with its cause, which a developer is not shown.
func inFull(err error) string {
	e, ok := errors.AsType[*cache.Error](err)
	if !ok || e.Err == nil || e.Text == "" {
		return err.Error()
	}
	return err.Error() + ": " + e.Err.Error()
}

func levelOf(x *exchange) slog.Level {
	switch {
	case x.kind == kindHealth, x.status == statusClientGone:
		return slog.LevelDebug
	case x.status >= http.StatusInternalServerError && x.status != http.StatusServiceUnavailable:
		return slog.LevelError
	case x.status == http.StatusServiceUnavailable, x.cut && !x.gone():
		return slog.LevelWarn
	default:
		return slog.LevelInfo
	}
}

// spanOf names the span of a request: the one that this process has begun for it, else
// what the client has sent (https://www.w3.org/TR/trace-context/#traceparent-header),
// which is not valid where there is none.
func spanOf(r *http.Request) trace.SpanContext {
	if own := spans.Of(r.Context()); own.IsValid() || r.Header["Traceparent"] == nil {
		return own
	}
	return spans.Of(propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header)))
}
