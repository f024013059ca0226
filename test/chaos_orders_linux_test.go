package test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// ordered is how long what an operator orders may take once everything else is healed.
const ordered = 15 * time.Minute

// order gives an order about a node to one member after the other until one of them says
// that it was done.
func (c *chaos) order(ctx context.Context, node, done string, args ...string) error {
	said := ""
	for ctx.Err() == nil {
		for _, p := range c.cluster.Running() {
			if p.GRPC == "" || p.Name == node || ctx.Err() != nil {
				continue
			}
			if status, text := p.Command(ctx, args...); status == 0 && strings.Contains(text, done) {
				return nil
			} else if ctx.Err() == nil {
				said = fmt.Sprintf("%s says with status %d: %s", p.Name, status, text)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
	return fmt.Errorf("ringmod %s: %w; %s", strings.Join(args, " "), ctx.Err(), said)
}

// operate gives an order while other things go on. It is done when, in the end, everything
// else was healed.
func (c *chaos) operate(what, node, done string, after func(), args ...string) {
	ctx, cancel := context.WithCancel(c.t.Context())
	c.t.Cleanup(cancel)
	outcome := make(chan error, 1)
	go func() { outcome <- c.order(ctx, node, done, args...) }()
	c.broken[what] = trouble{heal: func() {
		c.calm()
		timer := time.AfterFunc(ordered, cancel)
		defer timer.Stop()
		if err := <-outcome; err != nil {
			c.t.Fatal(err)
		}
		after()
	}}
}

// drain takes a node out by order while another one joins, unless there are many.
func (c *chaos) drain() {
	name, other := c.choose(plain), "nobody"
	b := c.berths[name]
	near := 0
	for _, n := range c.nodes {
		if c.berths[n].site/2 == b.site/2 {
			near++
		}
	}
	if len(c.nodes) < maxNodes || b.kind != plain || near < 4 {
		other = c.begin(b.site, b.kind)
	}
	c.remove(name)
	c.logf("drain %s, %s joins", name, other)
	p := c.cluster.Member(name)
	c.operate("drain of "+name, name, "has left", func() {
		if err := p.Wait(); err != nil {
			c.t.Errorf("%s ended with %v after it has left", name, err)
		}
		c.cluster.Remove(name)
	}, "drain", name)
}

// lose kills a node for good, once all have their copies, and has it forgotten.
func (c *chaos) lose() {
	c.settle()
	name := c.choose(plain)
	b := c.berths[name]
	c.cluster.Member(name).Kill()
	c.cluster.Remove(name)
	c.remove(name)
	c.logf("lose %s, %s joins", name, c.begin(b.site, b.kind))
	c.operate("loss of "+name, name, "is forgotten", func() {}, "forget", name)
}

// empty kills a node, once all have their copies, and starts it with an empty disk.
func (c *chaos) empty() {
	c.settle()
	name := c.choose(plain)
	c.logf("empty %s", name)
	c.cluster.Member(name).Kill()
	dir := c.cluster.DataDir(name)
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.again(name)
}

// rot flips a bit in every other object of a node, once all have their copies, and has the
// node scrubbed in the end.
func (c *chaos) rot() {
	c.settle()
	name := c.choose(plain)
	n, some := 0, 0
	c.eachObject(name, func(path, _ string) {
		if n++; n%2 == 0 && flip(path) == nil {
			some++
		}
	})
	c.logf("rot %d objects of %s", some, name)
	c.broken["rot of "+name] = trouble{heal: func() {
		if !slices.Contains(c.nodes, name) {
			return // it leaves
		}
		c.calm()
		ctx, cancel := context.WithTimeout(c.t.Context(), ordered)
		defer cancel()
		eventually(c.t, "the disk of "+name+" to take what is repaired", func() bool { return c.cluster.Member(name).Metric("ringmod_disk_read_only") == 0 })
		if status, text := c.cluster.Member(name).Command(ctx, "scrub", name, "--all"); status != 0 {
			c.t.Errorf("ringmod scrub ended with %d:\n%s", status, text)
		}
	}}
}

// flip changes a bit in the middle of a file, in place.
func flip(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, info.Size()/2); err != nil {
		return err
	}
	b[0] ^= 4
	_, err = f.WriteAt(b, info.Size()/2)
	return err
}

// eachObject calls do for the files of versions that a node holds, in order. They come and go
// meanwhile.
func (c *chaos) eachObject(node string, do func(path, name string)) {
	root := filepath.Join(c.cluster.DataDir(node), "objects")
	_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && slices.Contains([]string{".info", ".mod", ".zip"}, filepath.Ext(path)) {
			name, _ := filepath.Rel(root, path)
			do(path, filepath.ToSlash(name))
		}
		return nil
	})
}

// upgrade restarts all nodes, each as soon as the one before is ready.
func (c *chaos) upgrade() {
	c.settle()
	for _, name := range c.nodes {
		c.cluster.Member(name).Stop()
		ready := c.cluster.Restart(name).WaitReady(whole)
		c.logf("upgrade %s, ready after %v", name, ready.Round(time.Millisecond))
	}
}

// purge takes a version down, and mostly lifts that later.
func (c *chaos) purge() {
	if len(c.takedowns.orders) == len(c.takedowns.paths) {
		return
	}
	path, asked, stays := c.takedowns.paths[len(c.takedowns.orders)], c.choose(plain), c.random.IntN(3) == 0
	c.decree(path, asked, false)
	if stays {
		return
	}
	c.broken["purge of "+path] = trouble{lasting: true, heal: func() { c.decree(path, c.choose(plain), true) }}
}

// decree purges a version or lifts that, by the first of the nodes that can.
func (c *chaos) decree(path, asked string, lift bool) {
	args, text := []string{"purge", path + "@" + doomed, "--timeout", "30s", "--reason", whyGone}, ""
	if lift {
		args = append(args, "--lift")
	}
	for _, p := range c.well(asked) {
		taken := c.takedowns.give(path, lift)
		var status int
		if status, text = p.Command(c.t.Context(), args...); strings.Contains(text, "Confirmed by") {
			taken(c.complete(text))
			c.logf("purge %s (lift: %v), %s says with status %d: %s", path, lift, p.Name, status, strings.Join(strings.Fields(text), " "))
			return
		}
		if strings.Contains(text, "that is not purged") {
			c.takedowns.retract(path)
		}
	}
	c.logf("nobody takes %v: %s", args, text)
}

// complete tells whether all nodes that run have confirmed.
func (c *chaos) complete(text string) bool {
	_, missing, _ := strings.Cut(text, "NOT CONFIRMED by ")
	missing, _, _ = strings.Cut(missing, ". ")
	absent := strings.FieldsFunc(missing, func(r rune) bool { return r == ' ' || r == ',' })
	return !slices.ContainsFunc(absent, func(name string) bool { return slices.Contains(c.nodes, name) && c.cluster.Member(name).Running() })
}

// copied waits until what any node of a region has is at all nodes that should have it there.
func (c *chaos) copied() {
	c.t.Helper()
	took := within(c.t, whole, "copies to be where they belong", func() error {
		for name, by := range c.holders() {
			for region, nodes := range by {
				for _, want := range c.cluster.Replicas(region, name) {
					if !slices.Contains(nodes, want) {
						time.Sleep(time.Second)
						return fmt.Errorf("%s is at %v and not at %s", name, nodes, want)
					}
				}
			}
		}
		return nil
	})
	c.logf("all copies are where they belong after %v", took.Round(time.Millisecond))
}

// holders returns the nodes that hold each object, by region.
func (c *chaos) holders() map[string]map[string][]string {
	all := map[string]map[string][]string{}
	for _, node := range c.nodes {
		region := regionName(c.berths[node].site / 2)
		c.eachObject(node, func(_, name string) {
			if all[name] == nil {
				all[name] = map[string][]string{}
			}
			all[name][region] = append(all[name][region], node)
		})
	}
	return all
}

// compare holds what is on the disks against what upstream has.
func (c *chaos) compare() {
	sums := maps.Clone(c.held)
	maps.Copy(sums, c.stock.fresh)
	maps.Copy(sums, c.takedowns.sums)
	for _, node := range c.nodes {
		c.eachObject(node, func(path, name string) {
			want, ours := sums[name]
			data, err := os.ReadFile(path)
			if ours && (err != nil || sha256.Sum256(data) != want) {
				c.t.Errorf("%s has wrong bytes of %s: %v", node, name, err)
			}
		})
	}
}

// away fails the test when a node holds what was purged, or upstream was asked for it.
func (c *chaos) away(names []string, asked int) {
	for _, node := range c.nodes {
		c.eachObject(node, func(_, name string) {
			if slices.Contains(names, name) {
				c.t.Errorf("I10 %s holds %s, which was purged", node, name)
			}
		})
	}
	for _, request := range c.fake.Requests()[asked:] {
		if slices.Contains(names, strings.TrimPrefix(request, "GET /")) {
			c.t.Errorf("I10 upstream was asked for what was purged: %s", request)
		}
	}
}
