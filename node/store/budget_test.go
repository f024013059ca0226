package store

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// fakeDisk is what a budget sees of a disk.
type fakeDisk struct {
	held  int64
	space space
	woken int
}

func (f *fakeDisk) budget(limit Limit) *budget {
	return newBudget(limit, func() int64 { return f.held }, func() (space, error) { return f.space, nil }, func() { f.woken++ })
}

func TestShareCountsOthers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name               string
		held, others, free int64
		capacity, excess   int64
	}{
		{"alone", 500, 0, 500, 900, 0},
		{"above the mark", 850, 0, 150, 900, 85},
		{"beside others", 100, 500, 400, 450, 0},
		{"others grow", 450, 500, 50, 450, 68},
		{"others have nearly all", 0, 950, 50, 45, 0},
		{"others want the last of it", 100, 900, 0, 90, 24},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := &fakeDisk{held: test.held, space: space{used: test.held + test.others, free: test.free}}
			b := f.budget(Limit{Percent: 90})
			if got := b.capacity(); got != test.capacity {
				t.Errorf("capacity %d, want %d", got, test.capacity)
			}
			if got := b.excess(); got != test.excess {
				t.Errorf("excess %d, want %d", got, test.excess)
			}
			if err := b.reserve(max(1, test.capacity+1)); !errors.Is(err, ErrFull) {
				t.Errorf("reserving beyond: %v, want %v", err, ErrFull)
			}
		})
	}
}

// What is reserved and written is the file system's already: it must not be taken for
// others'.
func TestWhatIsWrittenIsNotOthers(t *testing.T) {
	t.Parallel()
	f := &fakeDisk{held: 100, space: space{used: 100, free: 900}}
	b := f.budget(Limit{Percent: 50})
	if err := b.reserve(300); err != nil {
		t.Fatal(err)
	}
	f.space = space{used: 300, free: 700}
	b.wrote(200)
	if got := b.capacity(); got != 500 {
		t.Errorf("capacity %d, want 500", got)
	}
	b.release(300, 200)
	if taken, reserved := b.taken(); taken != 100 || reserved != 0 {
		t.Errorf("%d taken, %d reserved at the end, want 100 and 0", taken, reserved)
	}
}

func TestReserveWaitsForRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fakeDisk{held: 900}
		b := f.budget(Limit{Bytes: 1000})
		time.AfterFunc(time.Second, func() {
			b.mu.Lock()
			f.held = 500
			b.mu.Unlock()
			b.evicted(true)
		})
		began := time.Now()
		if err := b.reserve(200); err != nil || time.Since(began) != time.Second {
			t.Errorf("got %v after %v, want room after 1 s", err, time.Since(began))
		}
		if f.woken == 0 {
			t.Error("nobody was told to evict")
		}

		began = time.Now() // somebody else holds what is left and keeps it
		if err := b.reserve(400); !errors.Is(err, ErrFull) || time.Since(began) != roomWait {
			t.Errorf("got %v after %v, want %v after %v", err, time.Since(began), ErrFull, roomWait)
		}
		if b.wanted != 0 {
			t.Errorf("%d bytes are still wanted", b.wanted)
		}

		b.release(200, 0)
		time.AfterFunc(time.Second, func() { b.evicted(false) })
		began = time.Now() // nothing is left that could go
		if err := b.reserve(600); !errors.Is(err, ErrFull) || time.Since(began) != time.Second {
			t.Errorf("got %v after %v, want %v after 1 s", err, time.Since(began), ErrFull)
		}
		began = time.Now() // it can never fit
		if err := b.reserve(1001); !errors.Is(err, ErrFull) || time.Since(began) != 0 {
			t.Errorf("got %v after %v, want %v at once", err, time.Since(began), ErrFull)
		}
	})
}

// A writer that waits for another one, while nothing can be evicted, has eviction
// tried once and again when the other is done.
func TestReserveDoesNotSpin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var b *budget
		tries := 0
		evict := func() {
			tries++
			go b.evicted(false)
		}
		b = newBudget(Limit{Bytes: 1000}, func() int64 { return 500 }, func() (space, error) { return space{}, nil }, evict)
		if err := b.reserve(300); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, func() { b.release(300, 0) })
		began := time.Now()
		if err := b.reserve(400); err != nil || time.Since(began) != time.Second {
			t.Errorf("got %v after %v, want room after 1 s", err, time.Since(began))
		}
		if tries > 3 {
			t.Errorf("eviction was tried %d times", tries)
		}
	})
}
