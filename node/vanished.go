package node

import (
	"bytes"
	"context"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/sync/errgroup"

	"github.com/ringmod/ringmod/internal/target"
)

const (
	maxVanished  = 256 // versions that are looked for; beyond, they stay
	vanishedOnce = 8   // at once
)

// vanished returns the lines of those versions of an older list that upstream names no
// longer, though a node of the region holds their zips: builds that want them go on, and
// whoever looks for the versions should not be told otherwise. +incompatible ones leave
// lists by the rules, as soon as a version has a go.mod.
func (n *Node) vanished(ctx context.Context, path string, old, now []byte) []byte {
	named := make(map[string]bool)
	for version := range versionsOf(now) {
		named[version] = true
	}
	var gone []string
	for version := range versionsOf(old) {
		if !named[version] && !strings.HasSuffix(version, "+incompatible") {
			named[version] = true
			gone = append(gone, version)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	held := make([]bool, len(gone))
	var looking errgroup.Group
	looking.SetLimit(vanishedOnce)
	for i, version := range gone {
		if i >= maxVanished {
			held[i] = true
			continue
		}
		looking.Go(func() (err error) {
			zip, err := target.ForVersion(module.Version{Path: path, Version: version}, target.Zip)
			if err != nil {
				return nil // an older list may name anything
			}
			defer n.survive(ctx, zip, &err)
			held[i] = n.isHeld(ctx, zip)
			return nil
		})
	}
	_ = looking.Wait() // who panics has found nothing
	var lines bytes.Buffer
	if len(now) > 0 && now[len(now)-1] != '\n' {
		lines.WriteByte('\n')
	}
	kept := 0
	for i, version := range gone {
		if held[i] {
			kept++
			lines.WriteString(version + "\n")
		}
	}
	n.log.InfoContext(ctx, "versions have vanished from upstream's list", "module", path, "versions", len(gone), "held", kept)
	return lines.Bytes()
}

// isHeld tells whether this node or another one of the region has an object on its disk.
func (n *Node) isHeld(ctx context.Context, t target.Target) bool {
	if n.isPurged(t) {
		return false
	}
	if _, err := n.cfg.Store.Stat(t.String()); err == nil {
		return true
	}
	if n.cfg.Peers == nil {
		return false
	}
	obj, err := n.cfg.Peers.Peek(ctx, t)
	if err != nil {
		return false
	}
	_ = obj.Body.Close()
	return true
}

// versionsOf yields the versions that a list names.
func versionsOf(list []byte) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for line := range bytes.Lines(list) {
			if fields := bytes.Fields(line); len(fields) > 0 && !yield(string(fields[0])) {
				return
			}
		}
	}
}
