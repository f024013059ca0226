package direct_test

import (
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

func TestCommandsAreSpans(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	r.commit(map[string]string{"go.mod": mod1}, "v1.0.0")
	d, _ := newDirect(t, r, nil)
	seen := tracetest.NewSpanRecorder()
	ctx, request := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(seen)).Tracer("test").Start(t.Context(), "request")
	resp, err := d.Fetch(ctx, parse(t, repo+"/@v/v1.0.0.mod"))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	for _, s := range seen.Ended() {
		if s.Name() == "go" && s.Parent().SpanID() == request.SpanContext().SpanID() {
			return
		}
	}
	t.Errorf("no span of a go command under that of the request: %v", seen.Ended())
}
