//go:build unix

package direct

import (
	"os/exec"
	"syscall"
)

// killTogether lets the end of cmd's context end all that it has started.
func killTogether(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
