package purge

import (
	"bytes"
	"slices"
	"sort"
	"strings"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/target"
)

// rules are the tombstones that are not lifted, made for looking up. They never
// change.
type rules struct {
	exact map[string]*known
	names []string // of exact, sorted
	// Sorted by name. None begins with another one, so that the only one that a name can
	// begin with is the last that is not greater.
	prefixes []*known
}

func newRules(all map[Name]*known) *rules {
	r := &rules{exact: make(map[string]*known)}
	for n, k := range all {
		switch {
		case k.Lifted:
		case n.Prefix:
			r.prefixes = append(r.prefixes, k)
		default:
			r.exact[n.Name] = k
			r.names = append(r.names, n.Name)
		}
	}
	slices.Sort(r.names)
	slices.SortFunc(r.prefixes, func(a, b *known) int { return strings.Compare(a.Name.Name, b.Name.Name) })
	least := r.prefixes[:0]
	for _, k := range r.prefixes {
		if n := len(least); n == 0 || !strings.HasPrefix(k.Name.Name, least[n-1].Name.Name) {
			least = append(least, k)
		}
	}
	r.prefixes = least
	return r
}

// find returns the tombstone that keeps a target away, nil where there is none.
func (r *rules) find(name string) *known {
	if k := r.exact[name]; k != nil {
		return k
	}
	return r.prefixOf(name)
}

func (r *rules) prefixOf(name string) *known {
	i := sort.Search(len(r.prefixes), func(i int) bool { return r.prefixes[i].Name.Name > name })
	if i > 0 && strings.HasPrefix(name, r.prefixes[i-1].Name.Name) {
		return r.prefixes[i-1]
	}
	return nil
}

// touches tells whether any target that begins with prefix may be purged.
func (r *rules) touches(prefix string) bool {
	if len(r.names) == 0 && len(r.prefixes) == 0 {
		return false
	}
	if i := sort.SearchStrings(r.names, prefix); i < len(r.names) && strings.HasPrefix(r.names[i], prefix) {
		return true
	}
	i := sort.Search(len(r.prefixes), func(i int) bool { return r.prefixes[i].Name.Name >= prefix })
	return r.prefixOf(prefix) != nil || i < len(r.prefixes) && strings.HasPrefix(r.prefixes[i].Name.Name, prefix)
}

func (r *rules) purged(name string) bool { return r.find(name) != nil }

// Purged tells whether a target must not be here.
func (s *Set) Purged(name string) bool { return s.rules.Load().purged(name) }

// Check returns the *cache.Error to answer with in place of a target, nil where it is
// not purged.
func (s *Set) Check(name string) error {
	if k := s.rules.Load().find(name); k != nil {
		return k.err()
	}
	return nil
}

// Find returns the tombstone that keeps a target away.
func (s *Set) Find(name string) (Tombstone, bool) {
	if k := s.rules.Load().find(name); k != nil {
		return k.Tombstone, true
	}
	return Tombstone{}, false
}

// CheckVersion is Check for a version: it is purged if any of its files is.
func (s *Set) CheckVersion(m module.Version) error {
	r := s.rules.Load()
	dir, ok := folder(m.Path)
	if !ok || !r.touches(dir) {
		return nil
	}
	if k := r.version(dir, m.Version); k != nil {
		return k.err()
	}
	return nil
}

// List returns the lines of a list that are of no purged version. It is list where
// nothing is purged.
func (s *Set) List(path string, list []byte) []byte {
	dir, ok := folder(path)
	if !ok {
		return list
	}
	return s.listOf(dir, list)
}

func (s *Set) listOf(dir string, list []byte) []byte {
	r := s.rules.Load()
	if !r.touches(dir) {
		return list
	}
	var left []byte
	for line := range bytes.Lines(list) {
		if fields := bytes.Fields(line); len(fields) == 0 || r.version(dir, string(fields[0])) == nil {
			left = append(left, line...)
		}
	}
	if len(left) == len(list) {
		return list
	}
	return left
}

// folder returns what the targets of versions of a module begin with.
func folder(path string) (dir string, ok bool) {
	escaped, err := module.EscapePath(path)
	return escaped + "/@v/", err == nil
}

func (r *rules) version(dir, version string) *known {
	escaped, err := module.EscapeVersion(version)
	if err != nil {
		return nil
	}
	for _, suffix := range [...]string{".info", ".mod", ".zip"} {
		if k := r.find(dir + escaped + suffix); k != nil {
			return k
		}
	}
	return nil
}

// Names returns the names that a module, or one version of it, is purged by. The version
// must be canonical.
func Names(m module.Version) ([]Name, error) {
	if m.Version == "" {
		latest, err := target.ForModule(m.Path, target.Latest)
		if err != nil {
			return nil, err
		}
		return []Name{{strings.TrimSuffix(latest.String(), "@latest") + "@v/", true}, {latest.String(), false}}, nil
	}
	var names []Name
	for _, kind := range []target.Kind{target.Info, target.Mod, target.Zip} {
		t, err := target.ForVersion(m, kind)
		if err != nil {
			return nil, err
		}
		if t.Kind == target.Query {
			if module.CanonicalVersion(m.Version) == m.Version {
				return nil, module.Check(m.Path, m.Version)
			}
			return nil, errQuery
		}
		names = append(names, Name{t.String(), false})
	}
	return names, nil
}
