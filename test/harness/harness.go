// Package harness runs ringmod as its users do: the real binary, in processes
// of its own, on loopback addresses that the kernel chose. It ends every
// process that it started, by its id.
package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
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
// without the race detector, so that memory and time are nearly what users see;
// with the profile too everything would be compiled once more.
func Binary(t testing.TB) string {
	t.Helper()
	buildOnce.Do(func() {
		dir, err := os.MkdirTemp("", "ringmod-bin-") //nolint:usetesting // outlives the first test
		if err != nil {
			errBuild = err
			return
		}
		binary = filepath.Join(dir, "ringmod")
		out, err := exec.Command("go", "build", "-pgo=off", "-o", binary, "github.com/ringmod/ringmod/cmd/ringmod").CombinedOutput()
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
	return start(t, "", nil, env, args)
}

// Dev starts "ringmod dev" on free ports, waits for its ready line, and ends it with
// the test. Its temporary data goes below the folder tmp.
func Dev(t testing.TB, tmp string, flags ...string) *Process {
	t.Helper()
	args := append([]string{"dev", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"}, flags...)
	return start(t, "", nil, []string{"TMPDIR=" + tmp}, args)
}

// Run executes a ringmod command that is expected to end by itself and returns
// its exit status and what it printed.
func Run(t testing.TB, env []string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	status, stdout, stderr, err := run(ctx, Binary(t), nil, env, args)
	if err != nil {
		t.Fatal(err)
	}
	return status, stdout, stderr
}

// Command executes a ringmod command that asks the process, where the process runs, until
// ctx is done. It returns the exit status, -1 if it had none, and all that was
// printed.
func (p *Process) Command(ctx context.Context, args ...string) (status int, text string) {
	p.t.Helper()
	status, stdout, stderr, err := run(ctx, Binary(p.t), p.host, nil, append(args, "--addr", p.GRPC))
	if err != nil {
		return -1, stdout + stderr + err.Error()
	}
	return status, stdout + stderr
}

func run(ctx context.Context, binary string, host Host, env, args []string) (status int, stdout, stderr string, err error) {
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err = startCommand(cmd, host); err == nil {
		err = cmd.Wait()
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		status, err = exit.ExitCode(), nil
	}
	return status, out.String(), errOut.String(), err
}
