package verify_test

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node/verify"
)

const prefix = "example.com/m@v1.2.3/"

// makeZip returns a zip with files in the given order: name, content, ….
func makeZip(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		f, err := w.Create(files[i])
		if err == nil {
			_, err = io.WriteString(f, files[i+1])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeFile(t testing.TB, data []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "m.zip"))
	if err == nil {
		_, err = f.Write(data)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// manyFiles returns a zip of sizes from nothing to several buffers, with
// directories and names whose order differs from that of the zip.
func manyFiles(t testing.TB, n int) []byte {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	files := []string{prefix, "", prefix + "go.mod", "module example.com/m\n"}
	for i := range n {
		name := fmt.Sprintf("%sd%d/f%d.go", prefix, rnd.IntN(50), n-i)
		files = append(files, name, strings.Repeat(name, rnd.IntN(2000)))
	}
	return makeZip(t, append(files, prefix+"empty/", "")...)
}

func TestZipHash(t *testing.T) {
	t.Parallel()
	data := manyFiles(t, 100)
	f := writeFile(t, data)
	want, err := dirhash.HashZip(f.Name(), dirhash.Hash1)
	if err != nil {
		t.Fatal(err)
	}
	unlinked := writeFile(t, data)
	os.Remove(unlinked.Name())
	longer := writeFile(t, append(bytes.Clone(data), make([]byte, 100<<10)...))
	for _, workers := range []int{0, 1, 3} {
		v := verify.New(workers)
		for name, r := range map[string]io.ReaderAt{
			"file": f, "memory": bytes.NewReader(data), "unlinked": unlinked, "head of a longer file": longer,
		} {
			got, err := v.Zip(t.Context(), testModule, r, int64(len(data)))
			if got != want || err != nil {
				t.Errorf("%s, %d workers: Zip = %q, %v, want %q", name, workers, got, err, want)
			}
		}
	}
}

// lie changes the declared size in the directory of the zip's only entry.
func lie(data []byte, size uint32) []byte {
	data = bytes.Clone(data)
	i := bytes.Index(data, []byte("PK\x01\x02"))
	binary.LittleEndian.PutUint32(data[i+24:], size)
	return data
}

func TestZipRejects(t *testing.T) {
	t.Parallel()
	good := makeZip(t, prefix+"go.mod", "module example.com/m\n")
	large := makeZip(t, prefix+"a", strings.Repeat("a", 1<<20))
	flipped := bytes.Clone(large)
	flipped[30+len(prefix+"a")+10] ^= 1 // in the content, behind the local header
	tests := []struct {
		name, want string
		data       []byte
	}{
		{"empty", "not a valid zip", nil},
		{"html", "not a valid zip", []byte("<html>")},
		{"cut", "not a valid zip", good[:len(good)-5]},
		{"another module", `unexpected file "other.org/m@v1.2.3/a"`, makeZip(t, "other.org/m@v1.2.3/a", "")},
		{"another version", "unexpected file", makeZip(t, "example.com/m@v1.2.4/a", "")},
		{"traversal", "unexpected file", makeZip(t, prefix+"../a", "")},
		{"two files under folding", "collision", makeZip(t, prefix+"a", "", prefix+"A", "")},
		{"same name", "multiple entries", makeZip(t, prefix+"a", "", prefix+"a", "")},
		{"nested go.mod", "not in module root", makeZip(t, prefix+"a/go.mod", "")},
		{"control characters", "unexpected file", makeZip(t, prefix+"a\n\x1b[2J", "")},
		{"large go.mod", "go.mod file too large", makeZip(t, prefix+"go.mod", strings.Repeat("/", 16<<20+1))},
		{"more than declared", `file "example.com/m@v1.2.3/a"`, lie(large, 5)},
		{"less than declared", "unexpected EOF", lie(large, 1<<20+1)},
		{"declared beyond the limit", "too large", lie(large, 500<<20+1)},
		{"flipped bit", "zip for example.com/m@v1.2.3 is bad", flipped},
	}
	v := verify.New(2)
	for _, test := range tests {
		for _, r := range []io.ReaderAt{writeFile(t, test.data), bytes.NewReader(test.data)} {
			_, err := v.Zip(t.Context(), testModule, r, int64(len(test.data)))
			checkBroken(t, test.name, err, test.want)
		}
	}
	_, err := v.Zip(t.Context(), testModule, bytes.NewReader(nil), modzip.MaxZipFile+1)
	checkBroken(t, "large", err, "the limit is 524288000")
	_, err = v.Zip(t.Context(), module.Version{Path: "example.com/m", Version: "v2.0.0"}, bytes.NewReader(good), int64(len(good)))
	if got := cache.ReasonOf(err); got != cache.Malformed {
		t.Errorf("version that does not fit: %v, want %v", err, cache.Malformed)
	}
}

// TestZipLargeDirectory wants the bound on the directory to hold whatever the
// record at the end of the zip claims.
func TestZipLargeDirectory(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	extra := make([]byte, 60<<10)
	binary.LittleEndian.PutUint16(extra, 0x9999)
	binary.LittleEndian.PutUint16(extra[2:], uint16(len(extra)-4))
	for i := range 600 {
		if _, err := w.CreateRaw(&zip.FileHeader{Name: fmt.Sprintf("%s%d", prefix, i), Extra: extra}); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	data := b.Bytes()
	binary.LittleEndian.PutUint16(data[len(data)-14:], 1) // entries on this disk
	binary.LittleEndian.PutUint16(data[len(data)-12:], 1) // entries
	_, err := verify.New(1).Zip(t.Context(), testModule, bytes.NewReader(data), int64(len(data)))
	checkBroken(t, "directory of 36 MB", err, "directory is larger than 33554432 bytes")
}

type failingReader struct{ io.ReaderAt }

func (failingReader) ReadAt([]byte, int64) (int, error) { return 0, errors.New("input/output error") }

func TestZipReadErrorIsOurs(t *testing.T) {
	t.Parallel()
	_, err := verify.New(1).Zip(t.Context(), testModule, failingReader{}, 1000)
	if got := cache.ReasonOf(err); err == nil || got != cache.Internal {
		t.Errorf("Zip = %v (%v), want %v", err, got, cache.Internal)
	}
}

func TestZipCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	data := manyFiles(t, 10)
	v := verify.New(1)
	for range 3 { // a slot that leaks would block the second call
		_, err := v.Zip(ctx, testModule, writeFile(t, data), int64(len(data)))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Zip = %v, want %v", err, context.Canceled)
		}
	}
	if _, err := v.Zip(t.Context(), testModule, writeFile(t, data), int64(len(data))); err != nil {
		t.Error(err)
	}
}

func TestZipConcurrent(t *testing.T) {
	t.Parallel()
	data := manyFiles(t, 40)
	f := writeFile(t, data)
	want, err := dirhash.HashZip(f.Name(), dirhash.Hash1)
	if err != nil {
		t.Fatal(err)
	}
	v := verify.New(2)
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			got, err := v.Zip(t.Context(), testModule, f, int64(len(data)))
			if got != want || err != nil {
				t.Errorf("Zip = %q, %v, want %q", got, err, want)
			}
		})
	}
	group.Wait()
}

// FuzzZip wants: no panic, and what passes has the go command's own hash.
func FuzzZip(f *testing.F) {
	f.Add(makeZip(f, prefix+"go.mod", "module example.com/m\n", prefix+"d/", "", prefix+"d/a.go", "package d\n"))
	f.Add(lie(makeZip(f, prefix+"a", strings.Repeat("a", 1000)), 5))
	f.Add([]byte("PK\x05\x06" + strings.Repeat("\x00", 18)))
	v := verify.New(1)
	name := filepath.Join(f.TempDir(), "m.zip")
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := v.Zip(t.Context(), testModule, bytes.NewReader(data), int64(len(data)))
		if err != nil {
			checkBroken(t, "zip", err, " ")
			return
		}
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		want, err := dirhash.HashZip(name, dirhash.Hash1)
		if got != want || err != nil {
			t.Errorf("Zip = %q, HashZip = %q, %v", got, want, err)
		}
	})
}

func BenchmarkZip(b *testing.B) {
	data := manyFiles(b, 2000)
	f := writeFile(b, data)
	v := verify.New(0)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Zip(b.Context(), testModule, f, int64(len(data))); err != nil {
			b.Fatal(err)
		}
	}
}
