package test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// TestKillDuringFills kills the process at random moments while it fills, and
// after each restart reads everything that its disk claims to hold: each object
// is whole, or it is absent.
func TestKillDuringFills(t *testing.T) { //nolint:paralleltest // its load would delay the timings of others
	rounds := 300
	if testing.Short() {
		rounds = 12
	}
	var modules []upstreamtest.Module
	for i := range 12 {
		modules = append(modules, upstreamtest.Module{
			Path: fmt.Sprintf("example.com/m%d", i), Version: "v1.0.0", Pad: int64(i) * 150_000,
		})
	}
	fake := upstreamtest.New(t, modules...)
	want := map[string][32]byte{}
	for _, m := range modules {
		base := m.Path + "/@v/" + m.Version
		want[base+".info"] = sha256.Sum256(fake.Info(m.Path, m.Version))
		want[base+".mod"] = sha256.Sum256(fake.Mod(m.Path, m.Version))
		want[base+".zip"] = sha256.Sum256(fake.Zip(m.Path, m.Version))
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d rounds", seed, rounds)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	whole, absent := 0, 0
	for round := range rounds {
		if round%20 == 0 { // start over with an empty disk, so that there is something to fill
			dir = t.TempDir()
		}
		p := harness.Serve(t, "--data-dir", dir, "--upstream", fake.URL, "--sumdb", "off", "--log-level", "error")
		killWhileReading(t, p, want, random.IntN(len(want)), time.Duration(random.IntN(5000))*time.Microsecond)
		w, a := readOffline(t, dir, want)
		whole, absent = whole+w, absent+a
		if random.IntN(2) == 0 { // forget some, to be filled again
			removeSome(t, dir, want, random)
		}
	}
	t.Logf("after %d kills: %d objects read whole, %d absent", rounds, whole, absent)
	if whole == 0 || absent == 0 {
		t.Error("the kills did not fall among the fills; the test shows nothing")
	}
}

// killWhileReading asks for everything at once and kills the process a moment
// after so many answers have come.
func killWhileReading(t *testing.T, p *harness.Process, want map[string][32]byte, answers int, moment time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var readers sync.WaitGroup
	answered := make(chan struct{}, len(want))
	for name := range want {
		readers.Go(func() {
			if got, err := get(ctx, p.URL()+"/"+name); err == nil && got != want[name] {
				t.Errorf("%s: a client got wrong bytes", name)
			}
			answered <- struct{}{}
		})
	}
	for range answers {
		<-answered
	}
	<-time.After(moment)
	p.Kill()
	cancel()
	readers.Wait()
}

// readOffline restarts without an upstream and reads everything.
func readOffline(t *testing.T, dir string, want map[string][32]byte) (whole, absent int) {
	t.Helper()
	p := harness.Serve(t, "--data-dir", dir, "--offline", "--sumdb", "off", "--log-level", "error")
	defer p.Kill()
	for name, sum := range want {
		got, err := get(t.Context(), p.URL()+"/"+name)
		switch {
		case errors.Is(err, errAbsent):
			absent++
		case err != nil:
			t.Errorf("%s after a kill: %v", name, err)
		case got != sum:
			t.Errorf("%s after a kill: wrong bytes were served", name)
		default:
			whole++
		}
	}
	return whole, absent
}

func removeSome(t *testing.T, dir string, want map[string][32]byte, random *rand.Rand) {
	t.Helper()
	for name := range want {
		if random.IntN(2) == 0 {
			if err := os.Remove(filepath.Join(dir, "objects", filepath.FromSlash(name))); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
	}
}

var errAbsent = errors.New("404")

// get reads url whole and returns the digest of the body; errAbsent for 404.
func get(ctx context.Context, url string) ([32]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return [32]byte{}, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return [32]byte{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return [32]byte{}, err
	case resp.StatusCode == http.StatusNotFound:
		return [32]byte{}, errAbsent
	case resp.StatusCode != http.StatusOK:
		return [32]byte{}, fmt.Errorf("status %s: %s", resp.Status, body)
	}
	return sha256.Sum256(body), nil
}
