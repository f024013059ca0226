package node

import (
	"archive/zip"
	"os"
	"path/filepath"
	"testing"

	"github.com/ringmod/ringmod/node/verify"
)

// TestInspectionIsNotARace has no time at all, as a large zip on a slow or busy
// machine has: only the checksum database may be given up for that.
func TestInspectionIsNotARace(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "v1.0.0.zip")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z := zip.NewWriter(f)
	w, err := z.Create("example.com/m@v1.0.0/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("module example.com/m\n")); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	i := NewInspector(verify.New(1))
	i.patience = 0
	if p, err := i.Inspect("example.com/m/@v/v1.0.0.zip", f); err != nil || p.H1 == "" {
		t.Errorf("got %q, %v: a good file is condemned, want its h1", p.H1, err)
	}
}
