package node_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
)

// TestWritesComeBehindTheBurst wants an object to wait while zips come, but not for
// ever, and to be stored soon after the last of them.
func TestWritesComeBehindTheBurst(t *testing.T) {
	t.Parallel()
	const name = "example.com/m/@v/v1.0.0.mod"
	for _, test := range []struct {
		name     string
		zips     int // one each 300 ms
		min, max time.Duration
	}{
		{"nothing else", 0, 500 * time.Millisecond, 1500 * time.Millisecond},
		{"a burst", 7, 2000 * time.Millisecond, 3500 * time.Millisecond},
		{"no end", 100, 4500 * time.Millisecond, 6000 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				mem := store.NewMem()
				w := node.NewWriteBehind(mem, nil)
				start := time.Now()
				if err := w.Put(t.Context(), name, []byte("module example.com/m\n"), store.Proof{}); err != nil {
					t.Fatal(err)
				}
				waits := true
				for i := 0; waits; i++ {
					if i < test.zips {
						w.Stir()
					}
					time.Sleep(300 * time.Millisecond)
					_, _, waits = w.Pending(name)
				}
				if got := time.Since(start); got < test.min || got > test.max {
					t.Errorf("stored after %v, want %v to %v", got, test.min, test.max)
				}
				if !isStored(t, mem, name) {
					t.Error("not stored")
				}
			})
		})
	}
}
