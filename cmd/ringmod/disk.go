package main

import (
	"context"
	"fmt"
	"os"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// outAfter is how long a node with a disk that cannot be read waits for it to come back. By
// then the others do without it, and a process that is gone is easier to understand
// than one that answers nothing.
const outAfter = 10 * time.Minute

// disk is what is watched; *store.Disk is one.
type disk interface {
	Dead() error
	WatchHealth(ctx context.Context, tell func(readOnly, dead error))
}

// watchDisk lets the other members know what the disk can do, and ends the process when it
// has been dead for too long. When the disk takes things, there may be some to catch up
// with.
func (a *assembly) watchDisk(d disk, catchUp func()) task {
	a.disk = d
	return func(ctx context.Context) error {
		err := watchDisk(ctx, d, func(readOnly, dead bool) {
			if err := a.own.SetReadOnly(ctx, readOnly); err != nil {
				a.log.ErrorContext(ctx, "members not told of the disk", "err", err)
			}
			if !readOnly {
				catchUp()
			}
			is := healthpb.HealthCheckResponse_SERVING
			if dead {
				a.node.Abandon()
				is = healthpb.HealthCheckResponse_NOT_SERVING
			}
			a.health.SetServingStatus("", is)
		})
		if err != nil { // an orderly stop may hang with the disk
			time.AfterFunc(drainTime+2*fillGrace, func() {
				a.log.ErrorContext(ctx, "ending at once", "err", err)
				os.Exit(1)
			})
		}
		return err
	}
}

// watchDisk calls tell at once and after each change until ctx is done, or returns an error
// when d was dead for outAfter.
func watchDisk(ctx context.Context, d disk, tell func(readOnly, dead bool)) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var limit *time.Timer
	d.WatchHealth(ctx, func(readOnly, dead error) {
		tell(readOnly != nil, dead != nil)
		switch {
		case dead != nil && limit == nil:
			limit = time.AfterFunc(outAfter, func() { end(&deadError{dead}) })
		case dead == nil && limit != nil:
			limit.Stop()
			limit = nil
		}
	})
	if limit != nil {
		limit.Stop()
	}
	if err, ok := context.Cause(ctx).(*deadError); ok { //nolint:errorlint // the cause itself
		return err
	}
	return nil
}

// deadError ends a process.
type deadError struct{ err error }

func (e *deadError) Error() string {
	return fmt.Sprintf("--data-dir: %v, for %v: mend or replace the disk, then start the node again", e.err, outAfter)
}

func (e *deadError) Unwrap() error { return e.err }
