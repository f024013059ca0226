package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"

	"github.com/ringmod/ringmod/internal/target"
)

// wanted is what is to be fetched ahead: for each module version whether its zip is
// wanted, or only what a module graph needs.
type wanted struct {
	zips map[module.Version]bool
	// goMods are the files of main modules, whose graphs are followed.
	goMods []*modfile.File
}

// maxListed is the size of a file that is read, in bytes.
const maxListed = 64 << 20

// readWanted reads what the arguments of warm name: files, or module@version.
func readWanted(args []string, stdin io.Reader) (*wanted, error) {
	w := &wanted{zips: map[module.Version]bool{}}
	for _, arg := range args {
		if err := w.add(arg, stdin); err != nil {
			return nil, usagef("%s: %w", arg, err)
		}
	}
	return w, nil
}

func (w *wanted) add(arg string, stdin io.Reader) error {
	var data []byte
	var err error
	if arg == "-" {
		data, err = io.ReadAll(io.LimitReader(stdin, maxListed))
	} else {
		data, err = os.ReadFile(arg)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && strings.Contains(arg, "@"):
		return w.addVersion(strings.SplitN(arg, "@", 2))
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("no such file; a module is named module@version")
	case err != nil:
		return err
	case filepath.Ext(arg) == ".mod":
		f, err := modfile.Parse(arg, data, nil)
		if err != nil {
			return err
		}
		w.goMods = append(w.goMods, f)
		return nil
	default:
		return w.addLines(data)
	}
}

// addVersion adds a module version: path and canonical version.
func (w *wanted) addVersion(pair []string) error {
	m := module.Version{Path: pair[0], Version: pair[1]}
	if err := checkVersion(m); err != nil {
		return fmt.Errorf("%w; want module@version with a canonical version, such as golang.org/x/mod@v0.30.0", err)
	}
	w.zips[m] = true
	return nil
}

func checkVersion(m module.Version) error {
	if err := module.Check(m.Path, m.Version); err != nil {
		return err
	}
	if canonical := module.CanonicalVersion(m.Version); canonical != m.Version {
		return fmt.Errorf("%s is not the canonical version %s", m.Version, canonical)
	}
	return nil
}

// addLines reads a go.sum, or a list of "module version" or "module@version", with
// comments behind "#".
func (w *wanted) addLines(data []byte) error {
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(strings.ReplaceAll(text, "@", " "))
		switch {
		case len(fields) == 0:
			continue
		case len(fields) == 3 && strings.HasPrefix(fields[2], "h1:") || len(fields) == 2:
		default:
			return fmt.Errorf("line %d is neither of a go.sum nor \"module version\"", n)
		}
		version, goMod := strings.CutSuffix(fields[1], "/go.mod")
		m := module.Version{Path: fields[0], Version: version}
		if err := checkVersion(m); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		w.zips[m] = w.zips[m] || !goMod
	}
	return lines.Err()
}

// fetchMod gets the go.mod of a module version.
type fetchMod func(ctx context.Context, m module.Version) ([]byte, error)

// graph adds what go commands need of the modules that a go.mod requires: since go
// 1.17 it names everything whose zip may be needed, and of the requirements of those
// that prune their graphs as well only the go.mod files (go.dev/ref/mod#graph-pruning).
// What cannot be read is left out: fetching it anyway says why.
func (w *wanted) graph(ctx context.Context, f *modfile.File, fetch fetchMod) error {
	g := grapher{wanted: w, fetch: fetch, replaced: map[module.Version]module.Version{}, seen: map[module.Version]bool{}}
	for _, r := range f.Replace {
		g.replaced[r.Old] = r.New
	}
	lazy := prunes(f)
	var whole []module.Version
	for _, r := range f.Require {
		m, ok := g.replace(r.Mod)
		if !ok {
			continue
		}
		w.zips[m] = true
		whole = append(whole, m)
	}
	return g.follow(ctx, whole, !lazy)
}

type grapher struct {
	*wanted

	fetch    fetchMod
	replaced map[module.Version]module.Version
	seen     map[module.Version]bool
}

// replace follows the main module's replace directives; ok is false for folders.
func (g *grapher) replace(m module.Version) (_ module.Version, ok bool) {
	for _, old := range []module.Version{m, {Path: m.Path}} {
		if by, yes := g.replaced[old]; yes {
			return by, by.Version != ""
		}
	}
	return m, true
}

// follow adds the go.mod files of what ms require. zips: and their zips, as a module
// graph that is not pruned does not say which are needed.
func (g *grapher) follow(ctx context.Context, ms []module.Version, zips bool) error {
	for len(ms) > 0 {
		var next []module.Version
		for _, m := range ms {
			if g.seen[m] {
				continue
			}
			g.seen[m] = true
			g.zips[m] = g.zips[m] || zips
			data, err := g.fetch(ctx, m)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				continue
			}
			f, err := modfile.ParseLax("go.mod", data, nil)
			if err != nil {
				continue
			}
			for _, r := range f.Require {
				if needs, ok := g.replace(r.Mod); ok && !g.seen[needs] {
					g.zips[needs] = g.zips[needs] || zips
					if zips || !prunes(f) {
						next = append(next, needs)
					}
				}
			}
		}
		ms = next
	}
	return nil
}

// prunes tells whether the module of f is one of go 1.17 or later.
func prunes(f *modfile.File) bool {
	return f.Go != nil && semver.Compare("v"+f.Go.Version, "v1.17") >= 0
}

// modules returns all module versions, in a steady order.
func (w *wanted) modules() []module.Version {
	versions := make([]module.Version, 0, len(w.zips))
	for m := range w.zips {
		versions = append(versions, m)
	}
	module.Sort(versions)
	return versions
}

// targets returns the files that are to be fetched: .info and .mod first, as go
// commands ask for them first.
func (w *wanted) targets() ([]target.Target, error) {
	var all, zips []target.Target
	for _, m := range w.modules() {
		kinds := []target.Kind{target.Mod}
		if w.zips[m] {
			kinds = []target.Kind{target.Info, target.Mod, target.Zip}
		}
		for _, k := range kinds {
			t, err := target.ForVersion(m, k)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", m, err)
			}
			if k == target.Zip {
				zips = append(zips, t)
			} else {
				all = append(all, t)
			}
		}
	}
	return slices.Concat(all, zips), nil
}

// lookupOf names the record of m in a checksum database.
func lookupOf(database string, m module.Version) (target.Target, error) {
	path, err := module.EscapePath(m.Path)
	if err != nil {
		return target.Target{}, err
	}
	version, err := module.EscapeVersion(m.Version)
	if err != nil {
		return target.Target{}, err
	}
	return target.Parse("sumdb/" + database + "/lookup/" + path + "@" + version)
}
