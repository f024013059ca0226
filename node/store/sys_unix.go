//go:build linux || darwin

package store

import (
	"errors"
	"io/fs"
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

// spaceOf returns the space of the file system that dir is on.
func spaceOf(dir string) (space, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return space{}, err
	}
	size := uint64(st.Bsize)
	return space{used: int64((st.Blocks - st.Bfree) * size), free: int64(st.Bavail * size)}, nil
}

// allocated returns what a file takes, which is less than its size when it has holes.
func allocated(info fs.FileInfo) int64 {
	const block = 512
	st := info.Sys().(*syscall.Stat_t) //nolint:errcheck // package os has nothing else here
	return st.Blocks * block
}
