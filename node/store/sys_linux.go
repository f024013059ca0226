package store

import (
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// readOnce says that f is read once, so that what it holds need not push out what
// readers have in memory. Kernels before 6.3 do not care.
func readOnce(f *os.File) { _ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_NOREUSE) }

// uncache makes the next read of f, which nobody has written to, go to the disk.
func uncache(f *os.File) { _ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }

// identityOf returns what changes whenever the bytes of the file do.
func identityOf(info fs.FileInfo) identity {
	st := info.Sys().(*syscall.Stat_t) //nolint:errcheck // package os has nothing else here
	return identity{inode: st.Ino, size: st.Size, changed: time.Unix(st.Ctim.Unix())}
}
