package direct

import (
	"cmp"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// sweepEvery is how often the size of what the go command keeps is looked at.
const sweepEvery = 10 * time.Minute

// sweepSometimes keeps the clones below the limit. Where it removes any, it waits
// for the commands that run, and others for it. The caller has a place.
func (d *Direct) sweepSometimes(ctx context.Context) {
	d.mu.Lock()
	due := time.Since(d.swept) > sweepEvery
	if due {
		d.swept = time.Now()
	}
	d.mu.Unlock()
	if due {
		go d.sweep(context.WithoutCancel(ctx))
	}
}

// kept is a clone, or all files of a module.
type kept struct {
	path    string
	size    int64
	written time.Time
}

// sweep removes what was not written to for the longest time until the rest takes less
// than seven eighths of the limit.
func (d *Direct) sweep(ctx context.Context) {
	all, total := d.keeps()
	if total <= d.cfg.Keep {
		return
	}
	for range cap(d.places) {
		d.places <- struct{}{}
	}
	defer func() {
		for range cap(d.places) {
			<-d.places
		}
	}()
	slices.SortFunc(all, func(a, b kept) int { return cmp.Or(a.written.Compare(b.written), strings.Compare(a.path, b.path)) })
	for _, k := range all {
		if total <= d.cfg.Keep/8*7 {
			break
		}
		if err := os.RemoveAll(k.path); err != nil {
			d.log.WarnContext(ctx, "cannot remove an old clone", "err", err)
			continue
		}
		total -= k.size
		d.log.InfoContext(ctx, "removed a clone that had nothing new for long", "bytes", k.size, "age_s", int64(time.Since(k.written).Seconds()))
	}
}

// keeps returns the clones (mod/cache/vcs/<hash> and what is beside them) and the
// go.mod and .info files of hosts, with the time at which each was written to last.
func (d *Direct) keeps() (all []kept, total int64) {
	for _, dir := range []string{filepath.Join(d.modCache(), "cache", "vcs"), filepath.Join(d.modCache(), "cache", "download")} {
		entries, _ := os.ReadDir(dir) // not there: nothing is kept
		for _, e := range entries {
			if e.IsDir() {
				k := measure(filepath.Join(dir, e.Name()))
				all = append(all, k)
				total += k.size
			}
		}
	}
	return all, total
}

// measure adds up a folder.
func measure(path string) kept {
	k := kept{path: path}
	_ = filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what has just gone takes no room
		}
		if info, err := e.Info(); err == nil && !e.IsDir() {
			k.size += info.Size()
			if info.ModTime().After(k.written) {
				k.written = info.ModTime()
			}
		}
		return nil
	})
	return k
}
