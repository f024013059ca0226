package node

import (
	"errors"
	"testing"
)

// TestFlightEndsOnce has a fill go on for a while after it was ended: who looks late learns
// why it was, and not what became of it then.
func TestFlightEndsOnce(t *testing.T) {
	t.Parallel()
	fs := &flights{running: map[flightKey]*flight{}}
	f, _, err := fs.start(t.Context(), "a", true, nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("why")
	f.end(why)
	delete(fs.running, f.flightKey)
	next, started, err := fs.start(t.Context(), "a", true, nil, 1)
	if err != nil || !started {
		t.Fatal("no new flight", err)
	}
	fs.remove(f)
	f.finish(small{data: []byte("late")}, errors.New("too slow"))
	if s := f.state(); !errors.Is(s.err, why) || s.data != nil {
		t.Errorf("got %v, %q, want %v", s.err, s.data, why)
	}
	if fs.join("a", true) != next {
		t.Error("the end of the first flight has taken the second away")
	}
}
