package purge_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node/purge"
	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

const (
	bad  = dir + "v1.0.0.zip"
	good = dir + "v1.1.0.zip"
)

// purged purges a version through one node and returns who has confirmed it and who not.
func purged(t *testing.T, k *keeper, lift bool) (confirmed, unconfirmed string) {
	t.Helper()
	resp, err := k.Purge(t.Context(), names(t, "example.com/m", "v1.0.0"), lift, "because")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(resp.GetConfirmed(), " "), strings.Join(resp.GetUnconfirmed(), " ")
}

func wantHeld(t *testing.T, k *keeper, want ...string) {
	t.Helper()
	if got := k.disk.held(); !slices.Equal(got, want) {
		t.Errorf("%s holds %v, want %v", k.id, got, want)
	}
}

func TestPurgeReachesAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		var all []*keeper
		for _, id := range []string{"a", "b", "c"} {
			all = append(all, w.start(id, newDisk(t, bad, good)))
		}
		time.Sleep(3 * time.Second)
		if confirmed, unconfirmed := purged(t, all[1], false); confirmed != "a b c" || unconfirmed != "" {
			t.Errorf("confirmed by %q, not by %q", confirmed, unconfirmed)
		}
		for _, k := range all {
			wantHeld(t, k, good)
			if err := k.set.Check(bad); cache.ReasonOf(err) != cache.Purged {
				t.Errorf("%s answers %v", k.id, err)
			}
		}
		if x := all[0].Explain(bad); x.GetText() != "because" || x.GetEpoch() != 1 {
			t.Errorf("explained by %v", x)
		}
		if confirmed, _ := purged(t, all[2], true); confirmed != "a b c" {
			t.Errorf("the lift is confirmed by %q", confirmed)
		}
		if all[0].set.Purged(bad) || all[0].Explain(bad) != nil {
			t.Error("it is still purged")
		}
		_, err := all[0].Purge(t.Context(), names(t, "example.com/m", "v1.0.0"), true, "")
		if cache.ReasonOf(err) != cache.Malformed {
			t.Errorf("lifting what is not purged: %v", err)
		}
	})
}

// Whoever is cut off is named after 5 s, keeps its copy, and has neither a moment after it
// can be reached; the other side's purges of the time reach all as well.
func TestPurgeDuringSplit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		a, b, c := w.start("a", newDisk(t, bad, good)), w.start("b", newDisk(t, bad, good)), w.start("c", newDisk(t, bad, good))
		time.Sleep(3 * time.Second)
		w.split(1, "c")
		start := time.Now()
		if confirmed, unconfirmed := purged(t, a, false); confirmed != "a b" || unconfirmed != "c" || time.Since(start) > 6*time.Second {
			t.Errorf("confirmed by %q, not by %q after %v", confirmed, unconfirmed, time.Since(start))
		}
		if _, err := c.Purge(t.Context(), names(t, "example.com/other", ""), false, ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		wantHeld(t, b, good)
		wantHeld(t, c, bad, good)
		w.split(0, "c")
		time.Sleep(2 * time.Second)
		for _, k := range []*keeper{a, b, c} {
			wantHeld(t, k, good)
			if !k.set.Purged("example.com/other/@latest") || k.set.Digest() != a.set.Digest() {
				t.Errorf("%s does not know what all know", k.id)
			}
		}
	})
}

// A node that was away hears of the purge before it may serve, and has it from then on by
// its own file.
func TestReturns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b")
		a, b := w.start("a", newDisk(t, bad)), w.start("b", newDisk(t, bad))
		time.Sleep(2 * time.Second)
		b.stop()
		purged(t, a, false)
		time.Sleep(2 * time.Hour)
		b = w.start("b", b.disk)
		if err := b.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !b.set.Purged(bad) {
			t.Error("it serves what was purged while it was away")
		}
		time.Sleep(time.Second)
		wantHeld(t, b)
		b.stop()
		a.stop()
		b.disk.names = []string{bad} // as if a crash had left it
		b = w.start("b", b.disk)
		if !b.set.Purged(bad) {
			t.Error("it has forgotten the purge")
		}
		time.Sleep(time.Second)
		wantHeld(t, b)
	})
}

// Nobody waits for ever, and who has never had company not at all.
func TestWaitsForOthers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		seeded bool
		heard  bool
		want   time.Duration
	}{
		{"first of a cluster", false, false, 0},
		{"with seeds that are down", true, false, 5 * time.Second},
		{"once in a cluster", false, true, 5 * time.Second},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "a", "b")
				k := w.start("a", newDisk(t), func(cfg *purge.Config) {
					cfg.Seeded = test.seeded
					if test.heard {
						cfg.State.Heard = time.Now().Add(-time.Hour)
					}
				})
				ctx, cancel := context.WithTimeout(t.Context(), test.want-time.Millisecond)
				defer cancel()
				if err := k.Wait(ctx); test.want > 0 && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("it serves before %v: %v", test.want, err)
				}
				start := time.Now()
				if err := k.Wait(t.Context()); err != nil || time.Since(start) > 2*time.Millisecond {
					t.Errorf("it serves %v too late, %v", time.Since(start), err)
				}
			})
		})
	}
}

// A node that knows less than others has the last word all the same.
func TestPurgeOutranksWhatOthersKnow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b")
		w.split(1, "b")
		a, b := w.start("a", newDisk(t)), w.start("b", newDisk(t, bad))
		time.Sleep(time.Second)
		for range 3 {
			purged(t, a, false)
			purged(t, a, true)
		}
		w.mu.Lock() // b is told of nobody, and so asks nobody
		w.sides["b"] = 0
		w.mu.Unlock()
		if confirmed, _ := purged(t, b, false); confirmed != "a b" {
			t.Errorf("confirmed by %q", confirmed)
		}
		if !a.set.Purged(bad) || !b.set.Purged(bad) {
			t.Errorf("purged at a: %v, at b: %v", a.set.Purged(bad), b.set.Purged(bad))
		}
	})
}

// What cannot be kept or removed is not confirmed, kept away all the same, and tried again.
func TestNotConfirmedWhileNotDone(t *testing.T) {
	t.Parallel()
	for _, trouble := range []string{"the file", "the disk"} {
		t.Run(trouble, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "a", "b")
				a, b := w.start("a", newDisk(t, bad)), w.start("b", newDisk(t, bad))
				time.Sleep(2 * time.Second)
				blocked := filepath.Join(w.dir, "b.new")
				if trouble == "the file" {
					if err := os.MkdirAll(blocked, 0o777); err != nil {
						t.Fatal(err)
					}
				} else {
					b.disk.fail(errors.New("it does not like this"))
				}
				if confirmed, unconfirmed := purged(t, a, false); confirmed != "a" || unconfirmed != "b" {
					t.Errorf("confirmed by %q, not by %q", confirmed, unconfirmed)
				}
				if !b.set.Purged(bad) {
					t.Error("b does not keep it away")
				}
				b.disk.fail(nil)
				_ = os.Remove(blocked)
				time.Sleep(2 * time.Minute)
				wantHeld(t, b)
				if confirmed, _ := purged(t, a, false); confirmed != "a b" {
					t.Errorf("later confirmed by %q", confirmed)
				}
			})
		})
	}
}

// Who needs long to remove is not waited for, and goes on.
func TestSlowRemoval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b")
		a, b := w.start("a", newDisk(t, bad)), w.start("b", newDisk(t, bad))
		time.Sleep(2 * time.Second)
		a.disk.slow, b.disk.slow = 20*time.Second, 10*time.Second
		start := time.Now()
		resp, err := a.Purge(t.Context(), names(t, "example.com/m", ""), false, "")
		if err != nil || len(resp.GetConfirmed()) != 0 || len(resp.GetUnconfirmed()) != 2 || time.Since(start) > 7*time.Second {
			t.Errorf("got %v, %v after %v", resp, err, time.Since(start))
		}
		time.Sleep(30 * time.Second)
		wantHeld(t, a)
		wantHeld(t, b)
	})
}

// Only who was away when a purge was made that others have forgotten begins anew.
func TestAwayForLong(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	tests := []struct {
		name    string
		purge   time.Duration // after b has left; before, when negative
		away    time.Duration
		company bool // b has been with a before
		own     bool // b purges something, too, while it is away
		anew    bool
	}{
		{"a month and a purge that is forgotten", day, 32 * day, true, false, true},
		{"a month, the purge is remembered", 10 * day, 32 * day, true, false, false},
		{"a month, nothing was purged", 0, 32 * day, true, false, false},
		{"the purge was before, and is forgotten", -time.Hour, 32 * day, true, false, false},
		{"a week", day, 7 * day, true, false, false},
		{"always alone, others have forgotten a purge", day, 32 * day, false, false, true},
		{"always alone, nothing was purged", 0, 60 * day, false, false, false},
		{"always alone, with a purge of its own that is forgotten", 0, 32 * day, false, true, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "a", "b")
				a := w.start("a", newDisk(t, good))
				d := newDisk(t, bad, good, "sumdb/sum.golang.org/latest")
				if !test.company {
					w.split(1, "b")
				}
				b := w.start("b", d)
				time.Sleep(time.Minute)
				if test.purge < 0 {
					purged(t, a, false)
					time.Sleep(-test.purge)
				}
				w.split(1, "b")
				if test.own {
					if _, err := b.Purge(t.Context(), names(t, "example.com/own", ""), false, ""); err != nil {
						t.Fatal(err)
					}
				}
				b.stop()
				if test.purge > 0 {
					a.stop() // nothing that takes time happens for days
					time.Sleep(test.purge)
					a = w.start("a", a.disk)
					purged(t, a, false)
				}
				a.stop()
				time.Sleep(test.away - max(0, test.purge))
				w.start("a", a.disk)
				w.split(0, "b")
				if test.company {
					d.slow = 20 * time.Second
				}
				b = w.start("b", d)
				if err := b.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				if test.company && test.anew && len(d.held()) > 1 {
					t.Errorf("it serves before it has begun anew, and holds %v", d.held())
				}
				time.Sleep(time.Minute)
				held := b.disk.held()
				if anew := !slices.Contains(held, good); anew != test.anew {
					t.Errorf("it has begun anew: %v, want %v; it holds %v", anew, test.anew, held)
				}
				if !slices.Contains(held, "sumdb/sum.golang.org/latest") {
					t.Error("proofs are gone")
				}
				// It happens once.
				d.mu.Lock()
				d.names = []string{good}
				d.mu.Unlock()
				time.Sleep(10 * time.Minute)
				wantHeld(t, b, good)
			})
		})
	}
}

// The list on the disk is shortened, and what upstream has said to tell its versions apart
// is forgotten with it.
func TestListOnDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a")
		a := w.start("a", newDisk(t))
		list := store.Document{Body: []byte("v1.0.0\nv1.1.0\n"), ETag: "x", LastModified: "y", Source: "up"}
		if err := a.disk.PutDocument(dir+"list", list); err != nil {
			t.Fatal(err)
		}
		purged(t, a, false)
		if got, err := a.disk.Document(dir + "list"); err != nil || string(got.Body) != "v1.1.0\n" || got.ETag+got.LastModified != "" || got.Source != "up" {
			t.Errorf("the list is %+v, %v", got, err)
		}
	})
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b")
		a := w.start("a", newDisk(t))
		tell := func(all ...*ringmodv1.Tombstone) error {
			conn, err := way{w, "b"}.Conn("a")
			if err != nil {
				t.Fatal(err)
			}
			stream, err := ringmodv1.NewPeerServiceClient(conn).Tombstones(t.Context(), &ringmodv1.TombstonesRequest{Tombstones: all})
			if err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		}
		for _, bad := range []*ringmodv1.Tombstone{
			{}, {Name: "a.b/c/@latest"}, {Name: "a.b/c/@latest", Epoch: 1 << 63}, {Name: "/", Prefix: true, Epoch: 1}, {Name: "sumdb/", Prefix: true, Epoch: 1},
		} {
			if err := tell(bad); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%v: %v, want InvalidArgument", bad, err)
			}
		}
		if err := tell(make([]*ringmodv1.Tombstone, 1025)...); status.Code(err) != codes.InvalidArgument {
			t.Errorf("too many: %v", err)
		}
		if err := tell(&ringmodv1.Tombstone{Name: "a.b/c/@latest", Epoch: 1}); err != nil || a.set.Len() != 1 {
			t.Errorf("a good one: %v, %d are known", err, a.set.Len())
		}
		for _, all := range [][]purge.Name{{{}}, {{Name: "sumdb/x/latest"}}, {{Name: "x", Prefix: true}}} {
			if _, err := a.Purge(t.Context(), all, false, ""); cache.ReasonOf(err) != cache.Malformed {
				t.Errorf("Purge(%v): %v", all, err)
			}
		}
		if _, err := a.Purge(t.Context(), []purge.Name{{Name: "a.b/", Prefix: true}}, false, ""); err != nil {
			t.Fatal(err)
		}
		_, err := a.Purge(t.Context(), names(t, "a.b/c", "v1.0.0"), true, "")
		if err == nil || !strings.Contains(err.Error(), `"a.b/"`) {
			t.Errorf("lifting what is purged with others: %v", err)
		}
	})
}

// Many tombstones travel in pages.
func TestManyTombstones(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b")
		a := w.start("a", newDisk(t))
		for i := range 700 {
			m := module.Version{Path: "example.com/m" + strings.Repeat("x", i%50) + string(rune('a'+i/50)), Version: "v1.0.0"}
			if _, err := a.set.Write(names(t, m.Path, m.Version)[:1], false, ""); err != nil {
				t.Fatal(err)
			}
		}
		b := w.start("b", newDisk(t))
		time.Sleep(2 * time.Second)
		if b.set.Len() != 700 || a.set.Digest() != b.set.Digest() {
			t.Errorf("b knows %d of 700", b.set.Len())
		}
	})
}
