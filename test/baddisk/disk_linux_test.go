package baddisk_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ringmod/ringmod/test/baddisk"
)

func TestDisk(t *testing.T) {
	t.Parallel()
	d := baddisk.New(t)
	dir := filepath.Join(d.Dir, "a", "b")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789"), 50_000)
	file, other := filepath.Join(dir, "file"), filepath.Join(d.Dir, "other")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file, other); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(other, file); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, other} {
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v", path, len(got), err)
		}
	}
	d.FailWrites(syscall.EIO)
	if err := os.WriteFile(filepath.Join(dir, "new"), data, 0o600); !errors.Is(err, syscall.EIO) {
		t.Errorf("writing: %v, want EIO", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("reading while writes fail: %v", err)
	}
	d.Fail(syscall.EIO)
	if _, err := os.ReadFile(file); !errors.Is(err, syscall.EIO) {
		t.Errorf("reading: %v, want EIO", err)
	}
	d.Hang()
	done := make(chan error)
	go func() { _, err := os.Stat(file); done <- err }()
	select {
	case err := <-done:
		t.Errorf("a disk that hangs answers: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	d.Heal()
	if err := <-done; err != nil {
		t.Errorf("healed: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(d.Dir, "a")); err != nil {
		t.Error(err)
	}
	if names, err := os.ReadDir(d.Dir); err != nil || len(names) != 1 {
		t.Errorf("%v, %v, want one file", names, err)
	}
}
