//go:build !linux && !darwin

package store

import (
	"errors"
	"io/fs"
	"os"
)

// lockFile leaves the locking to bbolt, which locks the index on every system.
func lockFile(*os.File) (bool, error) { return true, nil }

func unlockFile(*os.File) error { return nil }

// syncDir does nothing: directories cannot be synced everywhere.
func syncDir(string) error { return nil }

// identityOf returns what changes whenever the bytes of the file do.
func identityOf(info fs.FileInfo) identity {
	return identity{size: info.Size(), changed: info.ModTime()}
}

func readOnce(*os.File) {}

func uncache(*os.File) {}

func spaceOf(string) (space, error) { return space{}, errors.ErrUnsupported }

func allocated(info fs.FileInfo) int64 { return info.Size() }
