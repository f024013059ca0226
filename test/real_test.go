package test

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/test/harness"
)

// realUpstream returns the machine's own GOPROXY. Without one that answers the
// test is skipped on a laptop and fails in CI.
func realUpstream(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the real upstream; run without -short (make e2e)")
	}
	out, err := exec.Command("go", "env", "GOPROXY").Output()
	if err != nil {
		t.Fatal(err)
	}
	list := strings.TrimSpace(string(out))
	first := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == '|' })[0]
	client := http.Client{Timeout: 20 * time.Second}
	resp, err := client.Get(first + "/golang.org/x/mod/@v/v0.20.0.info")
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return list
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("the upstream of 'go env GOPROXY' does not answer: %v", err)
	}
	t.Skip("the upstream of 'go env GOPROXY' does not answer")
	return ""
}

const bigModule = `module example.com/big

go 1.26.0

require (
	cloud.google.com/go/storage v1.70.0
	github.com/aws/aws-sdk-go v1.55.8
	github.com/prometheus/prometheus v0.315.0
	k8s.io/client-go v0.37.2
)
`

const smallProgram = `package main

import (
	"fmt"

	"github.com/aws/aws-sdk-go/aws"
	"github.com/prometheus/prometheus/model/timestamp"
	"k8s.io/client-go/util/homedir"
)

func main() {
	fmt.Println(aws.StringValue(aws.String(homedir.HomeDir())), timestamp.FromTime(timestamp.Time(0)))
}
`

// TestRealDownloadAndBuild is the main job: a big graph through an empty cache
// with the checksum database on, again from a cache that is offline, and again
// from the files alone.
func TestRealDownloadAndBuild(t *testing.T) { //nolint:paralleltest // needs the machine for itself
	upstream := realUpstream(t)
	dir := t.TempDir()

	online := harness.Serve(t, "--data-dir", dir, "--upstream", upstream)
	download(t, "GOPROXY="+online.URL())
	if got := online.Metric("ringmod_upstream_requests_total"); got == 0 {
		t.Error("no upstream request was counted while the cache was filled")
	}
	online.Stop()

	offline := harness.Serve(t, "--data-dir", dir, "--offline")
	download(t, "GOPROXY="+offline.URL())
	if got := offline.Metric("ringmod_upstream_requests_total"); got != 0 {
		t.Errorf("upstream requests while offline: %v, want 0", got)
	}
	offline.Stop()

	download(t, "GOPROXY=file://"+filepath.Join(dir, "objects"))
}

// download runs go mod download and go build with an empty module cache and
// the default checksum database.
func download(t *testing.T, env ...string) {
	t.Helper()
	g := harness.NewGo(t, env...)
	g.Write("go.mod", bigModule)
	g.Write("main.go", smallProgram)
	start := time.Now()
	g.Must("mod", "download")
	t.Logf("go mod download with %s: %v", proxyKind(env[0]), time.Since(start).Round(time.Millisecond))
	g.Must("build", "-mod=mod", "-o", os.DevNull, ".")
	if err := os.RemoveAll(g.ModCache); err != nil {
		t.Fatal(err)
	}
}

func proxyKind(env string) string {
	kind, _, _ := strings.Cut(strings.TrimPrefix(env, "GOPROXY="), ":")
	return kind
}

// TestRealCommands uses the go command as developers do, with the checksum
// database on.
func TestRealCommands(t *testing.T) { //nolint:paralleltest // needs the machine for itself
	p := harness.Serve(t, "--data-dir", t.TempDir(), "--upstream", realUpstream(t))

	t.Run("install", func(t *testing.T) {
		g := harness.NewGo(t, "GOPROXY="+p.URL())
		g.Must("install", "golang.org/x/tools/cmd/stringer@v0.38.0")
	})
	t.Run("versions", func(t *testing.T) {
		g := harness.NewGo(t, "GOPROXY="+p.URL())
		g.Write("go.mod", "module example.com/m\n")
		got := g.Must("list", "-m", "-versions", "golang.org/x/mod")
		for _, want := range []string{"golang.org/x/mod", " v0.1.0 ", " v0.20.0 "} {
			if !strings.Contains(got, want) {
				t.Errorf("go list -m -versions printed %q, want it to contain %q", got, want)
			}
		}
	})
	t.Run("latest", func(t *testing.T) {
		g := harness.NewGo(t, "GOPROXY="+p.URL())
		g.Write("go.mod", "module example.com/m\n")
		got := g.Must("get", "golang.org/x/text@latest")
		if !regexp.MustCompile(`added golang.org/x/text v\d`).MatchString(got) {
			t.Errorf("go get golang.org/x/text@latest printed %q", got)
		}
	})
	t.Run("toolchain", func(t *testing.T) {
		g := harness.NewGo(t, "GOPROXY="+p.URL(), "GOTOOLCHAIN=go1.25.11")
		got := g.Must("version")
		if want := "go1.25.11"; !strings.Contains(got, want) {
			t.Errorf("go version printed %q, want %s", got, want)
		}
	})
}

// TestRealServeByDefault starts ringmod as the README says, with no flag but
// the addresses, and asks it for a module.
func TestRealServeByDefault(t *testing.T) {
	realUpstream(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	start := time.Now()
	p := harness.Serve(t)
	t.Logf("ready after %v", time.Since(start).Round(time.Millisecond))
	if host, _, err := net.SplitHostPort(p.HTTP); err != nil || host != "127.0.0.1" {
		t.Fatalf("ready line has http=%q", p.HTTP)
	}
	g := harness.NewGo(t, "GOPROXY="+p.URL())
	g.Write("go.mod", "module example.com/m\n")
	g.Must("mod", "download", "golang.org/x/mod@v0.20.0")
}

// TestRealCluster tries a cluster as a new user would: a real download through a
// gateway, once more from what the nodes hold, and the table of its members.
func TestRealCluster(t *testing.T) { //nolint:paralleltest // needs the machine for itself
	p := harness.Dev(t, t.TempDir(), "--nodes", "3", "--gateways", "2", "--upstream", realUpstream(t))
	for range 2 {
		download(t, "GOPROXY="+p.URL())
	}
	status, stdout, stderr := harness.Run(t, nil, "status", "--addr", p.GRPC)
	for _, member := range []string{"n1", "n2", "n3", "g1", "g2"} {
		if !regexp.MustCompile("(?m)^" + member + " .* active  up ").MatchString(stdout) {
			t.Errorf("status shows no member %s that is up:\n%s", member, stdout)
		}
	}
	if status != 0 || stderr != "" || !strings.Contains(stdout, "All is well: 5 members") {
		t.Errorf("exit status %d, stderr %q, and the verdict of\n%s", status, stderr, stdout)
	}
}
