package sumdb_test

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

// remoteFunc is a way to a database that is a function.
type remoteFunc func(ctx context.Context, t target.Target) ([]byte, error)

func (f remoteFunc) Fetch(ctx context.Context, t target.Target) ([]byte, error) { return f(ctx, t) }

// What members answer is proven as if it came from the database, and only their
// "no" is believed.
func TestLookupAsksMembersFirst(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		members func(db *database, rest string) ([]byte, error)
		lookups int // of the database
		reason  cache.Reason
	}{
		{"good", func(db *database, rest string) ([]byte, error) { return db.get(rest) }, 0, 0},
		{"of another module", func(db *database, _ string) ([]byte, error) { return db.get("lookup/example.com/m1@v1.0.0") }, 1, 0},
		{"garbage", func(*database, string) ([]byte, error) { return []byte("<html>"), nil }, 1, 0},
		{"forged", func(db *database, rest string) ([]byte, error) {
			data, err := db.get(rest)
			return bytes.Replace(data, []byte("h1:zip"), []byte("h1:evil"), 1), err
		}, 1, 0},
		{"away", func(*database, string) ([]byte, error) { return nil, &cache.Error{Reason: cache.NotCached} }, 1, 0},
		{"broken", func(*database, string) ([]byte, error) { return nil, &cache.Error{Reason: cache.Broken} }, 1, 0},
		{"absent", func(*database, string) ([]byte, error) { return nil, &cache.Error{Reason: cache.NotFound} }, 0, cache.NotFound},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.db.grow(t, 0, 3)
			r.members = remoteFunc(func(_ context.Context, t target.Target) ([]byte, error) { return test.members(r.db, t.Rest) })
			r.restart()
			got, err := r.Lookup(t.Context(), mod(0))
			want, _ := r.db.get("lookup/example.com/m0@v1.0.0")
			if test.reason != 0 {
				if cache.ReasonOf(err) != test.reason {
					t.Errorf("got %v, want reason %v", err, test.reason)
				}
			} else if err != nil || string(got) != string(want) {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
			if got := r.remote.requests("lookup/"); got != test.lookups {
				t.Errorf("%d lookups, want %d", got, test.lookups)
			}
		})
	}
}

// Two members that ask each other at the same time do not wait for each other,
// and neither asks the database twice.
func TestMembersDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := newRig(t), newRig(t)
		b.db = a.db
		a.members = remoteFunc(func(ctx context.Context, _ target.Target) ([]byte, error) { return b.LookupDirect(ctx, mod(0)) })
		b.members = remoteFunc(func(ctx context.Context, _ target.Target) ([]byte, error) { return a.LookupDirect(ctx, mod(0)) })
		for _, r := range []*rig{a, b} {
			r.db.grow(t, 0, 3)
			r.remote.db = a.db
			r.remote.set(func(_ string, data []byte, err error) ([]byte, error) {
				time.Sleep(time.Second)
				return data, err
			})
			r.restart()
		}
		start := time.Now()
		var callers sync.WaitGroup
		for range 4 {
			for _, lookup := range []func(context.Context, module.Version) ([]byte, error){a.Lookup, b.Lookup, a.LookupDirect} {
				callers.Go(func() {
					if _, err := lookup(t.Context(), mod(0)); err != nil {
						t.Error(err)
					}
				})
			}
		}
		callers.Wait()
		if d := time.Since(start); d > 15*time.Second {
			t.Errorf("took %v", d)
		}
		for _, r := range []*rig{a, b} {
			if got := r.remote.requests("lookup/"); got != 1 {
				t.Errorf("%d lookups, want 1", got)
			}
		}
	})
}
