package harness

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	// convergence is how long members may take to agree.
	convergence = 60 * time.Second
	// pollPause is the time between two looks at what should happen.
	pollPause = 20 * time.Millisecond
	// pollLimit is how long one look may take: a frozen process answers nothing.
	pollLimit = 5 * time.Second
)

// view is the cluster as one member sees it.
type view struct {
	digest string
	in, up int // nodes, the member itself included
	moving int // that join or leave, by the placement in use
}

func (p *Process) view() (view, error) {
	var v view
	body, err := p.admin("/metrics", pollLimit)
	if err != nil {
		return v, fmt.Errorf("asking %s: %w", p.Name, err)
	}
	for line := range strings.Lines(body) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, _ := strconv.Atoi(value)
		switch {
		case strings.HasPrefix(name, "ringmod_view{"):
			v.digest = name
		case name == "ringmod_view_moving_nodes":
			v.moving = n
		case !strings.Contains(name, `role="node"`), strings.Contains(name, `state="left"`), strings.Contains(name, `state="forgotten"`):
		case strings.HasPrefix(name, "ringmod_members{"):
			v.in += n
		case strings.HasPrefix(name, "ringmod_members_up{"):
			v.up += n
		}
	}
	return v, nil
}

// Knows returns an error unless the process sees so many nodes up and so many in
// the cluster, itself included.
func (p *Process) Knows(up, in int) error {
	v, err := p.view()
	if err == nil && (v.up != up || v.in != in) {
		err = fmt.Errorf("%s sees %d nodes up and %d in, want %d and %d", p.Name, v.up, v.in, up, in)
	}
	return err
}

// WaitReady waits until the process says that a roll-out may go on, and returns how
// long that took.
func (p *Process) WaitReady(within time.Duration) time.Duration {
	p.t.Helper()
	start := time.Now()
	for {
		_, err := p.admin("/readyz", pollLimit)
		if err == nil {
			return time.Since(start)
		}
		if time.Since(start) > within {
			p.t.Fatalf("%s was not ready within %v: %v", p.Name, within, err)
		}
		time.Sleep(pollPause)
	}
}

// WaitConverged waits until all members that run see all nodes that run up and
// place objects alike, and nobody joins or leaves.
func (c *Cluster) WaitConverged() {
	c.t.Helper()
	nodes := 0
	for _, p := range c.Running() {
		if p.GRPC != "" {
			nodes++
		}
	}
	digest := ""
	c.Eventually(convergence, "all members to agree", func(p *Process) error {
		v, err := p.view()
		switch {
		case err != nil:
			return err
		case v.up != nodes || v.in < nodes:
			return fmt.Errorf("%s sees %d nodes up and %d in, %d run", p.Name, v.up, v.in, nodes)
		case v.moving > 0:
			return fmt.Errorf("%s sees %d nodes that join or leave", p.Name, v.moving)
		case v.digest != digest:
			was := digest
			digest = v.digest
			return fmt.Errorf("%s has the view %q, the one before %q", p.Name, v.digest, was)
		}
		return nil
	})
}

// Eventually waits until check is content with all members that run, one after
// the other.
func (c *Cluster) Eventually(within time.Duration, what string, check func(*Process) error) {
	c.t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := c.check(check)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("waited %v for %s: %v", within, what, err)
		}
		time.Sleep(pollPause)
	}
}

func (c *Cluster) check(each func(*Process) error) error {
	for _, p := range c.Running() {
		if err := each(p); err != nil {
			return err
		}
	}
	return nil
}
