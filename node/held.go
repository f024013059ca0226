package node

import (
	"context"
	"io"
	"slices"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
)

// fromHeld makes a list or a latest from the versions that the store holds;
// nil where it holds none, and for queries, which nobody but upstream can
// answer.
func (n *Node) fromHeld(ctx context.Context, t target.Target) []byte {
	versions := n.heldVersions(ctx, t)
	if len(versions) == 0 {
		return nil
	}
	switch t.Kind {
	case target.List:
		return listOf(versions)
	case target.Latest:
		return n.infoOf(ctx, module.Version{Path: t.Path, Version: newest(versions)})
	default:
		return nil
	}
}

// heldVersions returns the versions of t's module whose .info is stored.
func (n *Node) heldVersions(ctx context.Context, t target.Target) []string {
	escaped, err := module.EscapePath(t.Path)
	if err != nil {
		return nil
	}
	var versions []string
	err = n.cfg.Store.Walk(ctx, escaped+"/@v/", func(e store.Entry) bool {
		if file, err := target.Parse(e.Name); err == nil && file.Kind == target.Info && n.cfg.Purges.CheckVersion(file.Module()) == nil {
			versions = append(versions, file.Version)
		}
		return true
	})
	if err != nil {
		n.log.WarnContext(ctx, "listing what is held", "module", t.Path, "err", err)
	}
	return versions
}

// listOf prints versions as @v/list does: sorted, without pseudo-versions.
func listOf(versions []string) []byte {
	versions = slices.DeleteFunc(slices.Clone(versions), module.IsPseudoVersion)
	semver.Sort(versions)
	var b strings.Builder
	for _, version := range versions {
		b.WriteString(version)
		b.WriteByte('\n')
	}
	return []byte(b.String())
}

// newest returns the version that @latest means: the highest release, else the
// highest prerelease, else the highest pseudo-version (go.dev/ref/mod).
func newest(versions []string) string {
	class := func(v string) int {
		switch {
		case module.IsPseudoVersion(v):
			return 0
		case semver.Prerelease(v) != "":
			return 1
		default:
			return 2
		}
	}
	return slices.MaxFunc(versions, func(a, b string) int {
		if byClass := class(a) - class(b); byClass != 0 {
			return byClass
		}
		return semver.Compare(a, b)
	})
}

// infoOf returns the stored .info of m, nil if it cannot be read.
func (n *Node) infoOf(ctx context.Context, m module.Version) []byte {
	t, err := target.ForVersion(m, target.Info)
	if err != nil {
		return nil
	}
	obj, err := n.held(ctx, t)
	if err != nil {
		return nil
	}
	data, err := readAll(obj)
	if err != nil {
		return nil
	}
	return data
}

func readAll(obj *cache.Object) ([]byte, error) {
	defer obj.Body.Close()
	return io.ReadAll(obj.Body)
}
