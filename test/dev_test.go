package test

import (
	"crypto/sha256"
	"encoding/json"
	"os"
	"testing"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// TestDev runs a cluster in one process: it serves, it knows its members, and it
// leaves nothing behind.
func TestDev(t *testing.T) {
	t.Parallel()
	m := upstreamtest.Module{Path: "example.com/m", Version: "v1.0.0", Pad: 1 << 20}
	fake := upstreamtest.New(t, m)
	tmp := t.TempDir()
	p := harness.Dev(t, tmp, "--nodes", "4", "--regions", "2", "--gateways", "2", "--upstream", fake.URL, "--sumdb", "off")

	want := sha256.Sum256(fake.Zip(m.Path, m.Version))
	if got, err := get(t.Context(), p.URL()+"/example.com/m/@v/v1.0.0.zip"); err != nil || got != want {
		t.Errorf("a zip through the cluster has other bytes than upstream's, or an error: %v", err)
	}
	status, stdout, stderr := harness.Run(t, nil, "status", "--json", "--addr", p.GRPC)
	var view struct {
		Members []struct{ Up bool }
	}
	if err := json.Unmarshal([]byte(stdout), &view); status != 0 || err != nil {
		t.Fatalf("status --json ended with %d, %v: %s%s", status, err, stdout, stderr)
	}
	up := 0
	for _, member := range view.Members {
		if member.Up {
			up++
		}
	}
	if up != 6 {
		t.Errorf("members that are up: %d, want 6", up)
	}
	p.Stop()
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("temporary data is left: %v, %v", left, err)
	}
}
