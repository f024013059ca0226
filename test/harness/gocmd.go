package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Go runs the real go command as a developer would: its own module cache, no
// settings of the machine but those given in env.
type Go struct {
	Dir      string // working folder
	ModCache string
	Env      []string

	t testing.TB
}

// NewGo returns a go command with an empty module cache and an empty working
// folder; env is for example "GOPROXY=http://127.0.0.1:8080".
func NewGo(t testing.TB, env ...string) *Go {
	t.Helper()
	root := t.TempDir()
	g := &Go{Dir: filepath.Join(root, "work"), ModCache: filepath.Join(root, "mod"), t: t}
	// The go command leaves a child behind that counts, and would write here while
	// the folder is removed; only this file keeps it from that (x/telemetry).
	telemetry := filepath.Join(root, ".config", "go", "telemetry")
	for _, dir := range []string{g.Dir, telemetry} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(telemetry, "mode"), []byte("off\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g.Env = append([]string{
		"HOME=" + root, "PATH=" + os.Getenv("PATH"), "GOPATH=" + filepath.Join(root, "gopath"), "GOBIN=" + filepath.Join(root, "bin"),
		"GOMODCACHE=" + g.ModCache, "GOCACHE=" + buildCache(t), "GOENV=off", "GOFLAGS=-modcacherw", "GOTOOLCHAIN=local",
	}, env...)
	return g
}

// buildCache is shared with the machine's own go command: it holds no modules.
func buildCache(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// Write puts a file into the working folder.
func (g *Go) Write(name, content string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.Dir, name), []byte(content), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// Run executes the go command and returns what it printed, and its error.
func (g *Go) Run(args ...string) (string, error) {
	cmd := exec.CommandContext(g.t.Context(), "go", args...)
	cmd.Dir, cmd.Env = g.Dir, g.Env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Must executes the go command and fails the test if it fails.
func (g *Go) Must(args ...string) string {
	g.t.Helper()
	out, err := g.Run(args...)
	if err != nil {
		g.t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}
