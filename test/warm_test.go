package test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// What was warmed is there for a go command when nobody is left to be asked, with
// all proofs of the checksum database; a second warm asks upstream for nothing; what
// cannot be had is named.
func TestWarm(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t,
		upstreamtest.Module{Path: "example.com/a", Version: "v1.0.0", Files: map[string]string{"go.mod": "module example.com/a\n\ngo 1.21\n\nrequire example.com/b v1.0.0\n"}},
		upstreamtest.Module{Path: "example.com/b", Version: "v1.0.0"},
		upstreamtest.Module{Path: "example.com/b", Version: "v1.1.0"},
	)
	dir := t.TempDir()
	goMod := filepath.Join(t.TempDir(), "go.mod")
	text := "module example.com/main\n\ngo 1.21\n\nrequire (\n\texample.com/a v1.0.0\n\texample.com/b v1.1.0 // indirect\n)\n"
	if err := os.WriteFile(goMod, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := verifying(t, fake, dir)
	for _, want := range []string{"fetched", " 0 fetched (0B)"} {
		status, out, stderr := harness.Run(t, nil, "warm", "--addr", p.GRPC, "--sumdb", fake.SumdbKey(), goMod)
		if status != 0 || !strings.Contains(out, want) || !strings.Contains(out, "0 failed") {
			t.Errorf("status %d, %s%s, want %q", status, out, stderr, want)
		}
	}
	if got := fake.Count(".zip"); got != 2 {
		t.Errorf("upstream was asked for %d zips, want 2", got)
	}
	status, out, stderr := harness.Run(t, nil, "warm", "--addr", p.GRPC, "--sumdb", fake.SumdbKey(), "example.com/none@v1.0.0", "example.com/a@v1.0.0")
	if status != 1 || !strings.Contains(out, "example.com/none/@v/v1.0.0.zip: ") || !strings.Contains(stderr, "4 files could not be fetched") {
		t.Errorf("status %d, %s%s, want the files that are missing", status, out, stderr)
	}
	p.Stop()

	offline := harness.Serve(t, "--data-dir", dir, "--offline", "--upstream", fake.URL, "--sumdb", fake.SumdbKey(), "--log-level", "error")
	g := harness.NewGo(t, "GOPROXY="+offline.URL(), "GOSUMDB="+fake.SumdbKey())
	g.Write("go.mod", text)
	g.Must("mod", "download", "all")
	resp, err := offline.Client().Get(offline.URL() + "/example.com/b/@v/v1.0.0.zip")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusNotFound {
		t.Errorf("a zip that the graph is pruned of: %d, %s", resp.StatusCode, body)
	}
}
