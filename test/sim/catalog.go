package sim

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

// zipSizes are of the zips of the modules, in bytes, the most popular module
// first: below and above what a header carries, what a gateway holds in memory,
// what is held back, and what takes many chunks.
var zipSizes = [...]int64{3 << 10, 180 << 10, 700 << 10, 20 << 10, 90 << 10, 300 << 10} //nolint:gochecknoglobals // never written

// madeAt is the time in all .info files.
var madeAt = time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC) //nolint:gochecknoglobals // never written

// made keeps the files of all versions for all seeds: they are the same bytes.
var made sync.Map //nolint:gochecknoglobals // a memo of a pure function

func modulePath(i int) string { return fmt.Sprintf("example.com/m%d", i) }

func versionOf(n int) string { return fmt.Sprintf("v1.%d.0", n) }

// contentOf returns the one true content of a file of a version.
func contentOf(m module.Version, size int64, ext string) []byte {
	once := sync.OnceValue(func() []byte {
		text := fmt.Sprintf("package m // %s\n", m)
		data, err := upstreamtest.Module{
			Path: m.Path, Version: m.Version, Time: madeAt, Pad: size,
			Files: map[string]string{"go.mod": "module " + m.Path + "\n// " + m.Version + "\n", "m.go": text},
		}.File(ext)
		if err != nil {
			panic(err)
		}
		return data
	})
	f, _ := made.LoadOrStore(fmt.Sprint(m, size, ext), once)
	return f.(func() []byte)()
}

// catalog is what upstream has, by time: versions are published and stay.
type catalog struct {
	mu        sync.Mutex // guards what follows
	published [len(zipSizes)][]time.Time
}

// publish makes the next version of module i known.
func (c *catalog) publish(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.published[i] = append(c.published[i], time.Now())
}

// count returns how many versions of module i are published.
func (c *catalog) count(i int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.published[i])
}

// publishedAt returns when the n-th version of module i was published; false if it
// was not.
func (c *catalog) publishedAt(i, n int) (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n < 0 || n >= len(c.published[i]) {
		return time.Time{}, false
	}
	return c.published[i][n], true
}

// place returns the number of t's module and version, -1 for an unknown module, and
// for a target without a version of ours.
func place(t target.Target) (mod, version int) {
	if _, err := fmt.Sscanf(t.Path, "example.com/m%d", &mod); err != nil || mod < 0 || mod >= len(zipSizes) {
		return -1, -1
	}
	if _, err := fmt.Sscanf(t.Version, "v1.%d.0", &version); err != nil || !t.Kind.Immutable() {
		return mod, -1
	}
	return mod, version
}

// lookup returns what upstream has of t now, nil if nothing.
func (c *catalog) lookup(t target.Target) []byte {
	mod, version := place(t)
	if mod < 0 {
		return nil
	}
	n := c.count(mod)
	if !t.Kind.Immutable() {
		return mutableContent(t, mod, n)
	}
	if version < 0 || version >= n {
		return nil
	}
	return immutableContent(t, mod)
}

// immutableContent returns the true bytes of t, published or not.
func immutableContent(t target.Target, mod int) []byte {
	name := t.String()
	return contentOf(t.Module(), zipSizes[mod], name[strings.LastIndexByte(name, '.'):])
}

// mutableContent returns what upstream says of t once n versions are published.
func mutableContent(t target.Target, mod, n int) []byte {
	if n == 0 {
		return nil
	}
	if t.Kind != target.List {
		return contentOf(module.Version{Path: modulePath(mod), Version: versionOf(n - 1)}, 0, ".info")
	}
	var list strings.Builder
	for i := range n {
		list.WriteString(versionOf(i) + "\n")
	}
	return []byte(list.String())
}

// state returns how many versions were published when upstream said body of t, -1
// if it never did.
func state(t target.Target, body []byte) int {
	if t.Kind == target.List {
		n := strings.Count(string(body), "\n")
		if mod, _ := place(t); mod >= 0 && string(mutableContent(t, mod, n)) == string(body) {
			return n
		}
		return -1
	}
	var info struct{ Version string }
	var n int
	if json.Unmarshal(body, &info) != nil {
		return -1
	}
	if _, err := fmt.Sscanf(info.Version, "v1.%d.0", &n); err != nil {
		return -1
	}
	return n + 1
}

func mustTarget(name string) target.Target {
	t, err := target.Parse(name)
	if err != nil {
		panic(err)
	}
	return t
}

// file names a file of a version, such as ".zip".
func file(mod, version int, ext string) target.Target {
	return mustTarget(modulePath(mod) + "/@v/" + versionOf(version) + ext)
}

// maxVersions is how many versions of a module there ever are.
const maxVersions = 12
