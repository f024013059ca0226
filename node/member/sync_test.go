package member

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ringmod/ringmod/node/member/membertest"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// asked is a connection that notes when GetView is called, and holds every caller to
// one call at a time.
type asked struct {
	t    *testing.T
	took time.Duration
	view *ringmodv1.View

	mu    sync.Mutex // guards what follows
	calls []time.Duration
	start time.Time
	busy  bool
}

func (a *asked) Invoke(ctx context.Context, method string, _, reply any, _ ...grpc.CallOption) error {
	a.mu.Lock()
	if a.busy || method != ringmodv1.ClusterService_GetView_FullMethodName {
		a.t.Errorf("%s is called while another call runs: %v", method, a.busy)
	}
	a.busy = true
	a.calls = append(a.calls, time.Since(a.start))
	a.mu.Unlock()
	select {
	case <-time.After(a.took):
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy = false
	if a.view == nil || ctx.Err() != nil {
		return errors.New("no answer")
	}
	reply.(*ringmodv1.GetViewResponse).View = a.view
	return nil
}

func (a *asked) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.New("no streams here")
}

func (a *asked) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.calls)
}

// fixed is a table that never learns.
type fixed struct {
	view   *ring.View
	merges int
}

func (f *fixed) View() *ring.View            { return f.view }
func (f *fixed) Merge(*ringmodv1.View) error { f.merges++; return errors.New("another cluster") }

func fixedTable(t *testing.T) *fixed {
	t.Helper()
	var members ring.Members
	if _, err := members.Put(entry("n1", 10)); err != nil {
		t.Fatal(err)
	}
	v, err := ring.NewView(ring.DefaultSpec(), &members)
	if err != nil {
		t.Fatal(err)
	}
	return &fixed{view: v}
}

// syncing runs a Syncer until the test ends.
func syncing(t *testing.T, table Table, conn func(string) (grpc.ClientConnInterface, error)) *Syncer {
	t.Helper()
	s := NewSyncer(table, conn, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestSyncerAsksWhoIsAhead(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name        string
		digest, seq uint64 // 0: the own digest
		want        int
	}{
		{"the same view", 0, 10, 0},
		{"the same view, newer", 0, 11, 0},
		{"behind", 1, 9, 0},
		{"no view", 1, 0, 0},
		{"beside", 1, 10, 1},
		{"ahead", 1, 11, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				table := fixedTable(t)
				a := &asked{t: t, start: time.Now()}
				s := syncing(t, table, func(string) (grpc.ClientConnInterface, error) { return a, nil })
				if tt.digest == 0 {
					tt.digest = table.view.Digest()
				}
				s.Observe("n2", tt.digest, tt.seq)
				time.Sleep(time.Minute)
				if got := a.count(); got != tt.want {
					t.Errorf("asked %d times, want %d", got, tt.want)
				}
			})
		})
	}
}

// However often it is told, it asks each member once at a time, at growing distances
// while nothing changes.
func TestSyncerIsPatient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		table := fixedTable(t)
		slow := &asked{t: t, start: time.Now(), took: 700 * time.Millisecond, view: &ringmodv1.View{}}
		dead := &asked{t: t, start: time.Now(), took: time.Hour}
		s := syncing(t, table, func(id string) (grpc.ClientConnInterface, error) {
			switch id {
			case "slow":
				return slow, nil
			case "dead":
				return dead, nil
			}
			return nil, errors.New("no address")
		})
		tell := func(d time.Duration, digest uint64) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				for _, id := range []string{"slow", "dead", "unknown"} {
					s.Observe(id, digest, 20)
				}
			}
		}
		tell(9*time.Second, 1)
		// At 0, 1, 3 and 7 s; the dead one takes 5 s each time.
		if got := slow.count(); got != 4 {
			t.Errorf("asked the slow one at %v, want 4 times", slow.calls)
		}
		if got := dead.count(); got != 2 {
			t.Errorf("asked the dead one at %v, want twice", dead.calls)
		}
		tell(10*time.Minute, 1)
		if got := slow.count(); got > 20 {
			t.Errorf("asked the slow one %d times in 10m", got)
		}
		before := slow.count()
		time.Sleep(2 * time.Minute)
		tell(time.Second, 2)
		if got := slow.count() - before; got < 1 || got > 3 {
			t.Errorf("asked %d times within a second of a new view", got)
		}
		time.Sleep(5 * time.Minute)
		s.mu.Lock()
		if table.merges != slow.count() || len(s.others) > 3 || s.busy != 0 {
			t.Errorf("merged %d of %d, still knows %d, busy %d", table.merges, slow.count(), len(s.others), s.busy)
		}
		s.mu.Unlock()
	})
}

func TestSyncerIsBounded(t *testing.T) {
	t.Parallel()
	s := NewSyncer(fixedTable(t), nil, nil)
	for i := range 2 * maxEntries {
		s.Observe(string(rune(i+1)), 1, 20)
	}
	if got := len(s.others); got != maxEntries {
		t.Errorf("remembers %d, want %d", got, maxEntries)
	}
}

// What gossip cannot bring, a request's answer does.
func TestSyncerHealsWithoutGossip(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(2)
		ports := newPorts(t)
		ports.member(all[0])
		conn, err := grpc.NewClient("passthrough:///"+firstAddr, grpc.WithContextDialer(ports.dial),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		s := syncing(t, all[1], func(string) (grpc.ClientConnInterface, error) { return conn, nil })
		w.net.Split(addrs(all[:1]), addrs(all[1:]), membertest.All)
		if err := all[0].SetState(t.Context(), ring.Leaving); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		v := all[0].View()
		if all[1].View().Digest() == v.Digest() {
			t.Fatal("gossip is not cut")
		}
		s.Observe("n1", v.Digest(), v.Seq())
		took := within(t, time.Second, func() bool { return all[1].View().Digest() == v.Digest() })
		t.Logf("has the new view after %s", took)
	})
}
