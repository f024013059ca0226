package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// TestTwoCopiesThatDisagree lets two nodes hold different bytes of one .info, for which no
// checksum database can speak: the older copy wins on both, the other one is kept aside.
func TestTwoCopiesThatDisagree(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("one of the copies has to be a minute older than the other")
	}
	const name = "example.com/m/@v/v1.0.0.info"
	const older, younger = `{"Version":"v1.0.0","Time":"2026-01-01T00:00:00Z"}`, `{"Version":"v1.0.0","Time":"2026-02-02T00:00:00Z"}`
	fake := upstreamtest.New(t)
	c := harness.NewCluster(t, "--upstream", fake.URL)
	c.Put("n1", name, []byte(older))
	n1 := c.StartNode(harness.Spec{Name: "n1"})
	if status, out, stderr := harness.Run(t, nil, "explain", "example.com/m@v1.0.0", "--addr", n1.GRPC); status != 0 {
		t.Fatalf("%s%s", out, stderr)
	}
	time.Sleep(70 * time.Second) // until the age of the copies, adopted at the start, tells them apart
	c.Put("n2", name, []byte(younger))
	c.StartNode(harness.Spec{Name: "n2"})
	c.WaitConverged()
	onDisk := func(node string) string {
		data, _ := os.ReadFile(filepath.Join(c.DataDir(node), "objects", filepath.FromSlash(name)))
		return string(data)
	}
	eventually(t, "both to hold the older copy", func() bool { return onDisk("n1") == older && onDisk("n2") == older })
	aside, err := filepath.Glob(filepath.Join(c.DataDir("n2"), "quarantine", "*"))
	if err != nil || len(aside) != 1 {
		t.Fatalf("quarantine of n2 holds %q, %v, want the younger copy", aside, err)
	}
	if data, err := os.ReadFile(aside[0]); err != nil || string(data) != younger {
		t.Errorf("quarantine of n2 holds %q, %v", data, err)
	}
	n2 := c.Member("n2")
	if n := n2.Metric(`ringmod_scrub_conflicts_total{outcome="replaced"}`); n != 1 || !strings.Contains(n2.Log(), "two copies disagree") {
		t.Errorf("n2 counts %v conflicts in which its copy was replaced", n)
	}
	if got := fake.Requests(); len(got) != 0 {
		t.Errorf("requests to upstream: %q", got)
	}
}
