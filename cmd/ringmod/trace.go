package main

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"golang.org/x/time/rate"
)

// traceFlush is how long the last spans of a process may take to be delivered.
const traceFlush = 3 * time.Second

// trace sends the traces of requests to the collector that the OTEL_ variables name
// (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/); no
// collector, no traces. What is wrong with the variables is logged: builds do not stop
// because nobody watches them.
func (a *assembly) trace(ctx context.Context) {
	exporter, err := newExporter(ctx, os.Getenv)
	if err != nil {
		a.log.WarnContext(ctx, "no traces are sent", "err", err)
	}
	if exporter == nil {
		return
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(
		semconv.ServiceName("ringmod"), semconv.ServiceVersion(version()), semconv.ServiceInstanceID(a.id), attribute.String("ringmod.region", a.options.region),
	), resource.WithFromEnv()) // the last one wins
	if err != nil {
		a.log.WarnContext(ctx, "traces lack what OTEL_RESOURCE_ATTRIBUTES says", "err", err)
	}
	seldom := rate.Sometimes{Interval: time.Minute}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		seldom.Do(func() { a.log.WarnContext(ctx, "traces are lost", "err", err) })
	}))
	tracers := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))
	a.tracers = tracers
	a.closers = append(a.closers, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), traceFlush)
		defer cancel()
		if err := tracers.Shutdown(ctx); err != nil {
			a.log.WarnContext(ctx, "the last traces are lost", "err", err)
		}
	})
}

// newExporter returns what sends spans where getenv says, nil if it says nothing of that.
// The exporters read for themselves what else the variables say.
func newExporter(ctx context.Context, getenv func(string) string) (sdktrace.SpanExporter, error) {
	kind := getenv("OTEL_TRACES_EXPORTER")
	name, endpoint := "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
	if endpoint == "" {
		name, endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT", getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
	}
	switch {
	case strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true"), kind == "none", kind == "" && endpoint == "":
		return nil, nil
	case kind != "" && kind != "otlp":
		return nil, fmt.Errorf("OTEL_TRACES_EXPORTER is %q; set it to otlp, or to none", kind)
	}
	if u, err := url.Parse(endpoint); endpoint != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("%s is no http or https URL, such as http://127.0.0.1:4318", name)
	}
	protocol := cmp.Or(getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"), getenv("OTEL_EXPORTER_OTLP_PROTOCOL"), "http/protobuf")
	switch protocol {
	case "http/protobuf":
		return otlptracehttp.New(ctx)
	case "grpc":
		return otlptracegrpc.New(ctx)
	default:
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL is %q; set it to http/protobuf or grpc", protocol)
	}
}
