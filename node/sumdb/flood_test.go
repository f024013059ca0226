package sumdb_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/cache"
)

func TestPanicIsAnError(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.remote.set(func(string, []byte, error) ([]byte, error) { panic("a parser's") })
	if _, err := r.Lookup(t.Context(), mod(1)); err == nil || cache.ReasonOf(err) != cache.Internal {
		t.Errorf("got %v, want an internal error", err)
	}
}

// TestFloodOfNames has callers come with made-up names and leave at once, while
// the database answers nobody.
func TestFloodOfNames(t *testing.T) {
	t.Parallel()
	const most = 4096
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		gate := make(chan struct{})
		r.remote.set(func(_ string, data []byte, err error) ([]byte, error) { <-gate; return data, err })
		left, leave := context.WithCancel(t.Context())
		leave()
		for i := range most {
			_, _ = r.Lookup(left, module.Version{Path: fmt.Sprintf("example.com/flood%d", i), Version: "v1.0.0"})
		}
		synctest.Wait()
		start := time.Now()
		_, err := r.Lookup(t.Context(), mod(1))
		if took := time.Since(start); cache.ReasonOf(err) != cache.Busy || took > 0 {
			t.Errorf("got %v after %v, want %v at once while %d others wait", err, took, cache.Busy, most)
		}
		close(gate)
		synctest.Wait()
		if _, err := r.Lookup(t.Context(), mod(1)); err != nil {
			t.Errorf("got %v when the flood is over, want the record", err)
		}
	})
}
