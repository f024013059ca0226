package sumdb_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	xsumdb "golang.org/x/mod/sumdb"
)

// TestReplay wants what go mod download needs later, without a network: after
// lookups between which the database grew, the go command's own client gets the
// same lookups in any order, with all tiles, without one request to the remote.
func TestReplay(t *testing.T) {
	t.Parallel()
	for _, start := range []int{0, 1, 255, 65100} {
		t.Run(fmt.Sprint(start), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(uint64(start), 1))
			r := newRig(t)
			known := r.warm(rnd, start)
			r.checkStored()
			asked := r.remote.requests("")
			r.remote.set(down)
			for round := range 30 {
				if round%3 == 0 {
					r.restart()
				}
				r.replay(rnd, known)
			}
			if got := r.remote.requests(""); got != asked {
				t.Errorf("%d requests to the remote, want none", got-asked)
			}
		})
	}
}

// warm looks modules up while the database grows by hundreds of records, some
// of them with answers that were given long before and so have an older head.
func (r *rig) warm(rnd *rand.Rand, size int) (known []int) {
	r.db.grow(r.t, 0, size)
	late := make(map[string][]byte)
	r.remote.set(func(rest string, data []byte, err error) ([]byte, error) {
		r.remote.mu.Lock()
		defer r.remote.mu.Unlock()
		if old := late[rest]; old != nil {
			return old, nil
		}
		return data, err
	})
	for range 40 {
		i := rnd.IntN(size + 1)
		if rnd.IntN(3) == 0 { // keep an answer for later
			rest := "lookup/" + mod(i).String()
			data, err := r.db.get(rest)
			if err != nil {
				r.t.Fatal(err)
			}
			r.remote.mu.Lock()
			late[rest] = data
			r.remote.mu.Unlock()
		} else {
			r.lookup(i)
		}
		known = append(known, i)
		grown := size + 1 + rnd.IntN(400)
		r.db.grow(r.t, size, grown)
		size = grown
		if rnd.IntN(8) == 0 {
			r.restart()
		}
	}
	for _, i := range known {
		r.lookup(i)
	}
	return known
}

// replay asks for known in a random order, some of them at once.
func (r *rig) replay(rnd *rand.Rand, known []int) {
	r.t.Helper()
	c := xsumdb.NewClient(&client{rig: r})
	ask := func(i int) {
		m := mod(i)
		lines, err := c.Lookup(m.Path, m.Version)
		if want := m.Path + " " + m.Version + " h1:zip" + m.Path; err != nil || len(lines) != 1 || lines[0] != want {
			r.t.Errorf("replaying %v: %q, %v, want %q", m, lines, err, want)
		}
	}
	order := rnd.Perm(len(known))
	order = order[:1+rnd.IntN(len(order))]
	half := rnd.IntN(len(order))
	for _, k := range order[:half] {
		ask(known[k])
	}
	var group sync.WaitGroup
	for _, k := range order[half:] {
		group.Go(func() { ask(known[k]) })
	}
	group.Wait()
}

// TestReplayWithoutHead wants the same after the index with the head was lost.
func TestReplayWithoutHead(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(7, 7))
	r := newRig(t)
	known := r.warm(rnd, 300)
	clear(r.heads.msgs)
	r.restart()
	r.remote.set(nil)
	r.db.grow(t, 20000, 21000)
	known = append(known, 20500)
	r.lookup(20500) // the head is a new one that nothing stored is linked to
	for _, i := range known {
		r.lookup(i)
	}
	r.remote.set(down)
	for range 10 {
		r.replay(rnd, known)
	}
}

// TestEdgeWhenTheHeadMovesMeanwhile has the database grow, and its new head
// found, while the first lookup with the head before is being verified. A go
// command that reads the stored files themselves asks for the tiles at the edge
// of that tree by the width that they have there.
func TestEdgeWhenTheHeadMovesMeanwhile(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.db.grow(t, 0, 300)
	var once sync.Once
	r.storage.reading = func(name string) {
		if name == "sumdb/"+dbName+"/tile/8/1/000.p/1" {
			once.Do(func() {
				r.db.grow(t, 300, 1000)
				if _, err := r.Latest(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	}
	r.lookup(1)
	r.lookup(2)
	stored := r.storage.snapshot()
	for _, tile := range []string{"tile/8/0/001.p/44", "tile/8/1/000.p/1"} {
		if stored["sumdb/"+dbName+"/"+tile] == nil {
			t.Errorf("%s is not stored", tile)
		}
	}
}
