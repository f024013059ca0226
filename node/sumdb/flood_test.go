package sumdb_test

import (
	"testing"

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
