package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// TestTrace follows requests that arrive with a trace of their own: the collector can
// see each of them from the client through gateway, node and the node of the home region
// to upstream, and no credentials.
func TestTrace(t *testing.T) {
	t.Parallel()
	collector := newCollector(t)
	fake := upstreamtest.New(t)
	c := harness.NewCluster(t, "--upstream", fake.URL)
	for _, s := range []harness.Spec{{Name: "eu1", Region: "eu"}, {Name: "us1", Region: "us"}} {
		s.Env = collector.env()
		c.StartNode(s)
	}
	gw := c.StartGateway(harness.Spec{Name: "gw", Region: "eu", Env: collector.env()})
	c.WaitConverged()
	const modules = 8
	for i := range modules {
		fake.Add(upstreamtest.Module{Path: fmt.Sprintf("example.com/m%d", i), Version: "v1.0.0"})
		traced(t, gw, fmt.Sprintf("/example.com/m%d/@v/v1.0.0.mod", i), cold(i))
	}
	far := 0
	for i := range modules {
		path := collector.path(t, cold(i), func(s span) bool { return s.GetName() == "upstream GET" })
		if through := visited(path); slices.Equal(through, []string{"us1", "eu1", "gw"}) {
			far++
		} else if want := []string{"eu1", "gw"}; !slices.Equal(through, want) {
			t.Errorf("m%d went through %v, want %v, and us1 first where it is at home there", i, through, want)
		}
		eventually(t, "the access log names the trace "+cold(i), func() bool { return strings.Contains(gw.Log(), cold(i)) })
	}
	if far == 0 || far == modules {
		t.Errorf("%d of %d traces crossed the regions, want some", far, modules)
	}

	next := c.StartGateway(harness.Spec{Name: "gw2", Region: "eu", Env: append(collector.grpcEnv(), "OTEL_TRACES_SAMPLER=parentbased_always_off")})
	c.WaitConverged()
	traced(t, next, "/example.com/m0/@v/v1.0.0.mod", warm)
	path := collector.path(t, warm, func(s span) bool { return s.process == "eu1" })
	if got, want := visited(path), []string{"eu1", "gw2"}; !slices.Equal(got, want) {
		t.Errorf("what is held went through %v, want %v", got, want)
	}
	for _, secret := range []string{"hunter2", "opensesame"} {
		if collector.saw(secret) {
			t.Errorf("the collector was told %q", secret)
		}
	}
}

// clientSpan is the span of the client in its traces.
const clientSpan = "b7ad6b7169203331"

const warm = "0af7651916cd43dd8448eb211c80319c"

func cold(i int) string { return fmt.Sprintf("%032x", 0xc01d00+i) }

// traced asks as part of a trace, with credentials that are nobody's business.
func traced(t *testing.T, p *harness.Process, path, trace string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.URL()+path+"?token=hunter2", nil)
	if err != nil {
		t.Error(err)
		return
	}
	req.SetBasicAuth("ali", "opensesame")
	req.Header.Set("Traceparent", "00-"+trace+"-"+clientSpan+"-01")
	resp, err := p.Client().Do(req)
	if err != nil {
		t.Error(err)
		return
	}
	body, err := io.ReadAll(resp.Body)
	if _ = resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("%s: %s, %v: %s", path, resp.Status, err, body)
	}
}

// TestTraceOfWhoJoins has a second client wait for what a first one makes the node fetch:
// that is in the first one's trace, to which the second one's leads. A second client who
// came too late to wait tries again.
func TestTraceOfWhoJoins(t *testing.T) {
	t.Parallel()
	collector := newCollector(t)
	fake := upstreamtest.New(t)
	p := harness.ServeEnv(t, collector.env(), "--data-dir", t.TempDir(), "--upstream", fake.URL, "--sumdb", "off")
	n := 0
	eventually(t, "the second trace leads to the first", func() bool {
		n++
		zip := fmt.Sprintf("/example.com/m%d/@v/v1.0.0.zip", n)
		fake.Add(upstreamtest.Module{Path: fmt.Sprintf("example.com/m%d", n), Version: "v1.0.0"})
		held := make(chan struct{})
		fake.Fault(zip, upstreamtest.Fault{Block: held})
		var clients sync.WaitGroup
		for i := range 2 {
			clients.Go(func() { traced(t, p, zip, cold(2*n+i)) })
			inFlight(t, p, i+1)
		}
		close(held)
		clients.Wait()
		way := collector.path(t, cold(2*n+1), func(span) bool { return true })
		return slices.ContainsFunc(way[0].GetLinks(), func(l *tracepb.Span_Link) bool { return fmt.Sprintf("%x", l.GetTraceId()) == cold(2*n) })
	})
}

// TestTraceTrouble plays variables that make no sense and a collector that is not there:
// a line in the log says so, and builds go on.
func TestTraceTrouble(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for _, test := range []struct {
		name string
		env  []string
		want string
	}{
		{"an exporter of another kind", []string{"OTEL_TRACES_EXPORTER=zipkin"}, `no traces are sent.*OTEL_TRACES_EXPORTER.*otlp, or to none`},
		{"no URL", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=collector:4318"}, `no traces are sent.*OTEL_EXPORTER_OTLP_ENDPOINT is no http or https URL`},
		{"a protocol of another kind", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + gone.URL, "OTEL_EXPORTER_OTLP_PROTOCOL=http/json"}, `no traces are sent.*http/protobuf or grpc`},
		{"nobody there", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + gone.URL, "OTEL_BSP_SCHEDULE_DELAY=50", "OTEL_EXPORTER_OTLP_TIMEOUT=1000"}, `traces are lost`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			fake := upstreamtest.New(t, upstreamtest.Module{Path: "example.com/m", Version: "v1.0.0"})
			p := harness.ServeEnv(t, test.env, "--data-dir", t.TempDir(), "--upstream", fake.URL, "--sumdb", "off")
			traced(t, p, "/example.com/m/@v/v1.0.0.info", warm)
			said := regexp.MustCompile(test.want)
			eventually(t, "a line in the log: "+test.want, func() bool { return said.MatchString(p.Log()) })
			p.Stop()
		})
	}
}

// collector is what OpenTelemetry sends spans to.
type collector struct {
	coltracepb.UnimplementedTraceServiceServer

	url     string
	grpcURL string

	mu    sync.Mutex
	raw   []byte // all that was sent
	spans []span
}

type span struct {
	*tracepb.Span

	process string // service.instance.id
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var req coltracepb.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &req)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("a collector was sent to %s: %v", r.URL.Path, err)
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		c.take(body, &req)
	}))
	t.Cleanup(srv.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	overGRPC := grpc.NewServer()
	coltracepb.RegisterTraceServiceServer(overGRPC, c)
	go func() { _ = overGRPC.Serve(l) }() // until it is stopped
	t.Cleanup(overGRPC.Stop)
	c.url, c.grpcURL = srv.URL, "http://"+l.Addr().String()
	return c
}

// Export implements the service that spans come to over gRPC.
func (c *collector) Export(_ context.Context, req *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	body, err := proto.Marshal(req)
	if err == nil {
		c.take(body, req)
	}
	return &coltracepb.ExportTraceServiceResponse{}, err
}

// env makes a process send all it has to c, soon.
func (c *collector) env() []string {
	return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.url, "OTEL_BSP_SCHEDULE_DELAY=50"}
}

func (c *collector) grpcEnv() []string {
	return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.grpcURL, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_BSP_SCHEDULE_DELAY=50"}
}

func (c *collector) take(body []byte, req *coltracepb.ExportTraceServiceRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw = append(c.raw, body...)
	for _, resource := range req.GetResourceSpans() {
		var process string
		for _, a := range resource.GetResource().GetAttributes() {
			if a.GetKey() == "service.instance.id" {
				process = a.GetValue().GetStringValue()
			}
		}
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, span{s, process})
			}
		}
	}
}

func (c *collector) saw(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Contains(c.raw, []byte(text))
}

// path waits for the whole way from a span to the one that the client's is the parent of.
func (c *collector) path(t *testing.T, trace string, from func(span) bool) (way []span) {
	t.Helper()
	eventually(t, "trace "+trace+" leads to the client's span", func() bool {
		way = c.way(trace, from)
		return len(way) > 0 && fmt.Sprintf("%x", way[len(way)-1].GetParentSpanId()) == clientSpan
	})
	return way
}

func (c *collector) way(trace string, from func(span) bool) (way []span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	byID := make(map[string]span)
	var s span
	for _, each := range c.spans {
		if fmt.Sprintf("%x", each.GetTraceId()) != trace {
			continue
		}
		byID[string(each.GetSpanId())] = each
		if from(each) {
			s = each
		}
	}
	for ok := s.Span != nil; ok; s, ok = byID[string(s.GetParentSpanId())] {
		way = append(way, s)
	}
	return way
}

// visited lists the processes on a way, each once in a row.
func visited(way []span) (names []string) {
	for _, s := range way {
		names = append(names, s.process)
	}
	return slices.Compact(names)
}
