package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"
)

// An entry whose file is missing looks held to whoever compares copies, so that nobody
// brings it back. It is what a crash leaves between entry and rename, and a disk that
// fails there.

const (
	// recently is how long before the last commit others may have been under way.
	recently = time.Minute
	// maxDoubts bounds the names that wait for the disk to be well; Check finds the rest.
	maxDoubts = 4096
)

// doubts are names whose entry may have no file.
type doubts struct {
	mu    sync.Mutex
	names []string
}

func (q *doubts) add(names ...string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.names = append(q.names, names[:min(len(names), maxDoubts-len(q.names))]...)
}

func (q *doubts) take() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	names := q.names
	q.names = nil
	return names
}

// settles drops the entries that a crash has left without a file, and, each time the disk
// takes things again, those that failing commits have, until ctx ends.
func (d *Disk) settles(ctx context.Context) {
	recent, err := d.recent(ctx)
	if err != nil && ctx.Err() == nil {
		d.logger.WarnContext(ctx, "looking for what a crash has left", "err", err)
	}
	d.doubts.add(recent...)
	for {
		for _, name := range d.doubts.take() {
			if err := d.dropMissing(ctx, name); err != nil {
				d.doubts.add(name)
			}
			if ctx.Err() != nil {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-d.recovered:
		}
	}
}

// recent returns what was committed last.
func (d *Disk) recent(ctx context.Context) (names []string, err error) {
	var last time.Time
	var all []Entry
	tooOld := func(e Entry) bool { return last.Sub(e.Stored) > recently }
	err = d.Walk(ctx, "", func(e Entry) bool {
		if e.Stored.After(last) {
			last = e.Stored
			all = slices.DeleteFunc(all, tooOld)
		}
		if !tooOld(e) {
			all = append(all, e)
		}
		return true
	})
	if err != nil { // what was committed last may not have been seen
		return nil, err
	}
	for _, e := range all {
		names = append(names, e.Name)
	}
	return names, nil
}

// dropMissing drops the entry of name if there is no file.
func (d *Disk) dropMissing(ctx context.Context, name string) error {
	path, release, err := d.lockPath(ctx, "open", name)
	if err != nil {
		return err
	}
	defer release()
	switch _, err := os.Lstat(path); {
	case err == nil:
		return nil
	case !absent(err):
		return err
	}
	if err := d.dropEntry(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
