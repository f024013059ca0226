package test

import (
	"context"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// TestMemoryOfManyDownloads measures the peak resident set while 64 clients
// read one 100 MiB zip, cold and then warm.
func TestMemoryOfManyDownloads(t *testing.T) { //nolint:paralleltest // needs the machine for itself
	if testing.Short() {
		t.Skip("moves 13 GB; run by make test-long")
	}
	const limit = 150 << 20
	m := upstreamtest.Module{Path: "example.com/large", Version: "v1.0.0", Pad: 100 << 20}
	fake := upstreamtest.New(t, m)
	p := harness.Serve(t, "--data-dir", t.TempDir(), "--upstream", fake.URL, "--sumdb", "off")
	for _, state := range []string{"cold", "warm"} {
		downloadMany(t, p.URL()+"/example.com/large/@v/v1.0.0.zip", 64, int64(len(fake.Zip(m.Path, m.Version))))
		got := p.PeakRSS()
		t.Logf("%s: peak RSS %d MiB", state, got>>20)
		if got > limit {
			t.Errorf("%s: peak RSS %d MiB, want at most %d MiB", state, got>>20, limit>>20)
		}
	}
	if got := fake.Count(".zip"); got != 1 {
		t.Errorf("upstream zip requests = %d, want 1", got)
	}
}

func downloadMany(t *testing.T, url string, clients int, size int64) {
	t.Helper()
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			got, err := discard(t.Context(), url)
			if err != nil || got != size {
				t.Errorf("GET: %d bytes, %v, want %d", got, err, size)
			}
		})
	}
	group.Wait()
}

func discard(ctx context.Context, url string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return io.Copy(io.Discard, resp.Body)
}
