package store

import (
	"os"
	"path/filepath"
	"testing"
)

// TestFolderEmptiedWhileRunning does what people do to a cache that they want
// to be rid of.
func TestFolderEmptiedWhileRunning(t *testing.T) {
	t.Parallel()
	for _, gone := range []string{".", "objects", "tmp", "quarantine"} {
		t.Run(gone, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "data")
			d, err := OpenDisk(DiskConfig{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = d.Close() })
			put(t, d, "example.com/m/@v/v1.0.0.info")
			if err := os.RemoveAll(filepath.Join(dir, gone)); err != nil {
				t.Fatal(err)
			}
			const name = "example.com/m/@v/v1.1.0.info"
			put(t, d, name)
			if o, err := d.Open(t.Context(), name); err != nil {
				t.Errorf("got %v, want what was committed just now", err)
			} else {
				o.File.Close()
			}
			if err := d.PutDocument("example.com/m/@v/list", Document{Body: []byte("v1.1.0\n")}); err != nil {
				t.Error(err)
			}
		})
	}
}

func put(t *testing.T, d *Disk, name string) {
	t.Helper()
	p, err := d.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Abort()
	if _, err := p.Write([]byte("{}")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Commit(Proof{}); err != nil {
		t.Fatal(err)
	}
}
