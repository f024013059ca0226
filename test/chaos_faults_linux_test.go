package test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/ringmod/ringmod/test/baddisk"
	"github.com/ringmod/ringmod/test/harness"
	"github.com/ringmod/ringmod/test/wan"
)

// misfortune is a kind of what may happen.
type misfortune struct {
	name   string
	strike func()
}

// misfortunes returns a deck of all that may happen.
func (c *chaos) misfortunes() []misfortune {
	ill := func(what string, ill func(*baddisk.Disk)) misfortune {
		return misfortune{what, func() { c.sicken(what, ill) }}
	}
	return []misfortune{
		{"kill", c.kill},
		{"freeze", c.freeze},
		{"restart", c.restart},
		{"links", c.spoil},
		{"join", c.join},
		{"disk full", c.fill},
		ill("disk fails to write", func(d *baddisk.Disk) { d.FailWrites(syscall.EIO) }),
		ill("disk fails", func(d *baddisk.Disk) { d.Fail(syscall.EIO) }),
		ill("disk hangs", (*baddisk.Disk).Hang),
		{"drain", c.drain},
		{"lose", c.lose},
		{"empty", c.empty},
		{"rot", c.rot},
		{"upgrade", c.upgrade},
		{"purge", c.purge},
		{"purge", c.purge},
	}
}

// diskKind is what kind of disk a node has, of which it depends what may happen to that.
type diskKind int

const (
	plain   diskKind = iota
	failing          // it may fail and hang
	tiny             // it may be full
)

// roomy is the size in bytes of a small disk that is not full.
const roomy = 1 << 30

// berth is where a node runs.
type berth struct {
	site   int
	kind   diskKind
	disk   *baddisk.Disk // that may fail
	dir    string        // where a small disk is
	resize func(bytes int64) error
}

// begin starts a node that was not there before, and returns its name.
func (c *chaos) begin(site int, kind diskKind) string {
	c.begun++
	name, b := fmt.Sprintf("n%d", c.begun), &berth{site: site, kind: kind}
	switch kind {
	case failing:
		b.disk = baddisk.New(c.t)
		b.dir = b.disk.Dir
	case tiny:
		b.dir = c.t.TempDir()
		b.resize = mountSmall(c.t, b.dir, roomy)
	}
	s := c.spec(name, site)
	if b.dir != "" {
		if err := os.Symlink(b.dir, c.cluster.DataDir(name)); err != nil {
			c.t.Fatal(err)
		}
		s.Flags = append(s.Flags, "--disk-limit", "1TiB")
	}
	c.berths[name] = b
	c.reaching()
	c.cluster.StartNode(s)
	c.nodes = append(c.nodes, name)
	return name
}

// reaching notes a node that begins while links are broken.
func (c *chaos) reaching() {
	if c.cut > 0 && c.takedowns != nil {
		c.takedowns.begun()
	}
}

func (c *chaos) again(name string) {
	c.reaching()
	c.cluster.Restart(name)
}

// remove takes a node from those that are to stay.
func (c *chaos) remove(name string) {
	c.nodes = slices.DeleteFunc(c.nodes, func(n string) bool { return n == name })
}

// choose draws a node that is well and has a disk of that kind; plain: any. Where there is none
// one is healed.
func (c *chaos) choose(kind diskKind) string {
	fits := slices.DeleteFunc(slices.Clone(c.nodes), func(name string) bool { return kind != plain && c.berths[name].kind != kind })
	isWell := func(name string) bool { _, ill := c.broken[name]; return !ill }
	well := slices.DeleteFunc(slices.Clone(fits), func(name string) bool { return !isWell(name) })
	if len(well) > 0 {
		return pick(c.random, well)
	}
	name := pick(c.random, fits)
	c.heal(name)
	return name
}

func (c *chaos) kill() {
	name := c.choose(plain)
	c.logf("kill %s", name)
	c.cluster.Member(name).Kill()
	c.broken[name] = trouble{heal: func() { c.again(name) }}
}

func (c *chaos) freeze() {
	name := c.choose(plain)
	c.logf("freeze %s", name)
	p, end := c.cluster.Member(name), c.takedowns.hinder()
	p.Freeze()
	c.broken[name] = trouble{heal: func() {
		p.Thaw()
		end()
	}}
}

func (c *chaos) restart() {
	name := c.choose(plain)
	c.logf("restart %s", name)
	c.cluster.Member(name).Stop()
	c.again(name)
}

// join lets one more node in, while there are not too many.
func (c *chaos) join() {
	if len(c.nodes) < maxNodes {
		c.logf("join %s", c.begin(c.random.IntN(len(c.Sites)), plain))
	}
}

// fill leaves a small disk without room.
func (c *chaos) fill() {
	name := c.choose(tiny)
	b := c.berths[name]
	c.logf("disk full: %s", name)
	within(c.t, time.Minute, "a disk to be full", func() error {
		var st syscall.Statfs_t
		if err := syscall.Statfs(b.dir, &st); err != nil {
			return err
		}
		return b.resize(int64(st.Blocks-st.Bfree) * st.Bsize) // fails when more was written meanwhile
	})
	c.broken[name] = trouble{heal: func() {
		if err := b.resize(roomy); err != nil {
			c.t.Error(err)
		}
	}}
}

// sicken makes a disk fail or hang.
func (c *chaos) sicken(what string, ill func(*baddisk.Disk)) {
	name := c.choose(failing)
	c.logf("%s: %s", what, name)
	d, end := c.berths[name].disk, c.takedowns.hinder()
	c.t.Cleanup(d.Heal) // or else the process could not be ended
	ill(d)
	c.broken[name] = trouble{heal: func() {
		d.Heal()
		end()
	}}
}

// spoil cuts a site off, wholly, in one direction or for one protocol, or makes its
// links bad.
func (c *chaos) spoil() {
	links := func(i int) string { return fmt.Sprintf("links of site %d", i+1) }
	i := c.random.IntN(len(c.Sites))
	if _, already := c.broken[links(i)]; already {
		c.heal(links(i))
	}
	site, others := c.Sites[i], slices.Delete(slices.Clone(c.Sites), i, i+1)
	bad := pick(c.random, []struct {
		name      string
		out, back wan.Path
	}{
		{"cut", wan.Path{Cut: wan.Everything}, wan.Path{Cut: wan.Everything}},
		{"cut outwards", wan.Path{Cut: wan.Everything}, usual},
		{"cut inwards", usual, wan.Path{Cut: wan.Everything}},
		{"cut for TCP", wan.Path{Cut: wan.TCP}, wan.Path{Cut: wan.TCP}},
		{"cut for UDP", wan.Path{Cut: wan.UDP}, wan.Path{Cut: wan.UDP}},
		{"lossy and far", wan.Path{Loss: 0.05, Delay: 100 * time.Millisecond}, wan.Path{Loss: 0.05, Delay: 100 * time.Millisecond}},
		{"thin", wan.Path{Rate: 1 << 20}, wan.Path{Rate: 1 << 20}},
	})
	c.logf("%s: %s", links(i), bad.name)
	set := func(out, back wan.Path) {
		for _, other := range others {
			c.Set(site, other, out)
			c.Set(other, site, back)
		}
	}
	set(bad.out, bad.back)
	end := c.takedowns.hinder()
	c.cut++
	c.broken[links(i)] = trouble{heal: func() {
		set(usual, usual)
		c.cut--
		end()
	}}
}

// well returns the nodes that run and have nothing wrong, the asked one first.
func (c *chaos) well(first string) []*harness.Process {
	all := []*harness.Process{c.cluster.Member(first)}
	for _, name := range slices.Sorted(maps.Keys(c.berths)) {
		if _, ill := c.broken[name]; !ill && name != first && slices.Contains(c.nodes, name) {
			all = append(all, c.cluster.Member(name))
		}
	}
	return all
}
