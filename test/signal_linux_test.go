package test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/ringmod/ringmod/test/harness"
)

// TestHangup closes the terminal: a process ends as by SIGTERM, but goes on where nohup has
// started it.
func TestHangup(t *testing.T) {
	t.Parallel()
	p := harness.Serve(t, "--data-dir", t.TempDir(), "--offline", "--sumdb", "off")
	if err := syscall.Kill(p.PID(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil || !strings.Contains(p.Log(), `"msg":"stopped"`) {
		t.Errorf("ended with %v, want an orderly end:\n%s", err, p.Log())
	}

	cmd := exec.CommandContext(t.Context(), "sh", "-c", `trap "" HUP; exec "$0" "$@"`, harness.Binary(t), "serve", "--http-addr", "127.0.0.1:0",
		"--grpc-addr", "127.0.0.1:0", "--gossip-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--data-dir", t.TempDir(), "--offline", "--sumdb", "off")
	stderr := new(strings.Builder)
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "SigIgn:")
	var ignored uint64
	if _, err := fmt.Sscanf(rest, "%x", &ignored); err != nil || ignored&(1<<(syscall.SIGHUP-1)) == 0 {
		t.Errorf("behind nohup signals %x are ignored, %v, want SIGHUP to be", ignored, err)
	}
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		t.Errorf("%v:\n%s", err, stderr)
	}
}
