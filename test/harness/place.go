package harness

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/ring"
)

// Ranks returns the names of the nodes that should hold a target in a region,
// owner first, then those that stand in for them. All nodes count that were ever
// started and not removed.
func (c *Cluster) Ranks(region, name string) []string {
	c.t.Helper()
	of, err := target.Parse(name)
	if err != nil {
		c.t.Fatal(err)
	}
	table := c.table()
	var names []string
	for _, i := range table.Ranks(region, ring.OfTarget(of)) {
		names = append(names, table.Member(i).ID)
	}
	return names
}

// Replicas returns those of Ranks that should have a copy.
func (c *Cluster) Replicas(region, name string) []string {
	c.t.Helper()
	ranks := c.Ranks(region, name)
	return ranks[:min(c.spec.Replicas, len(ranks))]
}

func (c *Cluster) table() *ring.Table {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.placed != nil {
		return c.placed
	}
	var members ring.Members
	for _, m := range c.members {
		if m.command != "node" || m.out {
			continue
		}
		if _, err := members.Put(ring.Member{
			ID: m.spec.Name, Epoch: 1, State: ring.Active, Role: ring.Node, Region: m.spec.region(), Zone: m.spec.Zone, Weight: 1,
			Addr: m.process.GRPC, Spec: c.spec.Hash(),
		}); err != nil {
			c.t.Fatal(err)
		}
	}
	view, err := ring.NewView(c.spec, &members)
	if err != nil {
		c.t.Fatal(err)
	}
	c.placed = view.Current()
	return c.placed
}

// Place puts the files of a version on its replicas in every region, as if they
// had been fetched and copied there, and returns the escaped targets: .info, .mod
// and .zip.
func (c *Cluster) Place(fake *upstreamtest.Server, m upstreamtest.Module) []string {
	c.t.Helper()
	files := Files(fake, m)
	var names []string
	for name, data := range files {
		names = append(names, name)
		for _, region := range c.regions() {
			for _, node := range c.Replicas(region, name) {
				c.Put(node, name, data)
			}
		}
	}
	slices.Sort(names)
	return names
}

// Put puts an object on a node's disk, where the node finds it.
func (c *Cluster) Put(node, name string, data []byte) {
	c.t.Helper()
	file := filepath.Join(c.DataDir(node), "objects", filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// Size returns the size of an object on a node's disk, 0 where it is not.
func (c *Cluster) Size(node, name string) int64 {
	info, err := os.Stat(filepath.Join(c.DataDir(node), "objects", filepath.FromSlash(name)))
	if err != nil {
		return 0
	}
	return info.Size()
}

// Holders returns the nodes that have an object on their disks.
func (c *Cluster) Holders(name string) []string {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for _, node := range c.order {
		if _, err := os.Stat(filepath.Join(c.DataDir(node), "objects", filepath.FromSlash(name))); err == nil {
			names = append(names, node)
		}
	}
	return names
}

func (c *Cluster) regions() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for _, m := range c.members {
		if m.command == "node" {
			names = append(names, m.spec.region())
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (s Spec) region() string {
	if s.Region == "" {
		return "default"
	}
	return s.Region
}

// Files returns what upstream has of a version: the bytes by escaped target.
func Files(fake *upstreamtest.Server, m upstreamtest.Module) map[string][]byte {
	path, errPath := module.EscapePath(m.Path)
	version, errVersion := module.EscapeVersion(m.Version)
	if errPath != nil || errVersion != nil {
		panic("a module of a test has a bad name")
	}
	base := strings.Join([]string{path, "@v", version}, "/")
	return map[string][]byte{
		base + ".info": fake.Info(m.Path, m.Version), base + ".mod": fake.Mod(m.Path, m.Version), base + ".zip": fake.Zip(m.Path, m.Version),
	}
}
