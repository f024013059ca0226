package ring_test

import (
	"testing"

	"github.com/ringmod/ringmod/ring"
)

func TestStateText(t *testing.T) {
	t.Parallel()
	for s := ring.Joining; s <= ring.Forgotten; s++ {
		text, _ := s.MarshalText()
		var back ring.State
		if err := back.UnmarshalText(text); err != nil || back != s {
			t.Errorf("%s: read as %s, %v", text, back, err)
		}
	}
	for _, text := range []string{"", "unknown", "Active"} {
		if s := ring.Active; s.UnmarshalText([]byte(text)) == nil || s != ring.Active {
			t.Errorf("%q: read as %s", text, s)
		}
	}
}
