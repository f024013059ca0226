package sumdb_test

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
)

func TestLatest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.remote.set(down)
		_, err := r.Latest(t.Context())
		checkReason(t, "down from the start", err, cache.Broken)
		r.remote.set(nil)
		time.Sleep(time.Second)
		var old []byte
		for minute, size := range []int{10, 300, 5000} {
			r.db.grow(t, 0, size)
			asked := r.remote.requests("latest")
			want, _ := r.db.get("latest")
			for range 3 {
				got, err := r.Latest(t.Context())
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("minute %d: Latest = %q, %v, want %q", minute, got, err, want)
				}
				time.Sleep(19 * time.Second)
			}
			if got := r.remote.requests("latest") - asked; got != 1 {
				t.Errorf("minute %d: %d requests, want 1", minute, got)
			}
			time.Sleep(4 * time.Second)
			if minute == 0 {
				old = want
			}
		}
		newest := r.heads.msgs[dbName]
		r.remote.set(func(rest string, data []byte, err error) ([]byte, error) {
			if rest == "latest" {
				return old, nil
			}
			return data, err
		})
		if got, err := r.Latest(t.Context()); err != nil || !bytes.Equal(got, newest) {
			t.Errorf("older head at the remote: Latest = %q, %v, want the newest", got, err)
		}
		time.Sleep(time.Hour)
		r.remote.set(down)
		r.restart()
		if got, err := r.Latest(t.Context()); err != nil || !bytes.Equal(got, newest) {
			t.Errorf("remote down: Latest = %q, %v, want the newest", got, err)
		}
	})
}
