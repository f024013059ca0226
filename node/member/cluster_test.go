package member

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/member/membertest"
	"github.com/ringmod/ringmod/ring"
)

func TestJoinsConverge(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 3, 8, 16} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(w *world) {
				t := w.t
				var all []*proc
				for i := range n {
					all = append(all, w.start(w.config(i+1), at(i+1)))
					time.Sleep(100 * time.Millisecond)
				}
				took := within(t, repaired, func() bool { return converged(all...) })
				t.Logf("%d members see each other %s after the last start", n, took)
				if got := len(all[0].View().Members()); got != n {
					t.Errorf("view has %d members, want %d", got, n)
				}
			})
		})
	}
}

func TestGatewayJoins(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		nodes := w.startAll(2)
		cfg := w.config(9)
		cfg.Entry.Role, cfg.Entry.Addr = ring.Gateway, ""
		g := w.start(cfg, at(9))
		<-g.Joined()
		within(t, repaired, func() bool { return converged(nodes[0], nodes[1], g) })
		if g.owns("n9") || !g.owns("n1") {
			t.Error("gateway is an owner, or does not know one")
		}
		if addr, ok := g.Addr("n2"); addr != "10.0.0.2:8082" || !ok {
			t.Errorf("address of n2: %q, %v", addr, ok)
		}
		if addr, ok := nodes[0].Addr("n9"); ok {
			t.Errorf("address of a gateway without one: %q", addr)
		}
	})
}

func TestGatewayWaitsForNodes(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		cfg := w.config(9)
		cfg.Entry.Role, cfg.Entry.Addr = ring.Gateway, ""
		g := w.start(cfg, at(9))
		time.Sleep(time.Hour)
		select {
		case <-g.Joined():
			t.Error("has met somebody where nobody is")
		default:
		}
		w.start(w.config(1), at(1))
		took := within(t, 25*time.Second, func() bool { return g.owns("n1") && g.Up("n1") })
		t.Logf("knows the first node %s after its start", took)
		<-g.Joined()
	})
}

func TestDeadMemberGoesDownThenOut(t *testing.T) {
	t.Parallel()
	for _, n := range []int{3, 5, 16} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(w *world) {
				t := w.t
				all := w.startAll(n)
				rest, dead := all[:n-1], all[n-1]
				digest := rest[0].View().Digest()
				w.net.Isolate(dead.addr)
				down := func(p *proc) bool { return !p.Up(dead.id) }
				took := within(t, 20*time.Second, func() bool { return slices.ContainsFunc(rest, down) })
				t.Logf("first notice after %s", took)
				took += within(t, repaired, func() bool {
					return !slices.ContainsFunc(rest, func(p *proc) bool { return !down(p) })
				})
				t.Logf("all notice after %s", took)
				dead.kill()
				time.Sleep(9*time.Minute + 30*time.Second)
				for _, p := range rest {
					if got := p.View().Digest(); got != digest {
						t.Errorf("%s has moved data already", p.id)
					}
				}
				took = within(t, time.Minute, func() bool { return !rest[0].owns(dead.id) && converged(rest...) })
				t.Logf("forgotten by all 9m30s and %s later", took)
				if got := rest[0].status(dead.id).Entry.State; got != ring.Forgotten {
					t.Errorf("state is %s, want forgotten", got)
				}
				// It returns, sees what was written, and outranks it.
				w.net.Join(at(n))
				back := w.start(w.config(n), at(n))
				took = within(t, repaired, func() bool { return converged(append(rest, back)...) })
				t.Logf("back with all after %s", took)
				if got := rest[0].View().Digest(); got != digest {
					t.Error("placement is another one than before")
				}
			})
		})
	}
}

func TestMinorityForgetsNobody(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(5)
		few, many := all[:2], all[2:]
		w.net.Split(addrs(few), addrs(many), membertest.All)
		time.Sleep(20 * time.Minute)
		for _, p := range few {
			if !p.owns("n5") {
				t.Errorf("%s has forgotten n5", p.id)
			}
		}
		for _, p := range many {
			if p.owns("n1") {
				t.Errorf("%s has not forgotten n1", p.id)
			}
		}
		w.net.Heal()
		took := within(t, 30*time.Second, func() bool { return converged(all...) })
		t.Logf("one view %s after healing", took)
	})
}

func TestRestartElsewhereMovesNothing(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		state := &memState{}
		all := w.startAll(3, func(c *Config) {
			if c.Entry.ID == "n3" {
				c.State = state
			}
		})
		digest := all[0].View().Digest()
		all[2].kill()
		cfg := w.config(3)
		cfg.Entry.Addr, cfg.State = "10.0.0.77:8082", state
		back := w.start(cfg, at(77))
		took := within(t, 5*time.Second, func() bool {
			a1, _ := all[0].Addr("n3")
			a2, _ := all[1].Addr("n3")
			return a1 == cfg.Entry.Addr && a2 == a1 && all[0].Up("n3") && all[1].Up("n3")
		})
		t.Logf("known at the new address after %s", took)
		if took > time.Second {
			t.Errorf("took %s, want at most 1s", took)
		}
		for range 60 {
			time.Sleep(time.Second)
			for _, p := range []*proc{all[0], all[1], back} {
				if p.Up("n3") && p.View().Digest() == digest {
					continue
				}
				t.Fatalf("%s: up %v, digest %x, want %x", p.id, p.Up("n3"), p.View().Digest(), digest)
			}
		}
	})
}

func TestStopStaysIn(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(3)
		digest := all[0].View().Digest()
		all[2].stop()
		if all[2].err != nil {
			t.Error(all[2].err)
		}
		took := within(t, 2*time.Second, func() bool { return !all[0].Up("n3") && !all[1].Up("n3") })
		t.Logf("known to be down %s after the stop", took)
		if got := all[0].View().Digest(); got != digest {
			t.Error("a stop has moved data")
		}
	})
}

func TestLeave(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(4)
		changed := all[0].Changed()
		if err := all[3].SetState(t.Context(), ring.Leaving); err != nil {
			t.Fatal(err)
		}
		within(t, 2*time.Second, func() bool { return all[0].status("n4").Entry.State == ring.Leaving })
		time.Sleep(debounce)
		<-changed
		if err := all[3].Leave(t.Context()); err != nil {
			t.Error(err)
		}
		for _, p := range all[:3] {
			if s := p.status("n4"); s.Entry.State != ring.Left || s.Up || p.owns("n4") {
				t.Errorf("%s: n4 is %s, up %v, owns %v", p.id, s.Entry.State, s.Up, p.owns("n4"))
			}
		}
		all[3].stop()
		time.Sleep(20 * time.Minute)
		if got := all[0].status("n4").Entry.State; got != ring.Left {
			t.Errorf("n4 is %s, want left", got)
		}
		back := w.start(w.config(4), at(4))
		within(t, repaired, func() bool { return converged(all[0], all[1], all[2], back) })
	})
}

func TestEntryChangesSpread(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		version := "v1.2.3-0.20261122034240-0123456789ab" // the longest that a build has
		all := w.startAll(8, func(c *Config) { c.Entry.State, c.Version = ring.Joining, version+strings.Repeat(" ", maxVersion) })
		if err := all[7].SetState(t.Context(), ring.Active); err != nil {
			t.Fatal(err)
		}
		if err := all[7].SetReadOnly(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		all[7].SetLoad(3, 11)
		took := within(t, repaired, func() bool {
			return !slices.ContainsFunc(all, func(p *proc) bool {
				s := p.status("n8")
				return s.Entry.State != ring.Active || !s.Entry.ReadOnly || s.Disk != 3 || s.Load != 8 || strings.TrimSpace(s.Version) != version || len(s.Version) != maxVersion
			})
		})
		t.Logf("known to all after %s", took)
		epoch := all[7].Entry().Epoch
		if err := all[7].SetReadOnly(t.Context(), true); err != nil || all[7].Entry().Epoch != epoch {
			t.Errorf("saying the same again: %v, epoch %d, want %d", err, all[7].Entry().Epoch, epoch)
		}
		if err := all[7].SetState(t.Context(), ring.Forgotten); err == nil {
			t.Error("a member has forgotten itself")
		}
	})
}

func TestForget(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(4)
		rest := all[:3]
		all[3].kill()
		if err := rest[0].Forget(t.Context(), "n4", false); !errors.Is(err, ErrUp) {
			t.Errorf("member that seems up: got %v, want ErrUp", err)
		}
		within(t, repaired, func() bool { return !rest[0].Up("n4") })
		for id, want := range map[string]error{"n9": ErrUnknown, "n1": ErrSelf, "n2": ErrUp} {
			if err := rest[0].Forget(t.Context(), id, false); !errors.Is(err, want) {
				t.Errorf("%s: got %v, want %v", id, err, want)
			}
		}
		digest := rest[0].View().Digest()
		for range 2 { // the second time changes nothing
			if err := rest[0].Forget(t.Context(), "n4", false); err != nil {
				t.Fatal(err)
			}
		}
		took := within(t, repaired, func() bool {
			return !slices.ContainsFunc(rest, func(p *proc) bool {
				return p.owns("n4") || p.status("n4").Entry.State != ring.Forgotten
			})
		})
		t.Logf("forgotten by all after %s", took)
		if rest[0].View().Digest() == digest || rest[0].logs.count("forgotten by order") != 1 {
			t.Error("placement is as before, or nobody was told, or twice")
		}
		back := w.start(w.config(4), at(4))
		within(t, repaired, func() bool { return converged(append(rest, back)...) })
		if rest[0].View().Digest() != digest {
			t.Error("back, but placement is another one")
		}
		w.net.Isolate(back.addr) // still up for all others
		if err := rest[0].Forget(t.Context(), "n4", true); err != nil || rest[0].status("n4").Entry.State != ring.Forgotten {
			t.Errorf("by force: %v, state %s", err, rest[0].status("n4").Entry.State)
		}
	})
}

func addrs(all []*proc) []netip.AddrPort {
	var as []netip.AddrPort
	for _, p := range all {
		as = append(as, p.addr)
	}
	return as
}
