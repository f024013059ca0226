package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// content returns an object's bytes, which inspectContent recognises: filler of
// the given size and a line with its SHA-256.
func content(name string, size int) string {
	filler := strings.Repeat(name+"\n", size/(len(name)+1)+1)[:size]
	return fmt.Sprintf("%s\n%x", filler, sha256.Sum256([]byte(filler)))
}

func inspectContent(_ string, f *os.File) (Proof, error) {
	b, err := io.ReadAll(f)
	if err != nil {
		return Proof{}, err
	}
	h1, err := checkContent(b)
	return Proof{H1: h1}, err
}

func checkContent(b []byte) (string, error) {
	i := bytes.LastIndexByte(b, '\n')
	if i < 0 || string(b[i+1:]) != fmt.Sprintf("%x", sha256.Sum256(b[:i])) {
		return "", errors.New("wrong content")
	}
	return "h1:" + string(b[i+1:]), nil
}

func openTest(t testing.TB, dir string) *Disk {
	t.Helper()
	d, err := OpenDisk(DiskConfig{
		Dir: dir, Inspect: inspectContent,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func commit(t testing.TB, d *Disk, name, data string) error {
	t.Helper()
	p, err := d.Create(name)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(p, data); err != nil {
		p.Abort()
		return err
	}
	_, err = p.Commit(Proof{H1: "h1:x"})
	return err
}

func mustCommit(t testing.TB, d *Disk, name, data string) {
	t.Helper()
	if err := commit(t, d, name, data); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, d *Disk, name string) (string, error) {
	t.Helper()
	o, err := d.Open(t.Context(), name)
	if err != nil {
		return "", err
	}
	defer o.File.Close()
	b, err := io.ReadAll(o.File)
	if err != nil {
		t.Fatal(err)
	}
	if o.SHA256 != sha256.Sum256(b) || o.Size != int64(len(b)) {
		t.Errorf("Open(%q): entry does not fit the bytes", name)
	}
	return string(b), nil
}

func want(t testing.TB, d *Disk, name, data string) {
	t.Helper()
	if got, err := read(t, d, name); got != data || err != nil {
		t.Errorf("Open(%q) = %.30q… (%d bytes), %v, want %d bytes", name, got, len(got), err, len(data))
	}
}

func wantAbsent(t testing.TB, d *Disk, name string) {
	t.Helper()
	if got, err := read(t, d, name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open(%q) = %.30q…, %v, want fs.ErrNotExist", name, got, err)
	}
}

func wantCorrupt(t testing.TB, d *Disk, name string) {
	t.Helper()
	got, err := read(t, d, name)
	c, ok := errors.AsType[*CorruptError](err)
	if !ok || c.Name != name || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open(%q) = %.30q…, %v, want a *CorruptError", name, got, err)
	}
}

func file(d *Disk, name string) string {
	return filepath.Join(d.dir, "objects", filepath.FromSlash(name))
}

// flip changes one byte in place.
func flip(t testing.TB, path string, off int64, mask byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= mask
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func files(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func walkNames(t testing.TB, d *Disk) []string {
	t.Helper()
	var names []string
	if err := d.Walk(t.Context(), "", func(e Entry) bool { names = append(names, e.Name); return true }); err != nil {
		t.Fatal(err)
	}
	return names
}

// setStep has stop called before each thing that can fail.
func (d *Disk) setStep(stop func(step string) error) { d.stopAt.Store(&stop) }
