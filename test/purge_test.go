package test

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// ask returns status and text of an answer.
func ask(p *harness.Process, name string) (status int, text string, err error) {
	resp, err := p.Client().Get(p.URL() + "/" + name)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// purgedAt returns an error unless a gateway answers that these were purged.
func purgedAt(p *harness.Process, reason string, names ...string) error {
	for _, name := range names {
		status, text, err := ask(p, name)
		if err != nil {
			return err
		}
		if status != http.StatusGone || !strings.Contains(text, "purged by an operator of this cache: "+reason) {
			return fmt.Errorf("%s answers %s with %d, %.80q", p.Name, name, status, text)
		}
	}
	return nil
}

// within waits until check returns nil.
func within(t *testing.T, limit time.Duration, what string, check func() error) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		err := check()
		if err == nil {
			return time.Since(start)
		}
		if time.Since(start) > limit {
			t.Fatalf("not within %v: %s: %v", limit, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestPurge purges a version by the command line while a node is stopped: at once nobody
// answers it, upstream's copy stays where it is, and the node that was away, which has lost
// its index too, does not bring it back. Then the purge is lifted.
func TestPurge(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t)
	c, gateways := startCluster(t, fake, 3, 2)
	follower := c.StartGateway(harness.Spec{Name: "g3", ViewFrom: []string{c.Member("n1").GRPC}})
	gateways = append(gateways, follower)
	c.WaitConverged()
	all := modules(t, fake, "m", 6, 300<<10)
	newer := all[0]
	newer.Version = "v1.1.0"
	fake.Add(newer)
	objects := libraryOf(fake, append(all, newer))
	bad := slices.Sorted(maps.Keys(libraryOf(fake, all[:1])))
	for _, g := range gateways {
		readTogether(t, g, objects)
		wantList(t, g, "v1.0.0\nv1.1.0\n")
	}
	waitForCopies(t, c, objects)
	away := c.Replicas("default", bad[0])[0]
	c.Member(away).Stop()
	asked := len(fake.Requests())

	status, out, errOut := harness.Run(t, nil, "purge", "example.com/m0@v1.0.0", "--reason", "leaked", "--addr", c.Running()[0].GRPC)
	if status != 1 || !strings.Contains(out, "NOT CONFIRMED by "+away) || !strings.Contains(errOut, away) {
		t.Errorf("purge ended with %d:\n%s%s", status, out, errOut)
	}
	for _, g := range gateways {
		t.Logf("%s answers so %v after the command has ended", g.Name, within(t, 2*time.Second, g.Name+" to know", func() error { return purgedAt(g, "leaked", bad...) }))
		wantList(t, g, "v1.1.0\n")
	}
	if got := c.Holders(bad[2]); !slices.Equal(got, []string{away}) {
		t.Errorf("held by %v, want %v alone", got, away)
	}

	// With its index the node has lost all that it knew but the files.
	if err := os.Remove(filepath.Join(c.DataDir(away), "index.db")); err != nil {
		t.Fatal(err)
	}
	c.Restart(away)
	within(t, 30*time.Second, "the node to remove what it holds", func() error {
		if got := c.Holders(bad[2]); len(got) > 0 {
			return fmt.Errorf("held by %v", got)
		}
		return nil
	})
	c.WaitConverged()
	for _, g := range gateways {
		delete(objects, bad[0])
		delete(objects, bad[1])
		delete(objects, bad[2])
		readTogether(t, g, objects)
		if err := purgedAt(g, "leaked", bad...); err != nil {
			t.Error(err)
		}
	}
	wantGone(t, c, fake, asked, bad)

	status, out, errOut = harness.Run(t, nil, "explain", "example.com/m0@v1.0.0", "--addr", c.Running()[0].GRPC)
	if status != 0 || !strings.Contains(out, "PURGED by an operator") || !strings.Contains(out, "leaked") || !strings.Contains(out, "held by no node") {
		t.Errorf("explain ended with %d:\n%s%s", status, out, errOut)
	}
	status, out, errOut = harness.Run(t, nil, "purge", "example.com/m0@v1.0.0", "--lift", "--addr", c.Running()[2].GRPC)
	if status != 0 || !strings.Contains(out, "Confirmed by n1, n2 and n3.") {
		t.Errorf("lifting ended with %d:\n%s%s", status, out, errOut)
	}
	again := libraryOf(fake, all[:1])
	for _, g := range gateways {
		within(t, 2*time.Second, g.Name+" to answer again", func() error { return fetchWhole(g, bad[2], again[bad[2]]) })
	}
}

// wantGone fails the test when a node holds one of these or upstream was asked for it.
func wantGone(t *testing.T, c *harness.Cluster, fake *upstreamtest.Server, asked int, names []string) {
	t.Helper()
	for _, name := range names {
		if got := c.Holders(name); len(got) > 0 {
			t.Errorf("%s is held by %v", name, got)
		}
		for _, r := range fake.Requests()[asked:] {
			if strings.HasSuffix(r, name) {
				t.Errorf("upstream was asked for %s", name)
			}
		}
	}
}

func wantList(t *testing.T, g *harness.Process, want string) {
	t.Helper()
	if status, text, err := ask(g, "example.com/m0/@v/list"); err != nil || status != http.StatusOK || text != want {
		t.Errorf("%s lists %q with %d, %v, want %q", g.Name, text, status, err, want)
	}
}
