//go:build !linux

package harness

import (
	"errors"
	"os/exec"
)

func startCommand(cmd *exec.Cmd, host Host) error {
	if host != nil {
		return errors.ErrUnsupported
	}
	return cmd.Start()
}
