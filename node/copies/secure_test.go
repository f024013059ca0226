package copies_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/node/copies"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// TestSecure has another replica take a copy, or not.
func TestSecure(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		set    func(*others)
		ok     bool
		alone  bool
		within time.Duration
	}{
		{"it has it", func(*others) {}, true, false, 0},
		{"it gets it when it is waited for", func(o *others) {
			o.answer = func(string) ringmodv1.Outcome {
				if o.told[len(o.told)-1].GetWait() {
					return held
				}
				return wanted
			}
		}, true, false, 0},
		{"it wants it and cannot get it", func(o *others) { o.answer = func(string) ringmodv1.Outcome { return wanted } }, false, false, 0},
		{"it does not want it", func(o *others) { o.answer = func(string) ringmodv1.Outcome { return declined } }, false, false, 0},
		{"it has other bytes", func(o *others) { o.answer = func(string) ringmodv1.Outcome { return conflict } }, false, false, 0},
		{"it is down", func(o *others) { o.down = true }, false, true, 0},
		{"it fails", func(o *others) { o.fails = status.Error(codes.Unavailable, "gone") }, false, false, 0},
		{"it is silent", func(o *others) { o.silent = true }, false, false, 1500 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, viewOf(t, "a1", "a2", "b1"), copies.Config{})
				test.set(r.others)
				r.put(modName(0))
				start := time.Now()
				err := r.Secure(t.Context(), parse(t, modName(0)))
				took := time.Since(start)
				if (err == nil) != test.ok || errors.Is(err, copies.ErrAlone) != test.alone {
					t.Errorf("got %v, want it secured: %t, nobody there: %t", err, test.ok, test.alone)
				}
				if took != test.within {
					t.Errorf("took %v, want %v", took, test.within)
				}
			})
		})
	}
}

// Who has not answered is not waited for again at once, and what was not secured is
// told as ever.
func TestSecureLeavesOutTheMute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, viewOf(t, "a1", "a2", "b1"), copies.Config{})
		r.others.silent = true
		r.put(modName(0))
		if err := r.Secure(t.Context(), parse(t, modName(0))); err == nil || errors.Is(err, copies.ErrAlone) {
			t.Errorf("got %v, want its silence", err)
		}
		start := time.Now()
		if err := r.Secure(t.Context(), parse(t, modName(0))); !errors.Is(err, copies.ErrAlone) || time.Since(start) > 0 {
			t.Errorf("right after: %v after %v, want %v at once", err, time.Since(start), copies.ErrAlone)
		}
		r.others.mu.Lock()
		r.others.silent = false
		r.others.mu.Unlock()
		time.Sleep(11 * time.Second)
		if err := r.Secure(t.Context(), parse(t, modName(0))); err != nil {
			t.Errorf("when it answers again: %v", err)
		}
		time.Sleep(time.Minute)
		if lag := r.Lag(); lag > 0 {
			t.Errorf("it still waits after %v", lag)
		}
	})
}

// What a holder waits for goes before all else, however much that is.
func TestUrgentPullsGoFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, viewOf(t, "a1", "a2", "b1"), copies.Config{Rate: 1 << 10})
		much := &ringmodv1.AnnounceRequest{Holder: "a2"}
		for i := range 100 {
			data := make([]byte, 10<<10)
			r.others.held[modName(i)] = data
			much.Copies = append(much.Copies, copyOf(modName(i), string(data)))
		}
		if _, err := r.announce(t.Context(), much); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		start := time.Now()
		for _, name := range []string{modName(99), modName(1000)} { // one that is queued and one that is new
			r.others.mu.Lock()
			r.others.held[name] = make([]byte, 10<<10)
			r.others.mu.Unlock()
			one := &ringmodv1.AnnounceRequest{Holder: "a2", Wait: true, Copies: []*ringmodv1.Copy{copyOf(name, string(make([]byte, 10<<10)))}}
			resp, err := r.announce(t.Context(), one)
			if err != nil || resp.GetOutcomes()[0] != held {
				t.Errorf("%s: %v, %v, want it held", name, resp, err)
			}
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("took %v while 1 MiB waited for a rate of 1 KiB/s", took)
		}
		time.Sleep(time.Hour)
		if asked := r.asked(); asked != 101 {
			t.Errorf("%d pulls, want each object once: 101", asked)
		}
	})
}

// Where no replica takes a copy, a spare rank does.
func TestSecureAtASpareRank(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		set  func(o *others, replica string)
	}{
		{"the replica is down", func(o *others, replica string) { o.downOnly = replica }},
		{"it does not want it", func(o *others, replica string) {
			o.answer = func(string) ringmodv1.Outcome {
				if o.last == replica {
					return declined
				}
				return held
			}
		}},
	} {
		synctest.Test(t, func(t *testing.T) {
			view := viewOf(t, "a1", "a2", "a3")
			name := modName(0)
			for i := 0; !slices.Contains(replicas(t, view, name), "a1"); i++ {
				name = modName(i)
			}
			r := newRig(t, view, copies.Config{})
			for _, id := range replicas(t, view, name) {
				if id != "a1" {
					test.set(r.others, id)
				}
			}
			r.put(name)
			if err := r.Secure(t.Context(), parse(t, name)); err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
		})
	}
}

// A spare rank takes what a holder waits for, and nothing else that is not its own.
func TestSpareRankTakesWhatIsNeeded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		view := viewOf(t, "a1", "a2", "a3", "b1")
		name := modName(0)
		for i := 0; slices.Contains(replicas(t, view, name), "a1"); i++ {
			name = modName(i)
		}
		r := newRig(t, view, copies.Config{})
		r.others.held[name] = []byte("data")
		for _, wait := range []bool{false, true} {
			req := &ringmodv1.AnnounceRequest{Holder: "a2", Wait: wait, Copies: []*ringmodv1.Copy{copyOf(name, "data")}}
			want := map[bool]ringmodv1.Outcome{false: declined, true: held}[wait]
			if resp, err := r.announce(t.Context(), req); err != nil || resp.GetOutcomes()[0] != want {
				t.Errorf("waiting %t: %v, %v, want %v", wait, resp, err, want)
			}
		}
	})
}
