//go:build !linux

package node

import "os"

// memoryFile returns a file in the folder for temporary files: there is no other
// kind that can be verified.
func memoryFile() (f *os.File, remove func(), err error) { return temporaryFile() }
