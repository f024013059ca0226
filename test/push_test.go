package test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

const (
	hookSecret = "a secret that only we know"
	pushed     = "example.com/owner/repo"
)

// tellPush tells a gateway of a push as GitHub does, and returns what it answers.
func tellPush(t *testing.T, g *harness.Process, key, tag string) string {
	t.Helper()
	body := []byte(`{"ref":"refs/tags/` + tag + `","repository":{"clone_url":"https://` + pushed + `.git"}}`)
	m := hmac.New(sha256.New, []byte(key))
	m.Write(body)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.URL()+"/-/hooks/push", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-GitHub-Event", "push")
	req.Header.Set("X-GitHub-Delivery", "of "+tag)
	req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(m.Sum(nil)))
	resp, err := g.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s", resp.StatusCode, text)
}

// hasTag returns an error unless a gateway lists a tag and has its .info.
func hasTag(g *harness.Process, path, tag string) error {
	status, list, err := ask(g, path+"/@v/list")
	if err != nil || status != http.StatusOK || !strings.Contains(list, tag+"\n") {
		return fmt.Errorf("%s lists %q with %d, %w", g.Name, list, status, err)
	}
	if status, text, err := ask(g, path+"/@v/"+tag+".info"); err != nil || status != http.StatusOK {
		return fmt.Errorf("%s answers .info with %d, %q, %w", g.Name, status, text, err)
	}
	return nil
}

// lacksTag fails the test when a gateway knows of v1.1.0.
func lacksTag(t *testing.T, g *harness.Process, path string) {
	t.Helper()
	if _, list, err := ask(g, path+"/@v/list"); err != nil || strings.Contains(list, "v1.1.0") {
		t.Errorf("%s lists %q, %v", g.Name, list, err)
	}
	if status, _, err := ask(g, path+"/@v/v1.1.0.info"); err != nil || status != http.StatusNotFound {
		t.Errorf("%s answers .info with %d, %v", g.Name, status, err)
	}
}

// asked returns how often upstream was asked for what ends so.
func asked(fake *upstreamtest.Server, name string) (n int) {
	for _, r := range fake.Requests() {
		if strings.HasSuffix(r, name) {
			n++
		}
	}
	return n
}

// TestPush publishes a tag that everybody has just been told does not exist. A signed hook
// at one gateway makes it known at all of them within 2 s, for one question to upstream;
// badly signed and replayed ones change nothing; without any it takes a minute.
func TestPush(t *testing.T) {
	t.Parallel()
	secrets := filepath.Join(t.TempDir(), "secrets")
	if err := os.WriteFile(secrets, []byte(hookSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fake := upstreamtest.New(t)
	c := harness.NewCluster(t, "--upstream", fake.URL)
	for _, name := range []string{"n1", "n2", "n3"} {
		c.StartNode(harness.Spec{Name: name})
	}
	gateways := []*harness.Process{c.StartGateway(harness.Spec{Name: "g1"})}
	listening := c.StartGateway(harness.Spec{Name: "g2", Flags: []string{"--hook-secret-file", secrets}})
	follower := c.StartGateway(harness.Spec{Name: "g3", ViewFrom: []string{c.Member("n1").GRPC}})
	gateways = append(gateways, listening, follower)
	c.WaitConverged()
	tag := func(path, version string) {
		fake.Add(upstreamtest.Module{Path: path, Version: version, Files: map[string]string{"go.mod": "module " + path + "\n"}})
	}
	for _, path := range []string{pushed, pushed + "/sub", "example.com/owner/other"} {
		tag(path, "v1.0.0")
		for _, g := range gateways {
			lacksTag(t, g, path)
		}
		tag(path, "v1.1.0")
	}
	for what, got := range map[string]string{
		"a bad signature":   tellPush(t, listening, "another secret, of nobody", "v1.1.0"),
		"no hooks here":     tellPush(t, gateways[0], hookSecret, "v1.1.0"),
		"no hooks here too": tellPush(t, follower, hookSecret, "v1.1.0"),
	} {
		if !strings.HasPrefix(got, "403 ") && !strings.HasPrefix(got, "404 ") {
			t.Errorf("%s: %s", what, got)
		}
	}
	for _, g := range gateways {
		lacksTag(t, g, pushed)
	}
	lists := asked(fake, pushed+"/@v/list")
	if got := tellPush(t, listening, hookSecret, "v1.1.0"); !strings.HasPrefix(got, "200 looking again") {
		t.Fatal(got)
	}
	for _, g := range gateways {
		for _, path := range []string{pushed, pushed + "/sub"} {
			t.Logf("%s knows of %s %v after the hook", g.Name, path, within(t, 2*time.Second, g.Name+" to know", func() error { return hasTag(g, path, "v1.1.0") }))
		}
		lacksTag(t, g, "example.com/owner/other")
	}
	if n := asked(fake, pushed+"/@v/list") - lists; n != 1 {
		t.Errorf("upstream was asked %d times for the list after the hook, want once", n)
	}

	tag(pushed, "v1.2.0")
	if got := tellPush(t, listening, hookSecret+"?", "v1.2.0"); !strings.HasPrefix(got, "403 ") {
		t.Errorf("a bad signature: %s", got)
	}
	if got := tellPush(t, listening, hookSecret, "v1.1.0"); !strings.Contains(got, "seen before") {
		t.Errorf("the same hook again: %s", got)
	}
	for _, g := range gateways {
		if _, list, err := ask(g, pushed+"/@v/list"); err != nil || strings.Contains(list, "v1.2.0") {
			t.Errorf("%s lists %q after a replay, %v", g.Name, list, err)
		}
	}
	status, out, errOut := harness.Run(t, nil, "refresh", pushed, "example.com/none", "--addr", c.Running()[0].GRPC)
	if status != 1 || !strings.Contains(out, "new, 3 versions") || !strings.Contains(out, "Told: g1, g2, g3, n1, n2 and n3.") || strings.Contains(out, "NOT TOLD") {
		t.Errorf("refresh ended with %d:\n%s%s", status, out, errOut)
	}
	for _, g := range gateways {
		within(t, 2*time.Second, g.Name+" to know", func() error { return hasTag(g, pushed, "v1.2.0") })
	}
	if !testing.Short() {
		unannounced(t, fake, gateways)
	}
}

// unannounced publishes a tag without telling anybody.
func unannounced(t *testing.T, fake *upstreamtest.Server, gateways []*harness.Process) {
	t.Helper()
	const path = "example.com/quiet"
	for i, g := range gateways { // at different times, so that ages would add up
		if i == 0 {
			fake.Add(upstreamtest.Module{Path: path, Version: "v1.0.0"})
		}
		if err := hasTag(g, path, "v1.0.0"); err != nil {
			t.Fatal(err)
		}
		lacksTag(t, g, path)
		time.Sleep(5 * time.Second)
	}
	fake.Add(upstreamtest.Module{Path: path, Version: "v1.1.0"})
	start := time.Now()
	for _, g := range gateways {
		within(t, time.Minute-time.Since(start), g.Name+" to know", func() error { return hasTag(g, path, "v1.1.0") })
		t.Logf("%s knows %v after the tag", g.Name, time.Since(start).Round(time.Millisecond))
	}
}
