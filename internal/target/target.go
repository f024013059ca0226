// Package target parses and prints the names of everything that the GOPROXY
// protocol can ask for (https://go.dev/ref/mod#goproxy-protocol).
//
// A target is the escaped request path without its leading slash, for example
//
//	github.com/!azure/azure-sdk-for-go/@v/v68.0.0+incompatible.zip
//	sumdb/sum.golang.org/tile/8/0/x001/234
//
// The same string is the path of the URL, the key of the cache and the name of
// the file below the objects folder. Parse accepts exactly the strings that
// String prints, so two spellings of one object cannot exist, and whatever
// Parse accepts is a relative path that stays below the folder it is joined to:
// no empty, "." or ".." element, no backslash, no control character, no element
// that is longer than file systems take.
package target

import (
	"fmt"

	"golang.org/x/mod/module"
)

// Kind says what a target names.
type Kind uint8

// The kinds. Info, Mod and Zip belong to a canonical version and never change,
// nor do SumdbLookup (as to its record) and SumdbTile; the others do.
const (
	List           Kind = iota + 1 // <path>/@v/list
	Latest                         // <path>/@latest
	Info                           // <path>/@v/<version>.info of a canonical version
	Mod                            // <path>/@v/<version>.mod
	Zip                            // <path>/@v/<version>.zip
	Query                          // <path>/@v/<query>.info of a branch, tag or commit
	SumdbSupported                 // sumdb/<database>/supported
	SumdbLatest                    // sumdb/<database>/latest
	SumdbLookup                    // sumdb/<database>/lookup/<path>@<version>
	SumdbTile                      // sumdb/<database>/tile/<height>/<level>/<number>[.p/<width>]
)

// kindNames are the words for the kinds in logs and metrics.
var kindNames = [...]string{
	List: "list", Latest: "latest", Info: "info", Mod: "mod", Zip: "zip", Query: "query",
	SumdbSupported: "sumdb_supported", SumdbLatest: "sumdb_latest", SumdbLookup: "sumdb_lookup", SumdbTile: "sumdb_tile",
}

// String returns the word for k in logs and metrics.
func (k Kind) String() string {
	if int(k) < len(kindNames) && k > 0 {
		return kindNames[k]
	}
	return "unknown"
}

// Immutable reports whether the bytes behind a target of kind k never change.
func (k Kind) Immutable() bool {
	switch k {
	case Info, Mod, Zip, SumdbLookup, SumdbTile:
		return true
	default:
		return false
	}
}

// Sumdb reports whether k belongs to a checksum database.
func (k Kind) Sumdb() bool { return k >= SumdbSupported && k <= SumdbTile }

// Target is a parsed target. The zero Target names nothing.
type Target struct {
	Kind    Kind
	Path    string // module path, plain form; empty for a checksum database except SumdbLookup
	Version string // version or query, plain form; empty for List and Latest
	DB      string // name of the checksum database; may hold slashes
	Rest    string // what follows the database's name, for example "tile/8/0/001"

	name string
}

// String returns the escaped form, which Parse accepts.
func (t Target) String() string { return t.name }

// Module returns path and version of what t belongs to.
func (t Target) Module() module.Version { return module.Version{Path: t.Path, Version: t.Version} }

// Describe names t for people: module@version where there is one, else the
// module path, else the target itself.
func (t Target) Describe() string {
	switch {
	case t.Path != "" && t.Version != "":
		return t.Path + "@" + t.Version
	case t.Path != "":
		return t.Path
	default:
		return t.name
	}
}

// Sibling returns the target of the same module version with another kind,
// which must be Info, Mod or Zip.
func (t Target) Sibling(kind Kind) (Target, error) { return ForVersion(t.Module(), kind) }

// ForVersion returns the target of kind Info, Mod or Zip of a canonical version.
func ForVersion(m module.Version, kind Kind) (Target, error) {
	ext, ok := map[Kind]string{Info: ".info", Mod: ".mod", Zip: ".zip"}[kind]
	if !ok {
		return Target{}, fmt.Errorf("%v is not a file of a version", kind)
	}
	escapedVersion, err := module.EscapeVersion(m.Version)
	if err != nil {
		return Target{}, err
	}
	return parseIn(m.Path, "/@v/"+escapedVersion+ext)
}

// ForModule returns the target of kind List or Latest of a module.
func ForModule(path string, kind Kind) (Target, error) {
	rest, ok := map[Kind]string{List: "/@v/list", Latest: "/@latest"}[kind]
	if !ok {
		return Target{}, fmt.Errorf("%v is not a target of a module", kind)
	}
	return parseIn(path, rest)
}

// ForSumdb returns the target of a checksum database; rest is what follows its
// name, for example "lookup/golang.org/x/mod@v0.20.0".
func ForSumdb(db, rest string) (Target, error) { return Parse("sumdb/" + db + "/" + rest) }

func parseIn(path, rest string) (Target, error) {
	escaped, err := module.EscapePath(path)
	if err != nil {
		return Target{}, err
	}
	return Parse(escaped + rest)
}

// Error tells why a string is no target. Its text is made for the developer
// who sent the request.
type Error struct {
	Target string // as it was given
	// Foreign is set when the string has not even the form of a target, so that
	// no module can have been meant.
	Foreign bool
	Err     error
}

func (e *Error) Error() string { return fmt.Sprintf("malformed target %q: %v", e.Target, e.Err) }

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Err }
