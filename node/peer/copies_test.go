package peer_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/copies"
	"github.com/ringmod/ringmod/node/store/storetest"
	"github.com/ringmod/ringmod/ring"
)

const aZip = "example.com/m0/@v/v1.0.0.zip"

// replicasOf returns who should hold a target in region a, and who need not.
func replicasOf(t *testing.T, view *ring.View, name string) (replicas, spare []string) {
	t.Helper()
	p := ring.OfTarget(parse(t, name))
	for i, m := range view.Next().Ranks("a", p) {
		if i < view.Next().ReplicaCount("a") {
			replicas = append(replicas, view.Member(m).ID)
		} else {
			spare = append(spare, view.Member(m).ID)
		}
	}
	return replicas, spare
}

// holds tells whether a node has the bytes of upstream on its disk.
func (w *world) holds(id, name string) bool {
	w.t.Helper()
	if !parse(w.t, name).Kind.Immutable() {
		doc, err := w.disks[id].Document(name)
		return err == nil && bytes.Equal(doc.Body, w.up.files[name])
	}
	obj, err := w.disks[id].Open(w.t.Context(), name)
	if err != nil {
		return false
	}
	defer obj.File.Close()
	want := w.up.files[name]
	got := make([]byte, obj.Size)
	_, err = obj.File.ReadAt(got, 0)
	return err == nil && bytes.Equal(got, want)
}

func (w *world) await(limit time.Duration, what string, ok func() bool) {
	w.t.Helper()
	for start := time.Now(); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Since(start) > limit {
			w.t.Fatalf("not in %v: %s", limit, what)
		}
	}
}

// What one node has fetched, whichever it is, is at both replicas within 5 s (small
// files are written behind up to 5 s later), and survives the death of either.
func TestCopiesSurviveANode(t *testing.T) {
	t.Parallel()
	for from := range 4 { // the coordinator, the other replica, spare ranks
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, filesOf(t, 1, 300<<10))
			w.copies = &copies.Config{}
			all := members(4, "a")
			view := viewOf(t, all...)
			for _, m := range all {
				w.start(m.ID, view, nil)
			}
			gateway := w.set("a-gw", view)
			for name := range w.up.files {
				replicas, spare := replicasOf(t, view, name)
				w.ask(gateway, slices.Concat(replicas, spare)[from], name)
			}
			time.Sleep(6 * time.Second)
			for name := range w.up.files {
				replicas, _ := replicasOf(t, view, name)
				for _, id := range replicas {
					if !w.holds(id, name) {
						t.Errorf("%s has no %s", id, name)
					}
				}
				if got := w.up.count(name); got != 1 {
					t.Errorf("%s: %d upstream requests, want 1", name, got)
				}
			}
			replicas, _ := replicasOf(t, view, aZip)
			for _, m := range all {
				if lag, hints := w.nodes[m.ID].keeper.Lag(), w.nodes[m.ID].keeper.Hints(); lag != 0 || hints != 0 {
					t.Errorf("%s: lag of %v, %d hints, want none", m.ID, lag, hints)
				}
			}
			w.kill(replicas[0])
			w.ask(gateway, replicas[1], aZip)
			if got := w.up.count(aZip); got != 1 {
				t.Errorf("%d upstream requests, want 1", got)
			}
		})
	}
}

// What a pulled copy is known to be goes with it, and a zip is there within 5 s.
func TestCopiesInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, filesOf(t, 1, 300<<10))
		w.copies = &copies.Config{}
		all := members(3, "a")
		view := viewOf(t, all...)
		for _, m := range all {
			w.start(m.ID, view, nil)
		}
		replicas, _ := replicasOf(t, view, aZip)
		w.ask(w.set("a-gw", view), replicas[0], aZip)
		time.Sleep(time.Second)
		first, err := w.disks[replicas[0]].Stat(aZip)
		if err != nil {
			t.Fatal(err)
		}
		second, err := w.disks[replicas[1]].Stat(aZip)
		if err != nil || second.Proof != first.Proof || second.SHA256 != first.SHA256 {
			t.Errorf("the copy is %+v, %v, want %+v", second, err, first)
		}
	})
}

// A replica that is away is told when it is back, also by a node that was started
// anew meanwhile.
func TestHintsOutliveARestart(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, filesOf(t, 3, 100<<10))
			w.copies = &copies.Config{Dir: dir}
			all := members(2, "a")
			view := viewOf(t, all...)
			for _, m := range all {
				w.start(m.ID, view, nil)
			}
			gateway := w.set("a-gw", view)
			w.kill("a-2")
			for name := range w.up.files {
				w.ask(gateway, "a-1", name)
			}
			time.Sleep(10 * time.Second)
			want := 0
			for name := range w.up.files {
				if parse(t, name).Kind.Immutable() {
					want++
				}
			}
			hints := filepath.Join(dir, "a-1", "a-2.hints")
			if _, err := os.Stat(hints); err != nil || w.nodes["a-1"].keeper.Hints() != want {
				t.Errorf("%d hints (%v), want %d", w.nodes["a-1"].keeper.Hints(), err, want)
			}
			if lag := w.nodes["a-1"].keeper.Lag(); lag < 4*time.Second {
				t.Errorf("lag of %v", lag)
			}
			if restart {
				w.kill("a-1")
				w.start("a-1", view, nil)
			}
			w.start("a-2", view, nil)
			w.await(30*time.Second, "a-2 has everything", func() bool {
				for name := range w.up.files {
					if parse(t, name).Kind.Immutable() && !w.holds("a-2", name) {
						return false
					}
				}
				return true
			})
			w.await(5*time.Second, "nothing waits", func() bool { return w.nodes["a-1"].keeper.Hints() == 0 })
			time.Sleep(time.Second)
			if _, err := os.Stat(hints); err == nil {
				t.Error("the file of hints is still there")
			}
			for name := range w.up.files {
				if got := w.up.count(name); got != 1 {
					t.Errorf("%s: %d upstream requests, want 1", name, got)
				}
			}
		})
	}
}

// Two copies that differ stay where they are.
func TestCopiesThatDiffer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, filesOf(t, 1, 100<<10))
		log := &lines{}
		w.copies = &copies.Config{Logger: slog.New(slog.NewTextHandler(log, nil))}
		all := members(2, "a")
		view := viewOf(t, all...)
		storetest.Put(t, w.disk("a-2"), aZip, "something else", "h1:x")
		for _, m := range all {
			// Alone, so that it does not find the other copy before it fills.
			w.start(m.ID, view, func(cfg *node.Config) { cfg.Peers = nil })
		}
		w.ask(w.set("a-gw", view), "a-1", aZip)
		time.Sleep(time.Minute)
		if entry, err := w.disks["a-2"].Stat(aZip); err != nil || entry.H1 != "h1:x" || !w.holds("a-1", aZip) {
			t.Errorf("the other copy is %+v, %v", entry, err)
		}
		if lag := w.nodes["a-1"].keeper.Lag(); lag != 0 {
			t.Errorf("lag of %v, though there is nothing to wait for", lag)
		}
		if got := strings.Count(log.String(), "level=ERROR"); got != 2 { // one at each end
			t.Errorf("%d errors in the log, want 2:\n%s", got, log)
		}
	})
}

type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Pulls keep to the rate together, and all arrive.
func TestPullsKeepToTheRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const rate, zips = 1 << 20, 8
		w := newWorld(t, filesOf(t, zips, 1<<20))
		w.copies = &copies.Config{Rate: rate}
		all := members(2, "a")
		view := viewOf(t, all...)
		for _, m := range all {
			w.start(m.ID, view, nil)
		}
		var total int
		start := time.Now()
		for i := range zips {
			name := fmt.Sprintf("example.com/m%d/@v/v1.0.0.zip", i)
			total += len(w.up.files[name])
			storetest.Put(t, w.nodes["a-1"].keeper.Store(), name, string(w.up.files[name]), "h1:x")
		}
		held := func() (n int) {
			for i := range zips {
				if entry, err := w.disks["a-2"].Stat(fmt.Sprintf("example.com/m%d/@v/v1.0.0.zip", i)); err == nil {
					n += int(entry.Size)
				}
			}
			return n
		}
		for held() < total {
			time.Sleep(100 * time.Millisecond)
			took := time.Since(start)
			if most := int(took.Seconds()*rate) + rate/2; held() > most {
				t.Fatalf("%d bytes after %v, want %d at most", held(), took, most)
			}
			if took > 5*time.Minute {
				t.Fatalf("%d of %d bytes after %v", held(), total, took)
			}
		}
		if took, want := time.Since(start), time.Duration(total/rate)*time.Second; took > 2*want {
			t.Errorf("took %v, want about %v", took, want)
		}
	})
}
