package test

import (
	"bytes"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// objectsOf returns the objects that a node holds on its disk, by target.
func objectsOf(t *testing.T, c *harness.Cluster, node string) map[string][]byte {
	t.Helper()
	root := filepath.Join(c.DataDir(node), "objects")
	held := make(map[string][]byte)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || strings.HasSuffix(path, "/list") || e.Name() == "supported" {
			return err
		}
		name, _ := filepath.Rel(root, path)
		held[filepath.ToSlash(name)], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return held
}

// rotAll flips a bit in the middle of each of a node's objects, in place.
func rotAll(t *testing.T, c *harness.Cluster, node string, objects map[string][]byte) {
	t.Helper()
	for name, data := range objects {
		f, err := os.OpenFile(filepath.Join(c.DataDir(node), "objects", filepath.FromSlash(name)), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		at := len(data) / 2
		if _, err := f.WriteAt([]byte{data[at] ^ 4}, int64(at)); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}

// TestScrubRepairsEverything flips a bit in every object of one node of three, under
// clients that read everything all the time. They get the right bytes, and after one scrub so
// does whoever reads the node's disk; upstream hears nothing of it.
func TestScrubRepairsEverything(t *testing.T) {
	t.Parallel()
	count, size := 30, int64(300<<10)
	if !testing.Short() {
		count, size = 200, 1<<20
	}
	fake := upstreamtest.New(t)
	c, gateways := startCluster(t, fake, 3, 2)
	all := libraryOf(fake, modules(t, fake, "m", count, size))
	readTogether(t, gateways[0], all)
	eventually(t, "everything to have its copies", func() bool {
		held, lag := 0, 0.0
		for _, node := range []string{"n1", "n2", "n3"} {
			held += len(objectsOf(t, c, node))
			lag += c.Member(node).Metric("ringmod_replication_lag_seconds")
		}
		return held >= 2*len(all) && lag == 0
	})
	good := objectsOf(t, c, "n1")
	fake.Reset()
	rotAll(t, c, "n1", good)

	stop := make(chan struct{})
	var clients sync.WaitGroup
	reads := make([]int, len(gateways))
	for i, gateway := range gateways {
		clients.Go(func() {
			for more := true; more; {
				reads[i] += readAllOf(t, gateway, all)
				select {
				case <-stop:
					more = false
				default:
				}
			}
		})
	}
	status, out, stderr := harness.Run(t, nil, "scrub", "n1", "--all", "--addr", c.Member("n2").GRPC)
	t.Logf("ringmod scrub: status %d\n%s%s", status, tail(out, 6), stderr)
	close(stop)
	clients.Wait()
	if status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
	for name, data := range good {
		if got, err := os.ReadFile(filepath.Join(c.DataDir("n1"), "objects", filepath.FromSlash(name))); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s is not repaired: %d bytes, %v", name, len(got), err)
		}
	}
	if got := fake.Requests(); len(got) != 0 {
		t.Errorf("%d requests to upstream, such as %q", len(got), got[0])
	}
	n1 := c.Member("n1")
	found := n1.Metric("ringmod_scrub_repairs_total")
	t.Logf("%v reads were right; %d objects of n1 were bad, %v were repaired (%v from peers, %v by requests)", reads, len(good), found,
		n1.Metric(`ringmod_scrub_repairs_total{from="peer"}`), n1.Metric(`ringmod_scrub_repairs_total{from="request"}`))
	if status, out, _ := harness.Run(t, nil, "scrub", "--all", "--json", "--addr", n1.GRPC); status != 0 || strings.Contains(out, `"target"`) {
		t.Errorf("a second scrub of all nodes: status %d\n%s", status, tail(out, 10))
	}
}

// readAllOf returns how many objects it has read, and fails the test for each that is not
// right.
func readAllOf(t *testing.T, gateway *harness.Process, all library) (right int) {
	t.Helper()
	for name, want := range all {
		if err := fetchWhole(gateway, name, want); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		right++
	}
	return right
}

func tail(text string, lines int) string {
	all := strings.Split(text, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// TestScrubSaysWhatItCannotRepair has a bad copy that nobody else has, offline and with an
// upstream that has changed its mind.
func TestScrubSaysWhatItCannotRepair(t *testing.T) {
	t.Parallel()
	const name = "example.com/m/@v/v1.0.0.zip"
	fake := upstreamtest.New(t, upstreamtest.Module{Path: "example.com/m", Version: "v1.0.0", Pad: 1 << 20})
	dir := t.TempDir()
	fill := func(upstream string, more ...string) *harness.Process {
		return harness.Serve(t, append([]string{"--data-dir", dir, "--sumdb", "off", "--upstream", upstream, "--node-id", "only"}, more...)...)
	}
	p := fill(fake.URL)
	if got, err := fetch(t, p.URL()+"/"+name); err != nil || got.status != http.StatusOK {
		t.Fatalf("filling: %d, %v", got.status, err)
	}
	p.Stop()
	file := filepath.Join(dir, "objects", filepath.FromSlash(name))
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(good)
	bad[len(bad)/2] ^= 1
	if err := os.WriteFile(file, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	p = fill(fake.URL, "--offline")
	status, out, stderr := harness.Run(t, nil, "scrub", "--all", "--addr", p.GRPC)
	t.Logf("offline: status %d\n%s%s", status, out, stderr)
	if status != 1 || !strings.Contains(out, "only: "+name+": NOT repaired") || !strings.Contains(stderr, "1 bad copy was not repaired") {
		t.Errorf("offline: status %d\n%s%s", status, out, stderr)
	}
	p.Stop()
	other := upstreamtest.New(t, upstreamtest.Module{Path: "example.com/m", Version: "v1.0.0", Pad: 2 << 20})
	p = fill(other.URL)
	eventually(t, "upstream to be asked", func() bool { return other.Count(name) > 0 })
	eventually(t, "its answer to be refused", func() bool {
		return strings.Contains(p.Log(), "other bytes than those of the copy that was set aside")
	})
	if got, err := fetch(t, p.URL()+"/"+name); err != nil || got.status != http.StatusOK {
		t.Errorf("a client meanwhile: %d, %v", got.status, err)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("other bytes have taken the place of the bad copy")
	}
	p.Stop()
	p = fill(fake.URL)
	eventually(t, "the right bytes", func() bool {
		got, err := os.ReadFile(file)
		return err == nil && bytes.Equal(got, good)
	})
	if status, out, stderr := harness.Run(t, nil, "scrub", "nobody", "--addr", p.GRPC); status != 1 || !strings.Contains(stderr, "no node of the cluster is called nobody") {
		t.Errorf("a node that is not there: status %d\n%s%s", status, out, stderr)
	}
}
