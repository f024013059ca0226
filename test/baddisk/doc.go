// Package baddisk is a disk for tests that fails, hangs and recovers when it is told to: a file
// system in user space (FUSE) over a folder. It needs Linux, /dev/fuse and the right to
// mount.
package baddisk
