package upstream

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

// openFile reads t from a folder. A missing file is NotFound only while the
// folder is there: one that is not mounted says nothing about its content.
func openFile(e entry, t target.Target, v Validators) (*Response, *cache.Error) {
	name, folder := e.name, filepath.FromSlash(e.base.Path)
	path := filepath.Join(folder, filepath.FromSlash(t.String()))
	info, err := os.Stat(path)
	if err != nil {
		return nil, fileError(name, folder, t, err)
	}
	if !info.Mode().IsRegular() {
		return nil, broken(name, nil, "%s is not a regular file", t)
	}
	if info.Size() > Limit(t.Kind) {
		return nil, tooLarge(name, t.Kind)
	}
	modified := Validators{LastModified: info.ModTime().UTC().Format(http.TimeFormat)}
	if v.ETag == "" && v.LastModified == modified.LastModified {
		return &Response{Body: http.NoBody, Source: name, Validators: modified, NotModified: true}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fileError(name, folder, t, err)
	}
	return &Response{Body: &fileBody{f, info.Size(), name}, Size: info.Size(), Source: name, Validators: modified}, nil
}

func fileError(name, folder string, t target.Target, err error) *cache.Error {
	reason := err
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		reason = pathErr.Err // the path is named by the source
	}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return broken(name, err, "reading %s: %v", t, reason)
	}
	if info, err := os.Stat(folder); err != nil || !info.IsDir() {
		return broken(name, err, "the folder is not there")
	}
	return &cache.Error{Reason: cache.NotFound, Source: name, Text: "not found: " + t.String(), Err: err}
}

// fileBody yields exactly the bytes that the file had when it was opened.
type fileBody struct {
	f    *os.File
	left int64
	name string
}

func (b *fileBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.f.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case errors.Is(err, io.EOF):
		return n, broken(b.name, nil, "the file became shorter while being read")
	case err != nil:
		return n, broken(b.name, err, "reading the file: %v", err)
	default:
		return n, nil
	}
}

func (b *fileBody) Close() error { return b.f.Close() }
