//go:build !unix

package direct

import "os/exec"

// killTogether ends the command alone: there are no process groups here.
func killTogether(*exec.Cmd) {}
