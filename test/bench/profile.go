package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
)

// profiled wraps f, a run of about t.time: where -profile asks for it, what the
// processes of our own side spend their time on meanwhile is written down.
func (t *troupe) profiled(ctx context.Context, s side, f func() error) func() error {
	if t.profile == "" || s.name != clusterPair {
		return f
	}
	return func() error {
		group, ctx := errgroup.WithContext(ctx)
		group.Go(f)
		for _, p := range []*process{s.proc, s.node} {
			group.Go(func() error { return t.saveProfile(ctx, p) })
		}
		return group.Wait()
	}
}

// saveProfile asks p for a CPU profile of a run's whole seconds.
func (t *troupe) saveProfile(ctx context.Context, p *process) error {
	text, err := fetch(ctx, p.ready["admin"], fmt.Sprintf("/debug/pprof/profile?seconds=%d", t.time/time.Second))
	if err != nil {
		return fmt.Errorf("profiling: %w", err)
	}
	f, err := os.CreateTemp(t.profiles(), "*.pprof")
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(text)
	return err
}

func (t *troupe) profiles() string { return filepath.Join(t.dir, "profiles") }

// mergeProfiles makes one profile of all, in the file that -profile names.
func (t *troupe) mergeProfiles(ctx context.Context) error {
	files, err := filepath.Glob(filepath.Join(t.profiles(), "*.pprof"))
	if err != nil || t.profile == "" {
		return err
	}
	merge := exec.CommandContext(ctx, "go", append([]string{"tool", "pprof", "-proto"}, files...)...)
	merged, err := merge.Output()
	if err != nil {
		return fmt.Errorf("merging profiles: %w", err)
	}
	return os.WriteFile(t.profile, merged, 0o644)
}
