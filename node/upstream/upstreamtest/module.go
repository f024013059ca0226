package upstreamtest

import (
	"archive/zip"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	modzip "golang.org/x/mod/zip"
	"golang.org/x/tools/txtar"
)

// Module is one version of a module.
type Module struct {
	Path, Version string
	Time          time.Time         // zero: 2024-01-02 03:04:05 UTC
	Files         map[string]string // content by name; "go.mod" is added when missing: "module <path>\n"
	Commit        string            // that .info says it comes from; "": .info has no Origin
	Pad           int64             // adds a file "pad.bin" of so many bytes that cannot be compressed
}

// ParseModules reads modules from a txtar archive whose file names have the
// form <path>@<version>/<file>. A go.mod may be left out; a module needs at
// least one file.
func ParseModules(data []byte) ([]Module, error) {
	byVersion := make(map[module.Version]map[string]string)
	for _, f := range txtar.Parse(data).Files {
		modPath, rest, _ := strings.Cut(f.Name, "@")
		version, name, ok := strings.Cut(rest, "/")
		if !ok {
			return nil, fmt.Errorf("file %q is not <path>@<version>/<file>", f.Name)
		}
		m := module.Version{Path: modPath, Version: version}
		if byVersion[m] == nil {
			byVersion[m] = make(map[string]string)
		}
		byVersion[m][name] = string(f.Data)
	}
	var mods []Module
	for m, files := range byVersion {
		mods = append(mods, Module{Path: m.Path, Version: m.Version, Files: files})
	}
	slices.SortFunc(mods, func(a, b Module) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), semver.Compare(a.Version, b.Version))
	})
	return mods, nil
}

// LoadDir reads all <dir>/*.txtar with ParseModules.
func LoadDir(dir string) ([]Module, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil {
		return nil, err
	}
	var mods []Module
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		parsed, err := ParseModules(data)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		mods = append(mods, parsed...)
	}
	return mods, nil
}

// entry is a module with its zip, which is made once.
type entry struct {
	Module

	zip func() ([]byte, error)
}

// Add makes mods known, or replaces them.
func (s *Server) Add(mods ...Module) {
	s.t.Helper()
	for _, m := range mods {
		if err := module.Check(m.Path, m.Version); err != nil {
			s.t.Fatalf("adding %s@%s: %v", m.Path, m.Version, err)
		}
		m.Files = maps.Clone(m.Files)
		if m.Files == nil {
			m.Files = make(map[string]string)
		}
		if _, ok := m.Files["go.mod"]; !ok && !strings.HasSuffix(m.Version, "+incompatible") {
			m.Files["go.mod"] = "module " + m.Path + "\n"
		}
		if m.Time.IsZero() {
			m.Time = time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)
		}
		e := &entry{Module: m, zip: sync.OnceValues(m.makeZip)}
		s.mu.Lock()
		s.modules[module.Version{Path: m.Path, Version: m.Version}] = e
		s.mu.Unlock()
	}
}

// Remove forgets a version. Its record in the checksum database stays.
func (s *Server) Remove(modPath, version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.modules, module.Version{Path: modPath, Version: version})
}

// Query makes <path>/@v/<query>.info answer as the .info of version.
func (s *Server) Query(modPath, query, version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queries[modPath+"@"+query] = version
}

// Zip returns the bytes of the version's zip; nil for an unknown version.
func (s *Server) Zip(modPath, version string) []byte { return s.file(modPath, version, ".zip") }

// Info returns the bytes of the version's .info; nil for an unknown version.
func (s *Server) Info(modPath, version string) []byte { return s.file(modPath, version, ".info") }

// Mod returns the bytes of the version's .mod; nil for an unknown version.
func (s *Server) Mod(modPath, version string) []byte { return s.file(modPath, version, ".mod") }

// List returns the answer to <path>/@v/list; nil for an unknown module.
func (s *Server) List(modPath string) []byte {
	versions := s.versions(modPath)
	if versions == nil {
		return nil
	}
	list := []byte{}
	for _, v := range versions {
		if !module.IsPseudoVersion(v) {
			list = append(list, v+"\n"...)
		}
	}
	return list
}

// Latest returns the answer to <path>/@latest; nil for an unknown module. The
// highest release wins, then the highest prerelease, then the highest pseudo-version.
func (s *Server) Latest(modPath string) []byte {
	versions := s.versions(modPath)
	if versions == nil {
		return nil
	}
	rank := func(v string) int {
		switch {
		case module.IsPseudoVersion(v):
			return 0
		case semver.Prerelease(v) != "":
			return 1
		default:
			return 2
		}
	}
	latest := slices.MaxFunc(versions, func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), semver.Compare(a, b))
	})
	return s.Info(modPath, latest)
}

// versions returns the sorted versions of a module.
func (s *Server) versions(modPath string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var versions []string
	for m := range s.modules {
		if m.Path == modPath {
			versions = append(versions, m.Version)
		}
	}
	semver.Sort(versions)
	return versions
}

func (s *Server) file(modPath, version, ext string) []byte {
	s.mu.Lock()
	e := s.modules[module.Version{Path: modPath, Version: version}]
	s.mu.Unlock()
	if e == nil {
		return nil
	}
	data, err := e.file(ext)
	if err != nil {
		panic(fmt.Sprintf("making %s of %s@%s: %v", ext, modPath, version, err))
	}
	return data
}

func (e *entry) file(ext string) ([]byte, error) {
	if ext == ".zip" {
		return e.zip()
	}
	return e.File(ext)
}

// File makes the file of the version with the extension .info, .mod or .zip. The
// Time and the go.mod that Add fills in must be there.
func (m Module) File(ext string) ([]byte, error) {
	switch ext {
	case ".info":
		return m.info()
	case ".mod":
		if mod, ok := m.Files["go.mod"]; ok {
			return []byte(mod), nil
		}
		return []byte("module " + m.Path + "\n"), nil
	case ".zip":
		return m.makeZip()
	default:
		return nil, fs.ErrNotExist
	}
}

type origin struct{ VCS, URL, Ref, Hash string }

func (m Module) info() ([]byte, error) {
	info := struct {
		Version string
		Time    time.Time
		Origin  *origin `json:",omitempty"`
	}{Version: m.Version, Time: m.Time}
	if m.Commit != "" {
		info.Origin = &origin{"git", "https://" + m.Path, "refs/tags/" + m.Version, m.Commit}
	}
	return json.Marshal(info)
}

// makeZip makes the zip as the go command does. The pad is put behind the rest
// uncompressed, which is fast.
func (m Module) makeZip() ([]byte, error) {
	var files []modzip.File
	for _, name := range slices.Sorted(maps.Keys(m.Files)) {
		files = append(files, file{name, m.Files[name]})
	}
	var buf bytes.Buffer
	if err := modzip.Create(&buf, module.Version{Path: m.Path, Version: m.Version}, files); err != nil {
		return nil, err
	}
	if m.Pad == 0 {
		return buf.Bytes(), nil
	}
	return m.addPad(buf.Bytes())
}

func (m Module) addPad(data []byte) ([]byte, error) {
	r, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for _, f := range r.File {
		if err := w.Copy(f); err != nil {
			return nil, err
		}
	}
	name := m.Path + "@" + m.Version
	pad, err := w.CreateHeader(&zip.FileHeader{Name: name + "/pad.bin", Method: zip.Store})
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(pad, rand.NewChaCha8(sha256.Sum256([]byte(name))), m.Pad); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// file is a modzip.File in memory.
type file struct{ name, content string }

func (f file) Path() string                 { return f.name }
func (f file) Lstat() (fs.FileInfo, error)  { return f, nil }
func (f file) Open() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(f.content)), nil }
func (f file) Name() string                 { return path.Base(f.name) }
func (f file) Size() int64                  { return int64(len(f.content)) }
func (f file) Mode() fs.FileMode            { return 0o644 }
func (f file) ModTime() time.Time           { return time.Time{} }
func (f file) IsDir() bool                  { return false }
func (f file) Sys() any                     { return nil }

// serveModule answers all that does not begin with /sumdb/.
func (s *Server) serveModule(w http.ResponseWriter, r *http.Request) {
	data, contentType := s.lookup(strings.TrimPrefix(r.URL.Path, "/"))
	if data == nil {
		http.Error(w, "not found: "+r.URL.Path+": unknown to this fake upstream", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(data)))
	http.ServeContent(w, r, "", time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC), bytes.NewReader(data))
}

// lookup returns content and type of a target, nil when there is none.
func (s *Server) lookup(target string) (data []byte, contentType string) {
	const text, jsonType, zipType = "text/plain; charset=utf-8", "application/json", "application/zip"
	if escaped, ok := strings.CutSuffix(target, "/@latest"); ok {
		modPath, err := module.UnescapePath(escaped)
		if err != nil {
			return nil, ""
		}
		return s.Latest(modPath), jsonType
	}
	escaped, name, _ := strings.Cut(target, "/@v/")
	modPath, err := module.UnescapePath(escaped)
	if err != nil {
		return nil, ""
	}
	if name == "list" {
		return s.List(modPath), text
	}
	ext := path.Ext(name)
	version, err := module.UnescapeVersion(strings.TrimSuffix(name, ext))
	if err != nil {
		return nil, ""
	}
	types := map[string]string{".info": jsonType, ".mod": text, ".zip": zipType}
	if types[ext] == "" {
		return nil, ""
	}
	if ext == ".info" {
		s.mu.Lock()
		version = cmp.Or(s.queries[modPath+"@"+version], version)
		s.mu.Unlock()
	}
	return s.file(modPath, version, ext), types[ext]
}
