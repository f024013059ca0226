package gateway

import (
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
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
	if id := traceID(x.r.Header["Traceparent"]); id != "" {
		attrs = append(attrs, slog.String("trace_id", id))
	}
	if x.err != nil {
		attrs = append(attrs, slog.String("err", inFull(x.err)))
	}
	g.log.LogAttrs(ctx, level, "request", attrs...)
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

// traceID returns the trace id of a traceparent header, "" when it is not valid
// (https://www.w3.org/TR/trace-context/#traceparent-header).
func traceID(values []string) string {
	const zeros = "00000000000000000000000000000000"
	if len(values) != 1 || len(values[0]) < 55 {
		return ""
	}
	v := values[0]
	version, id, parent, flags := v[:2], v[3:35], v[36:52], v[53:55]
	if v[2] != '-' || v[35] != '-' || v[52] != '-' || version == "ff" || version == "00" && len(v) > 55 || len(v) > 55 && v[55] != '-' {
		return ""
	}
	if !isHex(version) || !isHex(id) || !isHex(parent) || !isHex(flags) || id == zeros || parent == zeros[:16] {
		return ""
	}
	return id
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
