package ring

import (
	"strings"

	"github.com/ringmod/ringmod/internal/target"
)

// OfTarget returns the partition of what t names. It does not allocate.
func OfTarget(t target.Target) Partition {
	name := t.String()
	switch {
	case t.Kind.Sumdb():
		return OfSumdb(t.DB, t.Rest)
	case t.Kind == target.Latest:
		return OfModule(strings.TrimSuffix(name, "/@latest"))
	}
	escapedPath, file, _ := strings.Cut(name, "/@v/")
	if !t.Kind.Immutable() {
		return OfModule(escapedPath)
	}
	return OfVersion(escapedPath, file[:strings.LastIndexByte(file, '.')])
}
