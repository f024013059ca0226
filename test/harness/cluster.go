package harness

import (
	"crypto/rand"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/ringmod/ringmod/ring"
)

// Spec describes a member of a Cluster.
type Spec struct {
	Name   string // node id
	Region string // "": the default one
	Zone   string
	Host   Host     // nil: this machine, on loopback
	Flags  []string // beyond those of the cluster, and over them
	Env    []string // on top of the environment of the test
	// ViewFrom are gRPC addresses of nodes that a gateway learns the members from.
	// nil: by gossip.
	ViewFrom []string
}

// Cluster is a number of nodes and gateways that a test has started, each a
// process. Its methods may be called by several goroutines, those of one
// member by one at a time.
type Cluster struct {
	t     testing.TB
	label string
	dir   string
	spec  ring.Spec
	flags []string

	mu      sync.Mutex
	members map[string]*clusterMember
	order   []string    // names as they were started first
	placed  *ring.Table // by the nodes of members; nil: to be made
}

type clusterMember struct {
	spec    Spec
	command string
	process *Process
	out     bool // is not expected back
}

// NewCluster returns a cluster without members, of a name that no other has.
// Flags are given to all members, --sumdb off unless it is among them. Objects have
// two copies in each region.
func NewCluster(t testing.TB, flags ...string) *Cluster {
	t.Helper()
	if !slices.Contains(flags, "--sumdb") {
		flags = slices.Concat([]string{"--sumdb", "off"}, flags)
	}
	return &Cluster{
		t: t, label: "test-" + rand.Text(), dir: t.TempDir(), spec: ring.DefaultSpec(),
		flags:   slices.Concat([]string{"--insecure", "--log-level", "info"}, flags),
		members: make(map[string]*clusterMember),
	}
}

// StartNode starts a node that joins the members which run. Its objects are in
// DataDir.
func (c *Cluster) StartNode(s Spec) *Process {
	c.t.Helper()
	return c.start(&clusterMember{spec: s, command: "node"})
}

// StartGateway starts a gateway that joins the members which run.
func (c *Cluster) StartGateway(s Spec) *Process {
	c.t.Helper()
	return c.start(&clusterMember{spec: s, command: "gateway"})
}

// Restart starts a member again that has ended: with the same data, on other
// ports.
func (c *Cluster) Restart(name string) *Process {
	c.t.Helper()
	c.mu.Lock()
	m := *c.members[name]
	c.mu.Unlock()
	return c.start(&m)
}

func (c *Cluster) start(m *clusterMember) *Process {
	c.t.Helper()
	p := start(c.t, m.spec.Name, m.spec.Host, m.spec.Env, c.args(m))
	m.process = p
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.members[m.spec.Name]; !known {
		c.order = append(c.order, m.spec.Name)
		c.placed = nil
	}
	c.members[m.spec.Name] = m
	return p
}

// Remove says that a node has left, or will not come back: it has no rank any more.
func (c *Cluster) Remove(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members[name].out = true
	c.placed = nil
}

// args is the command line of a member.
func (c *Cluster) args(m *clusterMember) []string {
	ip := "127.0.0.1"
	if m.spec.Host != nil {
		ip = m.spec.Host.IP().String()
	}
	args := []string{m.command, "--cluster", c.label, "--node-id", m.spec.Name, "--admin-addr", ip + ":0"}
	if m.command == "node" {
		args = append(args, "--grpc-addr", ip+":0", "--data-dir", c.DataDir(m.spec.Name))
	} else {
		args = append(args, "--http-addr", ip+":0")
	}
	if m.spec.Region != "" {
		args = append(args, "--region", m.spec.Region)
	}
	if m.spec.Zone != "" {
		args = append(args, "--zone", m.spec.Zone)
	}
	for _, node := range m.spec.ViewFrom {
		args = append(args, "--view-from", node)
	}
	if m.spec.ViewFrom == nil {
		args = append(args, "--gossip-addr", ip+":0")
		args = append(args, c.seeds(m)...)
	}
	return slices.Concat(args, c.flags, m.spec.Flags)
}

// seeds are the flags that lead a member to those that run.
func (c *Cluster) seeds(m *clusterMember) []string {
	var flags []string
	for _, p := range c.Running() {
		if p.Name != m.spec.Name && p.Gossip != "" {
			flags = append(flags, "--join", p.Gossip)
		}
	}
	return flags
}

// DataDir is the folder of the node of this name, started or not.
func (c *Cluster) DataDir(name string) string { return filepath.Join(c.dir, name) }

// Member returns the process of this name that was started last.
func (c *Cluster) Member(name string) *Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.members[name].process
}

// Running returns the members that have not ended, in the order of their first
// start. Frozen ones run.
func (c *Cluster) Running() []*Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*Process
	for _, name := range c.order {
		if p := c.members[name].process; p.Running() {
			all = append(all, p)
		}
	}
	return all
}
