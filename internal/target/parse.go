package target

import (
	"errors"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"
)

// Limits that keep a name usable as a file name with the suffixes that a store
// adds, on file systems whose limit is 255 bytes an element.
const (
	maxElement = 240
	maxName    = 2048
)

var (
	errForm        = errors.New("not of the form <module>/@v/list, <module>/@latest, <module>/@v/<version>.{info,mod,zip} or sumdb/<name>/…")
	errUnclean     = errors.New("an empty, \".\" or \"..\" element, a backslash or a control character")
	errLong        = errors.New("longer than a file system takes")
	errSumdb       = errors.New("not a request to a checksum database (supported, latest, lookup/…, tile/…)")
	errNotVersion  = errors.New("only canonical versions have this file")
	errTile        = errors.New("not the path of a tile")
	errUnescapedAt = errors.New("no version behind @")
)

// Parse reads an escaped target: a request path, decoded once, without its
// leading slash. Every error is an *Error.
func Parse(name string) (Target, error) {
	t, err := parse(name)
	if err != nil {
		foreign := errors.Is(err, errForm) || errors.Is(err, errUnclean)
		return Target{}, &Error{Target: name, Foreign: foreign, Err: err}
	}
	t.name = name
	return t, nil
}

func parse(name string) (Target, error) {
	if err := checkElements(name); err != nil {
		return Target{}, err
	}
	if rest, ok := strings.CutPrefix(name, "sumdb/"); ok {
		return parseSumdb(rest)
	}
	if escaped, ok := strings.CutSuffix(name, "/@latest"); ok {
		path, err := module.UnescapePath(escaped)
		return Target{Kind: Latest, Path: path}, err
	}
	escaped, file, ok := strings.Cut(name, "/@v/")
	if !ok || strings.Contains(file, "/") {
		return Target{}, errForm
	}
	path, err := module.UnescapePath(escaped)
	if err != nil {
		return Target{}, err
	}
	if file == "list" {
		return Target{Kind: List, Path: path}, nil
	}
	return parseFile(path, file)
}

// checkElements rejects what could leave the folder that a name is joined to.
func checkElements(name string) error {
	if len(name) > maxName {
		return errLong
	}
	for element := range strings.SplitSeq(name, "/") {
		if element == "" || element == "." || element == ".." {
			return errUnclean
		}
		if len(element) > maxElement {
			return errLong
		}
	}
	for _, c := range []byte(name) {
		if c < ' ' || c == 0x7f || c == '\\' {
			return errUnclean
		}
	}
	return nil
}

// parseFile reads <escaped version>.<ext>. A .info of something that is not the
// canonical form of a version of path is a query.
func parseFile(path, file string) (Target, error) {
	dot := strings.LastIndexByte(file, '.')
	if dot < 0 {
		return Target{}, errForm
	}
	kind, ok := map[string]Kind{".info": Info, ".mod": Mod, ".zip": Zip}[file[dot:]]
	if !ok {
		return Target{}, errForm
	}
	version, err := module.UnescapeVersion(file[:dot])
	if err != nil {
		return Target{}, err
	}
	if checkCanonical(path, version) != nil {
		if kind != Info {
			return Target{}, &module.InvalidVersionError{Version: version, Err: errNotVersion}
		}
		kind = Query
	}
	return Target{Kind: kind, Path: path, Version: version}, nil
}

// checkCanonical tells whether version is the canonical form of a version that
// fits path (protocol.md, section E).
func checkCanonical(path, version string) error {
	if module.CanonicalVersion(version) != version {
		return errNotVersion
	}
	return module.Check(path, version)
}

// parseSumdb reads what follows "sumdb/". A database's name may hold slashes,
// so it ends where the first of the four operations begins.
func parseSumdb(rest string) (Target, error) {
	for _, op := range []struct {
		word string
		kind Kind
	}{{"/supported", SumdbSupported}, {"/latest", SumdbLatest}} {
		db, ok := strings.CutSuffix(rest, op.word)
		if ok && !strings.Contains(db, "/lookup/") && !strings.Contains(db, "/tile/") {
			return Target{Kind: op.kind, DB: db, Rest: op.word[1:]}, nil
		}
	}
	if db, tile, ok := strings.Cut(rest, "/tile/"); ok && !strings.Contains(db, "/lookup/") {
		return Target{Kind: SumdbTile, DB: db, Rest: "tile/" + tile}, checkTile("tile/" + tile)
	}
	db, escaped, ok := strings.Cut(rest, "/lookup/")
	if !ok {
		return Target{}, errSumdb
	}
	return parseLookup(db, escaped)
}

func parseLookup(db, escaped string) (Target, error) {
	escapedPath, escapedVersion, ok := strings.Cut(escaped, "@")
	if !ok || strings.Contains(escapedVersion, "/") {
		return Target{}, errUnescapedAt
	}
	path, err := module.UnescapePath(escapedPath)
	if err != nil {
		return Target{}, err
	}
	version, err := module.UnescapeVersion(escapedVersion)
	if err != nil {
		return Target{}, err
	}
	if module.CanonicalVersion(version) != version {
		return Target{}, &module.InvalidVersionError{Version: version, Err: errNotVersion}
	}
	return Target{Kind: SumdbLookup, Path: path, Version: version, DB: db, Rest: "lookup/" + escaped}, nil
}

// checkTile accepts tile paths as golang.org/x/mod/sumdb/tlog prints them, of
// the height that checksum databases use (8), data tiles included.
func checkTile(path string) error {
	tile, err := tlog.ParseTilePath(path)
	if err != nil || tile.H != 8 || tile.Path() != path {
		return errTile
	}
	return nil
}
