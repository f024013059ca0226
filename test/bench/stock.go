package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/mod/module"
)

const (
	stockZips  = 32     // of 69 MB: 2.2 GB, enough for a run of a second and more
	stockInfos = 45_000 // more than the memory of a gateway takes
)

// stock lays modules into a node's folder of objects and returns their paths.
func stock(objects string) (zips, infos []string, err error) {
	if zips, err = stockZipsOf(objects, stockZips, 69e6); err != nil {
		return nil, nil, err
	}
	infos, err = stockInfosOf(objects, stockInfos)
	return zips, infos, err
}

// stockVersion returns versions of the same length.
func stockVersion(i int) string { return fmt.Sprintf("v1.%d.0", 100_000+i) }

// stockZipsOf makes n zips of about size bytes. The first one makes the others:
// what a zip says of its files' content does not cover their names.
func stockZipsOf(objects string, n, size int) ([]string, error) {
	const dir = "/bench.example/large/@v/"
	m := module.Version{Path: "bench.example/large", Version: stockVersion(0)}
	zip, err := makeZip(m, size)
	if err != nil {
		return nil, err
	}
	return put(objects, dir, ".zip", n, func(version string) []byte {
		return bytes.ReplaceAll(zip, []byte(m.Version), []byte(version))
	})
}

// stockInfosOf makes n .info files as proxies answer them.
func stockInfosOf(objects string, n int) ([]string, error) {
	return put(objects, "/bench.example/many/@v/", ".info", n, func(version string) []byte {
		return fmt.Appendf(nil, `{"Version":%q,"Time":"2026-01-02T03:04:05Z","Origin":{"VCS":"git","URL":"https://bench.example/many",`+
			`"Hash":"0123456789abcdef0123456789abcdef01234567","Ref":"refs/tags/%s"}}`, version, version)
	})
}

// put writes n files below objects and returns their paths.
func put(objects, dir, suffix string, n int, content func(version string) []byte) ([]string, error) {
	if err := os.MkdirAll(filepath.Join(objects, dir), 0o755); err != nil {
		return nil, err
	}
	var paths []string
	for i := range n {
		path := dir + stockVersion(i) + suffix
		if err := os.WriteFile(filepath.Join(objects, path), content(stockVersion(i)), 0o644); err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}
