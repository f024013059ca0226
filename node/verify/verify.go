// Package verify checks what an upstream sent before anything is stored or
// handed to a developer: go.mod files, .info documents, version lists and
// module zips.
//
// It promises to the node that whatever passes is something that the go command
// accepts for the asked target, and it computes the h1: hashes that go.sum and
// the checksum databases hold. It never asks a network and knows no checksum
// database: whether a hash is the right one is for package sumdb to say.
//
// A zip may be hashed while it arrives (Download). That changes when the work is
// done and not what passes: the zip's directory decides when all of it is there.
//
// The input is hostile. No check panics, trusts a declared size or uses memory
// in proportion to what a zip unpacks to: entries stream through a fixed
// buffer, inflating stops at the declared size, the declared sizes together are
// at most 500 MiB, and the zip's directory is at most 32 MiB.
//
// Every complaint about the content is a *cache.Error with the reason Broken;
// trouble with reading it here has the reason Internal.
package verify

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

// maxText keeps foreign text within what fits a line of a terminal answer, bytes.
const maxText = 300

// revision is what the go command decodes from a .info (cmd/go
// modfetch/repo.go, codehost/codehost.go): a field of another type is an error
// there, so it is one here. Other fields are ignored.
type revision struct {
	Version string
	Time    time.Time
	Origin  *struct{ VCS, URL, Subdir, Hash, TagPrefix, TagSum, Ref, RepoSum string }
}

// Info checks the JSON that answers a target of kind Info, Query or Latest: an
// object whose Version is canonical and fits the module path, and for Info is
// the one that was asked for (cmd/go modfetch/proxy.go). Time may be missing,
// else it is RFC 3339.
func Info(t target.Target, data []byte) error {
	var rev revision
	if err := json.Unmarshal(data, &rev); err != nil {
		return broken(err, "info for %s is not the JSON of a version: %v", t.Describe(), err)
	}
	if rev.Version == "" {
		return broken(nil, "info for %s names no version", t.Describe())
	}
	if t.Kind == target.Info && rev.Version != t.Version {
		return broken(nil, "info names version %q instead of %s of %s", rev.Version, t.Version, t.Path)
	}
	if module.CanonicalVersion(rev.Version) != rev.Version {
		return broken(nil, "info for %s names %q, which is not a canonical version", t.Describe(), rev.Version)
	}
	if err := module.Check(t.Path, rev.Version); err != nil {
		return broken(err, "info for %s names a version that does not fit the path: %v", t.Describe(), err)
	}
	return nil
}

// Mod checks a go.mod file, at most 16 MiB with a module line, and returns its
// hash as go.sum has it behind "<version>/go.mod".
//
// The module line may name another path: a fork that is used through a replace
// directive keeps the path of the original, and the go command fetches its
// go.mod under the fork's path.
func Mod(t target.Target, data []byte) (h1 string, err error) {
	if len(data) > modzip.MaxGoMod {
		return "", broken(nil, "go.mod of %s has %d bytes, the limit is %d", t.Describe(), len(data), modzip.MaxGoMod)
	}
	if modfile.ModulePath(data) == "" {
		return "", broken(nil, "go.mod of %s has no module line", t.Describe())
	}
	return dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	})
}

// List checks the answer to a target of kind List: each line that is not blank
// begins with a semantic version. The go command would read an HTML page as an
// empty list, which hides every version of the module.
func List(t target.Target, data []byte) error {
	for line := range bytes.Lines(data) {
		fields := bytes.Fields(line)
		if len(fields) > 0 && !semver.IsValid(string(fields[0])) {
			return broken(nil, "list of %s holds %q, which is not a version", t.Describe(), oneLine(string(fields[0])))
		}
	}
	return nil
}

// Form checks data as what its kind is: Info, Mod or List.
func Form(t target.Target, data []byte) error {
	switch t.Kind {
	case target.Mod:
		_, err := Mod(t, data)
		return err
	case target.List:
		return List(t, data)
	default:
		return Info(t, data)
	}
}

// broken says that upstream sent what cannot be used.
func broken(err error, format string, args ...any) error {
	return &cache.Error{Reason: cache.Broken, Text: oneLine(fmt.Sprintf(format, args...)), Err: err}
}

// oneLine makes foreign text fit for a terminal: no control characters, valid
// UTF-8, bounded.
func oneLine(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
