package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// sickDisk is dead for as long as it is told to be.
type sickDisk struct {
	changes chan error
	dead    error
}

func (d *sickDisk) Dead() error { return d.dead }

func (d *sickDisk) WatchHealth(ctx context.Context, tell func(readOnly, dead error)) {
	for ctx.Err() == nil {
		tell(d.dead, d.dead)
		select {
		case d.dead = <-d.changes:
		case <-ctx.Done():
		}
	}
}

// TestProcessEndsWithItsDisk lets a disk die, come back in time, and die for good.
func TestProcessEndsWithItsDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &sickDisk{changes: make(chan error)}
		var told []bool
		done := make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { done <- watchDisk(ctx, d, func(_, dead bool) { told = append(told, dead) }) }()
		cause := errors.New("input/output error")
		for range 3 {
			d.changes <- cause
			time.Sleep(outAfter - time.Second)
			d.changes <- nil
			time.Sleep(time.Hour)
		}
		d.changes <- cause
		began := time.Now()
		err := <-done
		if err == nil || !strings.Contains(err.Error(), "input/output error, for 10m") || time.Since(began) != outAfter {
			t.Errorf("%v after %v, want an end after %v", err, time.Since(began), outAfter)
		}
		if want := []bool{false, true, false, true, false, true, false, true}; !slices.Equal(told, want) {
			t.Errorf("told %v, want %v", told, want)
		}
	})
}

func TestWatchingADiskEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		d := &sickDisk{changes: make(chan error), dead: errors.New("dead")}
		done := make(chan error)
		go func() { done <- watchDisk(ctx, d, func(bool, bool) {}) }()
		time.Sleep(time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("a stop: %v", err)
		}
	})
}
