// Package harness runs ringmod as its users do: the real binary, in processes
// of its own, on loopback addresses that the kernel chose. It ends every
// process that it started, by its id.
package harness

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// startTimeout is how long a process may take to print its ready line. It is a
// deadline for broken builds, not a measurement.
const startTimeout = 60 * time.Second

var (
	buildOnce sync.Once //nolint:gochecknoglobals // one build for all tests of a binary
	binary    string    //nolint:gochecknoglobals // as above
	errBuild  error     //nolint:gochecknoglobals // as above
)

// Binary builds ringmod once per test binary and returns its path. It is built
// without the race detector, so that memory and time are what users see.
func Binary(t testing.TB) string {
	t.Helper()
	buildOnce.Do(func() {
		dir, err := os.MkdirTemp("", "ringmod-bin-") //nolint:usetesting // outlives the first test
		if err != nil {
			errBuild = err
			return
		}
		binary = filepath.Join(dir, "ringmod")
		out, err := exec.Command("go", "build", "-o", binary, "github.com/ringmod/ringmod/cmd/ringmod").CombinedOutput()
		if err != nil {
			errBuild = fmt.Errorf("building ringmod: %w\n%s", err, out)
		}
	})
	if errBuild != nil {
		t.Fatal(errBuild)
	}
	return binary
}

// RemoveBinary deletes what Binary built; for TestMain.
func RemoveBinary() {
	if binary != "" {
		os.RemoveAll(filepath.Dir(binary))
	}
}

// Process is a running ringmod.
type Process struct {
	HTTP  string // host:port of the GOPROXY protocol
	GRPC  string // host:port of the node's services
	Admin string // host:port of /metrics

	t    testing.TB
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended

	mu  sync.Mutex
	log strings.Builder
	err error // of Wait
}

// Serve starts "ringmod serve" on free ports and waits for its ready line. The
// test ends it.
func Serve(t testing.TB, flags ...string) *Process {
	t.Helper()
	return ServeEnv(t, nil, flags...)
}

// ServeEnv is Serve with env on top of the environment of the test.
func ServeEnv(t testing.TB, env []string, flags ...string) *Process {
	t.Helper()
	args := append([]string{
		"serve", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--gossip-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0",
	}, flags...)
	return start(t, env, args)
}

func start(t testing.TB, env, args []string) *Process {
	t.Helper()
	p := &Process{t: t, cmd: exec.Command(Binary(t), args...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = p
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	ready := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			if line, ok := strings.CutPrefix(lines.Text(), "ready "); ok {
				ready <- line
			}
		}
		err := p.cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(p.done)
	}()
	select {
	case line := <-ready:
		p.parse(line)
	case <-p.done:
		t.Fatalf("ringmod ended before it was ready:\n%s", p.Log())
	case <-time.After(startTimeout):
		t.Fatalf("ringmod was not ready within %v:\n%s", startTimeout, p.Log())
	}
	return p
}

func (p *Process) parse(line string) {
	for field := range strings.FieldsSeq(line) {
		switch key, value, _ := strings.Cut(field, "="); key {
		case "http":
			p.HTTP = value
		case "grpc":
			p.GRPC = value
		case "admin":
			p.Admin = value
		}
	}
}

// Write collects the process's log.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

// Log returns what the process has logged so far.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// URL returns the GOPROXY of the process.
func (p *Process) URL() string { return "http://" + p.HTTP }

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stop sends SIGTERM and waits; a process that fails or hangs fails the test.
func (p *Process) Stop() {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(startTimeout):
		p.t.Fatalf("ringmod did not stop within %v:\n%s", startTimeout, p.Log())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		p.t.Fatalf("ringmod stopped with %v:\n%s", p.err, p.log.String())
	}
}

// Kill sends SIGKILL and waits.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Metric returns the sum of all series of a counter or gauge whose line starts
// with prefix.
func (p *Process) Metric(prefix string) float64 {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, "http://"+p.Admin+"/metrics", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	var sum float64
	for line := range strings.Lines(string(body)) {
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		fields := strings.Fields(line)
		value, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil {
			p.t.Fatalf("metric line %q: %v", line, err)
		}
		sum += value
	}
	return sum
}

// PeakRSS returns the largest resident set that the process has had, in bytes.
func (p *Process) PeakRSS() int64 {
	p.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return kib << 10
		}
	}
	p.t.Fatal("no VmHWM in /proc")
	return 0
}

// Run executes a ringmod command that is expected to end by itself and returns
// its exit status and what it printed.
func Run(t testing.TB, env []string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, Binary(t), args...)
	cmd.Env = append(os.Environ(), env...)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), out.String(), errOut.String()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0, out.String(), errOut.String()
}
