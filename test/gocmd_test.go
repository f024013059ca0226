package test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

const gcModules = `
-- example.com/m@v1.0.0/m.go --
package m
-- example.com/m@v1.1.0/m.go --
package m
-- example.com/m@v1.2.0/go.mod --
module example.com/m

retract v1.1.0 // it deletes files
-- example.com/m@v1.2.0/sub/pkg/pkg.go --
package pkg

const Word = "found"
-- example.com/m@v1.3.0-rc.1/m.go --
package m
-- example.com/m@v1.2.1-0.20240102030405-0123456789ab/m.go --
package m
-- example.com/old@v2.0.0+incompatible/old.go --
package old
-- example.com/!not/!big@v1.0.0/x.go --
package x
-- example.com/top@v1.0.0/go.mod --
module example.com/top

require (
	example.com/m v1.2.0
	example.com/old v2.0.0+incompatible
)
-- example.com/top@v1.0.0/top.go --
package top

import (
	_ "example.com/m/sub/pkg"
	_ "example.com/old"
)
`

const gcPseudo = "v1.2.1-0.20240102030405-0123456789ab"

func newGoModules(t *testing.T) *upstreamtest.Server {
	t.Helper()
	mods, err := upstreamtest.ParseModules([]byte(strings.ReplaceAll(gcModules, "!not/!big", "Not/Big")))
	if err != nil {
		t.Fatal(err)
	}
	fake := upstreamtest.New(t, mods...)
	fake.Query("example.com/m", "main", gcPseudo)
	fake.Query("example.com/m", "0123456789ab", gcPseudo)
	return fake
}

// goCommands are what developers do, and what the go command then says.
var goCommands = []struct { //nolint:gochecknoglobals // a table
	name string
	args []string
	want string
}{
	{"download", []string{"mod", "download", "-x", "example.com/m@v1.0.0"}, "/example.com/m/@v/v1.0.0.zip: 200 OK"},
	{"upper case", []string{"mod", "download", "-json", "example.com/Not/Big@v1.0.0"}, `"Sum": "h1:`},
	{"latest", []string{"get", "example.com/m@latest"}, "added example.com/m v1.2.0"},
	{"prefix of a version", []string{"get", "example.com/m@v1.0"}, "added example.com/m v1.0.0"},
	{"package below the module", []string{"get", "example.com/m/sub/pkg"}, "added example.com/m v1.2.0"},
	{"branch", []string{"get", "example.com/m@main"}, "added example.com/m " + gcPseudo},
	{"commit", []string{"get", "example.com/m@0123456789ab"}, "added example.com/m " + gcPseudo},
	{"versions", []string{"list", "-m", "-versions", "example.com/m"}, "example.com/m v1.0.0 v1.2.0 v1.3.0-rc.1\n"},
	{"retracted versions", []string{"list", "-m", "-versions", "-retracted", "example.com/m"}, "example.com/m v1.0.0 v1.1.0 v1.2.0 v1.3.0-rc.1\n"},
	{"retraction", []string{"get", "example.com/m@v1.1.0"}, "retracted by module author: it deletes files"},
	{"incompatible", []string{"get", "example.com/old@latest"}, "added example.com/old v2.0.0+incompatible"},
	{"dependencies", []string{"get", "example.com/top@latest"}, "added example.com/old v2.0.0+incompatible"},
}

// developer is a go command with an empty cache that trusts fake's checksum
// database only, and cannot reach the world outside.
func developer(t *testing.T, fake *upstreamtest.Server, goproxy string, env ...string) *harness.Go {
	t.Helper()
	g := harness.NewGo(t, append([]string{
		"GOPROXY=" + goproxy, "GOSUMDB=" + fake.SumdbKey(), "GOVCS=*:off",
		"HTTP_PROXY=http://127.0.0.1:1", "HTTPS_PROXY=http://127.0.0.1:1", // not used for loopback
	}, env...)...)
	g.Write("go.mod", "module example.com/work\n\ngo 1.24\n")
	return g
}

// runGoCommands runs each with an empty cache. Whether a package lies in a module
// is found out by asking for modules that do not exist; their absence is kept
// for a minute only, so without an upstream that is not for every moment.
func runGoCommands(t *testing.T, fake *upstreamtest.Server, p *harness.Process, probing bool) {
	t.Helper()
	for _, command := range goCommands {
		if command.name == "package below the module" && !probing {
			continue
		}
		if got := developer(t, fake, p.URL()).Must(command.args...); !strings.Contains(got, command.want) {
			t.Errorf("%s: go %s printed %q, want it to contain %q", command.name, strings.Join(command.args, " "), got, command.want)
		}
	}
}

// TestGoCommand uses the real go command through ringmod, with a checksum
// database; again when the upstream is away; and again after a restart.
func TestGoCommand(t *testing.T) {
	t.Parallel()
	fake := newGoModules(t)
	dir := t.TempDir()
	p := verifying(t, fake, dir)
	start := time.Now()
	runGoCommands(t, fake, p, true)

	g := developer(t, fake, p.URL())
	g.Write("main.go", "package main\n\nimport \"example.com/m/sub/pkg\"\n\nfunc main() { println(pkg.Word) }\n")
	g.Must("mod", "tidy")
	if got, want := g.Must("run", "."), "found\n"; got != want {
		t.Errorf("the program printed %q, want %q", got, want)
	}
	if got, want := g.Must("mod", "verify"), "all modules verified\n"; got != want {
		t.Errorf("go mod verify printed %q, want %q", got, want)
	}
	if fake.Count("/lookup/example.com/m@v1.2.0") != 1 {
		t.Error("the checksum database was not asked once, by ringmod")
	}

	fake.Fault("", upstreamtest.Fault{Drop: true})
	runGoCommands(t, fake, p, time.Since(start) < 30*time.Second)
	p.Stop()
	p = verifying(t, fake, dir)
	runGoCommands(t, fake, p, false)
}

// TestGoCommandWithStaleLists waits until lists and the like have outlived their
// time while the upstream is away.
func TestGoCommandWithStaleLists(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for more than a minute")
	}
	fake := newGoModules(t)
	p := verifying(t, fake, t.TempDir())
	runGoCommands(t, fake, p, true)
	fake.Fault("", upstreamtest.Fault{Drop: true})
	fake.Reset()
	<-time.After(65 * time.Second)
	runGoCommands(t, fake, p, false)
	got, err := fetch(t, p.URL()+"/example.com/m/@v/list")
	if err != nil || !strings.Contains(got.header.Get("Cache-Status"), "fwd=stale") || fake.Count("/example.com/m/@v/list") == 0 {
		t.Errorf("list: Cache-Status %q, %v, %d attempts to renew it, want a stale one that was tried to renew",
			got.header.Get("Cache-Status"), err, fake.Count("/example.com/m/@v/list"))
	}
}

// TestTroubleInTerminal checks what the developer reads when a module cannot be
// had, and that trouble does not lead past us: only absence may.
func TestTroubleInTerminal(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		fault  upstreamtest.Fault
		status string
		text   []string
		past   bool // the next entry of GOPROXY is asked
	}{
		{name: "404", fault: upstreamtest.Fault{Status: 404, Body: "not found: no tag v1.0.0"}, status: "404 Not Found", text: []string{"not found: example.com/m@v1.0.0", "no tag v1.0.0"}, past: true},
		{name: "410", fault: upstreamtest.Fault{Status: 410, Body: "withdrawn by its author"}, status: "410 Gone", text: []string{"not found: example.com/m@v1.0.0", "withdrawn by its author"}, past: true},
		{name: "403", fault: upstreamtest.Fault{Status: 403, Body: "license not approved"}, status: "403 Forbidden", text: []string{"example.com/m@v1.0.0: denied", "license not approved"}},
		{name: "502", fault: upstreamtest.Fault{Status: 500, Body: "out of disk"}, status: "502 Bad Gateway", text: []string{"example.com/m@v1.0.0", "failing, not this proxy", "500 Internal Server Error: out of disk"}},
		{name: "502 for a dropped connection", fault: upstreamtest.Fault{Drop: true}, status: "502 Bad Gateway", text: []string{"example.com/m@v1.0.0", "failing, not this proxy", "connection reset"}},
		{name: "503", fault: upstreamtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"90"}}}, status: "503 Service Unavailable", text: []string{"example.com/m@v1.0.0", "too much to do", "in 90 s"}},
		{name: "504", fault: upstreamtest.Fault{Block: make(chan struct{})}, status: "504 Gateway Timeout", text: []string{"example.com/m@v1.0.0", "did not answer in time"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			fake, other := newGoModules(t), newGoModules(t)
			fake.Fault("example.com/m", test.fault)
			times := quick
			times.Header = 2 * time.Second
			stack := harness.NewStack(t, t.TempDir(), upstream.Config{List: fake.URL, Timeouts: times})
			host := strings.TrimPrefix(fake.URL, "http://")

			g := developer(t, fake, stack.URL, "GOSUMDB=off")
			out, err := g.Run("mod", "download", "example.com/m@v1.0.0")
			if err == nil || strings.Contains(out, "[Truncated") {
				t.Errorf("go mod download: %v, printed %q", err, out)
			}
			for _, want := range append(test.text, test.status, "server response: ", host) {
				if !strings.Contains(out, want) {
					t.Errorf("go mod download printed %q, want it to contain %q", out, want)
				}
			}

			g = developer(t, fake, stack.URL+","+other.URL, "GOSUMDB=off")
			out, err = g.Run("mod", "download", "example.com/m@v1.0.0")
			if past := len(other.Requests()) > 0; past != test.past || (err == nil) != test.past {
				t.Errorf("with another proxy behind: %v, printed %q; it was asked %q, want that: %v", err, out, other.Requests(), test.past)
			}

			g = developer(t, fake, stack.URL+",direct", "GOSUMDB=off")
			out, err = g.Run("mod", "download", "example.com/m@v1.0.0")
			if past := !strings.Contains(out, test.status); err == nil || past != test.past {
				t.Errorf("with direct behind: %v, printed %q, want our answer in it: %v", err, out, !test.past)
			}
			if past := strings.Contains(out, "go-get=1"); past != test.past {
				t.Errorf("with direct behind: printed %q, want an attempt to go direct: %v", out, test.past)
			}
		})
	}
}

// TestMismatchInTerminal checks what the developer reads when the checksum
// database contradicts the upstream: it comes from us, before the go command has
// stored anything, and leads past us neither.
func TestMismatchInTerminal(t *testing.T) {
	t.Parallel()
	fake := newGoModules(t)
	fake.LieZip("example.com/m", "v1.0.0")
	other := newGoModules(t)
	p := verifying(t, fake, t.TempDir())
	g := developer(t, fake, p.URL()+","+other.URL)
	out, err := g.Run("mod", "download", "example.com/m@v1.0.0")
	for _, want := range []string{"502 Bad Gateway", "server response: example.com/m@v1.0.0: checksum mismatch, nothing was kept", "sum.upstream.test"} {
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("go mod download: %v, printed %q, want it to contain %q", err, out, want)
		}
	}
	if got := other.Requests(); len(got) > 0 {
		t.Errorf("the next proxy was asked: %q", got)
	}
}
