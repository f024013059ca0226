package scrub_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node/scrub"
	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// TestRepair loses an object to a reader, in each situation of the region.
func TestRepair(t *testing.T) {
	t.Parallel()
	const object = "example.com/m001/@v/v1.0.0.zip"
	good, other := []byte("good"), []byte("another")
	for _, tt := range []struct {
		name      string
		confirmed map[string]bool
		peers     map[string][]byte
		upstream  []byte
		want      []byte
		fetches   bool
	}{
		{name: "another node has it", peers: map[string][]byte{"n3": good}, upstream: good, want: good},
		{name: "one of two has it", peers: map[string][]byte{"n2": other, "n3": good}, upstream: other, want: good},
		{name: "only upstream has it", upstream: good, want: good, fetches: true},
		{name: "upstream has other bytes", upstream: other, fetches: true},
		{name: "nobody has it", fetches: true},
		{name: "a node has other bytes", peers: map[string][]byte{"n2": other}, upstream: good, want: other},
		{
			name: "a node has other bytes that are wrong", peers: map[string][]byte{"n2": other}, confirmed: map[string]bool{hash(good): true},
			upstream: good, want: good, fetches: true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.confirmed = tt.confirmed
				_ = w.disk.put(object, good, store.Proof{H1: hash(good)})
				for node, data := range tt.peers {
					w.hold(node, object, data)
				}
				w.upstream = map[string][]byte{}
				if tt.upstream != nil {
					w.upstream[object] = tt.upstream
				}
				w.run(nil)
				w.disk.lose(object, true)
				soon()
				w.wantHeld(object, tt.want)
				if got := len(w.requests()) > 0; got != tt.fetches {
					t.Errorf("upstream asked: %v, want %v", got, tt.fetches)
				}
			})
		})
	}
}

// TestRepairOnAFullDisk says why nothing is repaired, asks nobody in vain, and makes up for
// it when there is room.
func TestRepairOnAFullDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_ = w.disk.put(name(1), []byte("good"), store.Proof{})
		w.disk.rot(name(1))
		w.upstream = map[string][]byte{name(1): []byte("good")}
		w.disk.fails(errors.New("no space left"))
		s := w.run(nil)
		time.Sleep(time.Second)
		var found []scrub.Finding
		_ = s.ScrubNow(t.Context(), 0, true, func(p scrub.Progress) error { found = append(found, p.Findings...); return nil })
		if len(found) != 1 || found[0].Repaired || !strings.Contains(found[0].Text, "no space left") || len(w.requests()) > 0 {
			t.Errorf("found %v, asked upstream for %v", found, w.requests())
		}
		w.disk.fails(nil)
		soon()
		soon()
		w.wantHeld(name(1), []byte("good"))
	})
}

// TestLostIsTriedAgain repairs at last what nobody had, and gives up after 30 days.
func TestLostIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range 2 {
			_ = w.disk.put(name(i), []byte("good"), store.Proof{})
		}
		w.run(nil)
		w.disk.lose(name(0), true)
		w.disk.lose(name(1), true)
		time.Sleep(2 * day)
		if n := len(w.requests()); n < 20 || n > 60 {
			t.Errorf("%d attempts in two days", n)
		}
		w.hold("n2", name(0), []byte("good"))
		time.Sleep(7 * time.Hour)
		synctest.Wait()
		w.wantHeld(name(0), []byte("good"))
		time.Sleep(30 * day)
		if _, err := w.disk.Lost(name(1)); err == nil {
			t.Error("what nobody has is looked for after 30 days")
		}
	})
}

// TestConflict lets another node hold other bytes.
func TestConflict(t *testing.T) {
	t.Parallel()
	const object = "example.com/m001/@v/v1.0.0.zip"
	ours, theirs := []byte("ours"), []byte("theirs")
	alike := []byte("ours, packed in another way")
	for _, tt := range []struct {
		name      string
		confirmed map[string]bool
		database  error
		theirs    []byte
		age       time.Duration // of theirs; ours is an hour old
		want      string
	}{
		{name: "ours is confirmed", confirmed: map[string]bool{hash(ours): true}, age: 2 * time.Hour, want: "kept"},
		{name: "theirs is confirmed", confirmed: map[string]bool{hash(theirs): true}, age: time.Minute, want: "replaced"},
		{name: "both are, theirs is older", confirmed: map[string]bool{hash(ours): true}, theirs: alike, age: 2 * time.Hour, want: "replaced"},
		{name: "nobody knows, ours is older", age: 30 * time.Minute, want: "kept"},
		{name: "nobody knows, theirs is older", age: 90 * time.Minute, want: "replaced"},
		{name: "the database is away", database: &cache.Error{Reason: cache.Broken}, age: 2 * time.Hour, want: "undecided"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w, reg := newWorld(t), prometheus.NewRegistry()
				w.confirmed, w.database = tt.confirmed, tt.database
				_ = w.disk.put(object, ours, store.Proof{H1: hash(ours)})
				data := theirs
				if tt.theirs != nil {
					data = tt.theirs
				}
				w.hold("n2", object, data)
				s := w.run(reg)
				time.Sleep(time.Hour)
				sum := sha256.Sum256(data)
				for range 3 { // it is heard of more than once
					s.Conflict(parse(t, object), "n2", &ringmodv1.Copy{Target: object, Sha256: sum[:], H1: hash(data), StoredAge: durationpb.New(tt.age)})
				}
				soon()
				if got := counted(t, reg, "ringmod_scrub_conflicts_total", tt.want); got != 1 {
					t.Errorf("%v conflicts %s, want 1", got, tt.want)
				}
				if tt.want == "replaced" {
					w.wantHeld(object, data)
					if !bytes.Equal(w.disk.aside[object], ours) {
						t.Error("the replaced copy is not in quarantine")
					}
				} else {
					w.wantHeld(object, ours)
				}
				if told := len(w.announced) == 1 && w.announced[0] == "n2 "+object; told != (tt.want == "kept") {
					t.Errorf("announced %q", w.announced)
				}
			})
		})
	}
}

// TestConflictsAreBounded floods a scrubber.
func TestConflictsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.disk.atOnce = 2 // of a conflict and of a suspect, one each
		s := w.run(nil)
		for i := range 5000 {
			s.Conflict(parse(t, name(i)), "n2", &ringmodv1.Copy{Target: name(i), Sha256: make([]byte, 32)})
			s.Conflict(parse(t, name(i)), "n2", &ringmodv1.Copy{Target: name(i), Sha256: make([]byte, 5)})
			s.Suspect(name(i))
		}
		soon()
	})
}
