package scrub_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/node/scrub"
	"github.com/ringmod/ringmod/node/store"
)

const day = 24 * time.Hour

// TestEverythingIsReadInTime lets two months pass. Everything is read every 30 days
// and not much more often; a scrub takes a fifth of the disk's time at most.
func TestEverythingIsReadInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range 30 {
			if err := w.disk.put(name(i), bytes.Repeat([]byte{byte(i)}, 3<<20), store.Proof{}); err != nil {
				t.Fatal(err)
			}
		}
		w.run(nil)
		const passed = 65
		var busy time.Duration
		for range passed {
			before := w.disk.work()
			time.Sleep(day)
			busy = max(busy, w.disk.work()-before)
			w.disk.mu.Lock()
			for name := range w.disk.entries {
				if at, ok := w.disk.checked[name]; ok && time.Since(at) > scrub.Period {
					t.Errorf("%s was checked %v ago", name, time.Since(at))
				}
			}
			w.disk.mu.Unlock()
		}
		reads := map[string]int{}
		for _, name := range w.disk.read() {
			reads[name]++
		}
		for i := range 30 {
			if n := reads[name(i)]; n < passed/30 || n > passed/18 {
				t.Errorf("%s was read %d times in %d days", name(i), n, passed)
			}
		}
		if all := 30 * 3 * w.disk.readTime; busy > all*3/4 {
			t.Errorf("one day had reads of %v of %v: what came together is read together", busy, all)
		}
	})
}

// TestScrubRests measures how much of the time a scrub reads.
func TestScrubRests(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		readTime time.Duration // of a MiB
		rate     int64
		least    time.Duration
	}{
		{"as long as it works", 40 * time.Millisecond, 0, 2 * 64 * 40 * time.Millisecond},
		{"a disk that readers keep busy", time.Second, 0, 2 * 64 * time.Second},
		{"a fast disk is held to the rate", time.Millisecond, 16 << 20, 4 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.disk.readTime = tt.readTime
				for i := range 8 {
					_ = w.disk.put(name(i), make([]byte, 8<<20), store.Proof{})
				}
				s := w.run(nil)
				time.Sleep(2 * day)
				began := time.Now()
				if err := s.ScrubNow(t.Context(), tt.rate, false, func(scrub.Progress) error { return nil }); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took < tt.least*95/100 || took > tt.least*115/100 {
					t.Errorf("64 MiB took %v, want about %v", took, tt.least)
				}
			})
		})
	}
}

// TestScrubNowRepairs flips a byte in every other object.
func TestScrubNowRepairs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		reg := prometheus.NewRegistry()
		const count = 20
		for i := range count {
			data := fmt.Appendf(nil, "good %d", i)
			_ = w.disk.put(name(i), data, store.Proof{})
			if i != 4 {
				w.hold([]string{"n2", "n3"}[i%2], name(i), data)
			}
		}
		s := w.run(reg)
		time.Sleep(time.Minute)
		for i := 0; i < count; i += 2 {
			w.disk.rot(name(i))
		}
		var last scrub.Progress
		var findings []scrub.Finding
		report := func(p scrub.Progress) error {
			last = p
			findings = append(findings, p.Findings...)
			return nil
		}
		if err := s.ScrubNow(t.Context(), 0, true, report); err != nil {
			t.Fatal(err)
		}
		if last.Objects != count || last.TotalObjects != count || last.Bytes != last.TotalBytes || len(findings) != count/2 {
			t.Errorf("%+v, %d findings, want all of %d and %d", last, len(findings), count, count/2)
		}
		for _, f := range findings {
			if want := f.Name != name(4); f.Repaired != want || !strings.Contains(f.Text, "wrong checksum") {
				t.Errorf("%+v, want repaired %v", f, want)
			}
		}
		for i := range count {
			if i != 4 {
				w.wantHeld(name(i), fmt.Appendf(nil, "good %d", i))
			}
		}
		if !slices.Equal(w.requests(), []string{name(4)}) {
			t.Errorf("upstream was asked for %q, want only what no node has", w.requests())
		}
		for want, labels := range map[float64]string{9: "peer", 1: "failed"} {
			if got := counted(t, reg, "ringmod_scrub_repairs_total", labels); got != want {
				t.Errorf("%v repairs from %s, want %v", got, labels, want)
			}
		}
		if got := counted(t, reg, "ringmod_scrub_objects_total", "bad"); got != count/2 {
			t.Errorf("%v bad objects are counted", got)
		}
		n := len(w.disk.read())
		if err := s.ScrubNow(t.Context(), 0, false, report); err != nil || len(w.disk.read()) != n {
			t.Errorf("%v, %d objects read again that were checked a moment ago", err, len(w.disk.read())-n)
		}
	})
}

// counted returns the counter with that value of its label.
func counted(t *testing.T, reg *prometheus.Registry, name, label string) float64 {
	t.Helper()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range all {
		for _, m := range family.GetMetric() {
			if family.GetName() == name && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

var errLeft = errors.New("the caller has left")

func TestScrubNowEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range 10 {
			_ = w.disk.put(name(i), make([]byte, 1<<20), store.Proof{})
		}
		w.disk.readTime = time.Second
		s := w.run(nil)
		time.Sleep(time.Second)
		if err := s.ScrubNow(t.Context(), 0, true, func(scrub.Progress) error { return errLeft }); !errors.Is(err, errLeft) {
			t.Errorf("a caller that leaves: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := s.ScrubNow(ctx, 0, true, func(scrub.Progress) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a context that ends: %v", err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.ScrubNow(ctx, 0, true, func(scrub.Progress) error { return nil }) }()
		time.Sleep(time.Second)
		if err := s.ScrubNow(t.Context(), 0, true, func(scrub.Progress) error { return nil }); !errors.Is(err, scrub.ErrBusy) {
			t.Errorf("a second one: %v, want %v", err, scrub.ErrBusy)
		}
		cancel()
		<-done
	})
}

// TestScrubNowSaysWhatItCouldNotCheck has more objects than are chosen at a time, and a
// disk that takes no notes.
func TestScrubNowSaysWhatItCouldNotCheck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range 4100 {
			_ = w.disk.put(name(i), []byte("x"), store.Proof{})
		}
		w.disk.fails(errors.New("disk full"))
		s := w.run(nil)
		time.Sleep(time.Second)
		err := s.ScrubNow(t.Context(), 0, true, func(scrub.Progress) error { return nil })
		if err == nil || !strings.Contains(err.Error(), "disk full") {
			t.Errorf("a scrub that is not complete: %v", err)
		}
		w.disk.fails(nil, name(1))
		var last scrub.Progress
		err = s.ScrubNow(t.Context(), 0, true, func(p scrub.Progress) error { last = p; return nil })
		if err == nil || last.Objects != 4099 {
			t.Errorf("%v after %d objects, want an error for the one that cannot be opened and the others checked", err, last.Objects)
		}
	})
}

// TestUnreadableIsTriedAgain has an object that cannot be opened.
func TestUnreadableIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_ = w.disk.put(name(1), []byte("x"), store.Proof{})
		w.disk.fails(nil, name(1))
		w.run(nil)
		time.Sleep(25 * day)
		if tries := len(w.disk.read()); tries == 0 || tries > 7*24 {
			t.Errorf("%d attempts in 25 days", tries)
		}
	})
}

// TestUnconfirmedHashIsShown lets a file be put into the folder by hand.
func TestUnconfirmedHashIsShown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.confirmed = map[string]bool{hash([]byte("good")): true}
		_ = w.disk.put(name(1), []byte("good"), store.Proof{H1: hash([]byte("good"))})
		_ = w.disk.put(name(2), []byte("evil"), store.Proof{H1: hash([]byte("evil"))})
		_ = w.disk.put(name(3), []byte("past"), store.Proof{H1: hash([]byte("past")), Verified: true})
		s := w.run(nil)
		time.Sleep(time.Second)
		var findings []scrub.Finding
		err := s.ScrubNow(t.Context(), 0, true, func(p scrub.Progress) error { findings = append(findings, p.Findings...); return nil })
		if err != nil || len(findings) != 1 || findings[0].Name != name(2) {
			t.Errorf("%+v, %v, want one finding", findings, err)
		}
		w.wantHeld(name(1), []byte("good"))
		w.wantHeld(name(2), nil)
		w.wantHeld(name(3), []byte("past"))
	})
}

// TestSuspectIsChecked reports an object whose reading has failed.
func TestSuspectIsChecked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_ = w.disk.put(name(1), []byte("good"), store.Proof{})
		w.hold("n2", name(1), []byte("good"))
		s := w.run(nil)
		w.disk.rot(name(1))
		s.Suspect(name(1))
		soon()
		w.wantHeld(name(1), []byte("good"))
	})
}
