//go:build linux || darwin

package store

import (
	"errors"
	"os"
	"syscall"
)

// lockFile takes the exclusive lock of f, which ends when f is closed, also by
// the end of the process. It reports false when somebody else holds it.
func lockFile(f *os.File) (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// unlockFile gives the lock back. Closing f alone does not while a child process
// that is just being started still has its copy of the descriptor.
func unlockFile(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	return f.Sync()
}

// freeBytes returns how much a process without privileges may still write below
// dir.
func freeBytes(dir string) int64 {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0
	}
	return int64(st.Bavail * uint64(st.Bsize))
}
