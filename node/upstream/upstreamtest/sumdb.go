package upstreamtest

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/dirhash"
)

// lie says what the checksum database says wrongly about a version.
type lie uint8

const (
	lieZip lie = 1 << iota
	lieMod
)

// SumdbKey returns the verifier key of the checksum database,
// <name>+<hash>+<key>, as GOSUMDB takes it.
func (s *Server) SumdbKey() string { return s.verifier }

// SumdbName returns the name of the checksum database.
func (s *Server) SumdbName() string { return sumdbName }

// SumdbURL returns the base URL of the checksum database for access without a
// proxy. It works also after SumdbOff.
func (s *Server) SumdbURL() string { return s.URL + "/direct/" + sumdbName }

// SumdbOff makes the proxy say 404 to all below /sumdb/, or ends that.
func (s *Server) SumdbOff(off bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sumdbOff = off
}

// Lie makes the checksum database say wrong hashes for the zip and the go.mod
// of a version. The test fails when the truth is on record already.
func (s *Server) Lie(modPath, version string) { s.lie(modPath, version, lieZip|lieMod) }

// LieZip is Lie for the zip only: the go.mod still verifies.
func (s *Server) LieZip(modPath, version string) { s.lie(modPath, version, lieZip) }

func (s *Server) lie(modPath, version string, what lie) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	m := module.Version{Path: modPath, Version: version}
	if s.recorded[m] {
		s.t.Fatalf("the checksum database has recorded %v before the lie", m)
	}
	s.lies[m] = what
}

// serveProxiedSumdb answers /sumdb/<rest> as a proxy does.
func (s *Server) serveProxiedSumdb(w http.ResponseWriter, r *http.Request, rest string) {
	s.mu.Lock()
	off := s.sumdbOff
	s.mu.Unlock()
	op, ok := strings.CutPrefix(rest, sumdbName)
	if !ok || off {
		http.Error(w, "not found: no such checksum database", http.StatusNotFound)
		return
	}
	if op == "/supported" {
		w.WriteHeader(http.StatusOK)
		return
	}
	s.serveSumdb(w, r, op)
}

// serveSumdb answers a request to the database itself.
func (s *Server) serveSumdb(w http.ResponseWriter, r *http.Request, op string) {
	r = r.Clone(r.Context())
	r.URL.Path = op
	s.mu.Lock()
	db := s.sumdb
	s.mu.Unlock()
	db.ServeHTTP(w, r)
}

// ForkSumdb makes the checksum database go on with another history, signed with the same
// key: its tree has so many records to begin with, none of which was in the other one. It
// returns what takes that back.
func (s *Server) ForkSumdb(records int) (undo func()) {
	s.t.Helper()
	ops := sumdb.NewTestServer(s.signer, func(modPath, version string) ([]byte, error) {
		if strings.HasPrefix(modPath, "forked.test/") {
			return fmt.Appendf(nil, "%[1]s %[2]s h1:fork\n%[1]s %[2]s/go.mod h1:fork\n", modPath, version), nil
		}
		return s.gosum(modPath, version)
	})
	for i := range records {
		if _, err := ops.Lookup(s.t.Context(), module.Version{Path: fmt.Sprintf("forked.test/m%d", i), Version: "v1.0.0"}); err != nil {
			s.t.Fatal(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	honest := s.sumdb
	s.sumdb = sumdb.NewServer(ops)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sumdb = honest
	}
}

// gosum makes the go.sum lines of a version, lies included.
func (s *Server) gosum(modPath, version string) ([]byte, error) {
	zipBytes, modBytes := s.Zip(modPath, version), s.Mod(modPath, version)
	if zipBytes == nil {
		return nil, &fs.PathError{Op: "lookup", Path: modPath + "@" + version, Err: fs.ErrNotExist}
	}
	zipHash, err := HashZip(zipBytes)
	if err != nil {
		return nil, err
	}
	modHash, err := HashMod(modBytes)
	if err != nil {
		return nil, err
	}
	m := module.Version{Path: modPath, Version: version}
	s.mu.Lock()
	s.recorded[m] = true
	lie := s.lies[m]
	s.mu.Unlock()
	if lie&lieZip != 0 {
		zipHash = wrongHash(zipHash)
	}
	if lie&lieMod != 0 {
		modHash = wrongHash(modHash)
	}
	return fmt.Appendf(nil, "%[1]s %[2]s %[3]s\n%[1]s %[2]s/go.mod %[4]s\n", modPath, version, zipHash, modHash), nil
}

// HashMod returns the h1: hash of a go.mod as in go.sum.
func HashMod(data []byte) (string, error) {
	return dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	})
}

// HashZip returns the h1: hash of a zip as in go.sum.
func HashZip(data []byte) (string, error) {
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return "", err
	}
	var names []string
	files := make(map[string]*zip.File)
	for _, f := range z.File {
		names = append(names, f.Name)
		files[f.Name] = f
	}
	return dirhash.Hash1(names, func(name string) (io.ReadCloser, error) { return files[name].Open() })
}

// wrongHash returns a well-formed hash of something else.
func wrongHash(hash string) string {
	sum := sha256.Sum256([]byte(hash))
	return "h1:" + base64.StdEncoding.EncodeToString(sum[:])
}
