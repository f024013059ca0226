package main

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"
)

// fakeUpstream is a module proxy on loopback with modules made up on the spot.
// Each answer is sent after delay.
type fakeUpstream struct {
	*httptest.Server
	delay time.Duration
	files map[string][]byte // by request path
	zips  atomic.Int64      // requests for zips so far
}

func newFakeUpstream(delay time.Duration) *fakeUpstream {
	u := &fakeUpstream{delay: delay, files: map[string][]byte{}}
	u.Server = httptest.NewServer(u)
	return u
}

// ServeHTTP answers GET and HEAD of what add has made, and 404 to the rest.
func (u *fakeUpstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, ok := u.files[r.URL.Path]
	if strings.HasSuffix(r.URL.Path, ".zip") {
		u.zips.Add(1)
	}
	time.Sleep(u.delay)
	if !ok {
		http.Error(w, "not found: the bench knows no such file", http.StatusNotFound)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// add makes a module whose zip has about size bytes, the same ones each time.
// All calls come before the first request.
func (u *fakeUpstream) add(m module.Version, size int) error {
	zip, err := makeZip(m, size)
	if err != nil {
		return fmt.Errorf("making the zip of %s: %w", m, err)
	}
	base := "/" + m.Path + "/@v/"
	u.files[base+m.Version+".zip"] = zip
	u.files[base+m.Version+".mod"] = goMod(m)
	u.files[base+m.Version+".info"] = fmt.Appendf(nil, `{"Version":%q,"Time":"2026-01-02T03:04:05Z"}`, m.Version)
	u.files[base+"list"] = append(u.files[base+"list"], m.Version+"\n"...)
	return nil
}

func goMod(m module.Version) []byte {
	return fmt.Appendf(nil, "module %s\n\ngo 1.26\n", m.Path)
}

// makeZip returns a module zip with a go.mod and random files of 1 MB, which
// do not compress.
func makeZip(m module.Version, size int) ([]byte, error) {
	const part = 1 << 20
	files := []modzip.File{memFile{name: "go.mod", data: goMod(m)}}
	var seed [32]byte
	copy(seed[:], m.String())
	random := rand.NewChaCha8(seed)
	for i := 0; size > 0; i++ {
		data := make([]byte, min(part, size))
		random.Read(data) //nolint:errcheck // it never fails
		files = append(files, memFile{name: fmt.Sprintf("data/%03d.bin", i), data: data})
		size -= len(data)
	}
	var buf bytes.Buffer
	err := modzip.Create(&buf, m, files)
	return buf.Bytes(), err
}

// memFile is a file in memory, as modzip.Create takes it.
type memFile struct {
	name string
	data []byte
}

func (f memFile) Path() string                 { return f.name }
func (f memFile) Lstat() (fs.FileInfo, error)  { return f, nil }
func (f memFile) Open() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(f.data)), nil }
func (f memFile) Name() string                 { return f.name }
func (f memFile) Size() int64                  { return int64(len(f.data)) }
func (f memFile) Mode() fs.FileMode            { return 0o644 }
func (f memFile) ModTime() time.Time           { return time.Time{} }
func (f memFile) IsDir() bool                  { return false }
func (f memFile) Sys() any                     { return nil }
