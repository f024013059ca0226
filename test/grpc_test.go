package test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// TestServices asks a process over gRPC, as another member will: health, a zip
// that has to be filled, and something that upstream does not have.
func TestServices(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t, upstreamtest.Module{Path: "example.com/m", Version: "v1.0.0", Pad: 1 << 20})
	p := harness.Serve(t, "--data-dir", t.TempDir(), "--upstream", fake.URL, "--sumdb", "off")
	pool := &wire.Pool{}
	conn, err := grpc.NewClient(p.GRPC, append(wire.DialOptions(pool, wire.Near), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })

	health, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || health.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", health, err)
	}
	zip := mustTarget(t, "example.com/m/@v/v1.0.0.zip")
	obj, err := wire.Get(t.Context(), conn, cache.Request{Target: zip}, wire.Options{Node: p.GRPC, Pool: pool})
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(obj.Body)
	_ = obj.Body.Close()
	if want := fake.Zip("example.com/m", "v1.0.0"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v, want the %d of upstream", len(got), err, len(want))
	}
	_, err = wire.Get(t.Context(), conn, cache.Request{Target: mustTarget(t, "example.com/m/@v/v1.9.0.mod")}, wire.Options{Node: p.GRPC, Pool: pool})
	if e, ok := errors.AsType[*cache.Error](err); !ok || e.Reason != cache.NotFound {
		t.Errorf("an absent version: %v, want reason %v", err, cache.NotFound)
	}
}

func mustTarget(t *testing.T, name string) target.Target {
	t.Helper()
	parsed, err := target.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}
