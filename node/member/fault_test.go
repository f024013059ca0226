package member

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/member/membertest"
	"github.com/ringmod/ringmod/ring"
)

func TestSplitHeals(t *testing.T) {
	t.Parallel()
	for _, cut := range []time.Duration{20 * time.Second, time.Minute, 5 * time.Minute, 20 * time.Minute} {
		t.Run(cut.String(), func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(w *world) {
				t := w.t
				all := w.startAll(6)
				digest := all[0].View().Digest()
				w.net.Split(addrs(all[:3]), addrs(all[3:]), membertest.All)
				time.Sleep(cut)
				if cut < outAfter {
					for _, p := range all {
						if p.View().Digest() != digest {
							t.Errorf("%s has moved data", p.id)
						}
					}
				}
				t.Logf("n1 sees %d, n6 sees %d", len(all[0].sees()), len(all[5].sees()))
				w.net.Heal()
				took := within(t, 30*time.Second, func() bool { return converged(all...) })
				t.Logf("one cluster %s after healing", took)
			})
		})
	}
}

func TestLoneMemberHeals(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(6)
		w.net.Isolate(all[5].addr)
		time.Sleep(5 * time.Minute)
		w.net.Heal()
		took := within(t, 30*time.Second, func() bool { return converged(all...) })
		t.Logf("one cluster %s after healing", took)
	})
}

// What one direction or one kind of traffic loses, the rest carries.
func TestPartialCuts(t *testing.T) {
	t.Parallel()
	a, b := at(1), at(2)
	for _, tt := range []struct {
		name string
		cut  func(n *membertest.Network)
	}{
		{"one way", func(n *membertest.Network) { n.Cut(a, b, membertest.All) }},
		{"packets between two", func(n *membertest.Network) {
			n.Split([]netip.AddrPort{a}, []netip.AddrPort{b}, membertest.Packets)
		}},
		{"streams of one", func(n *membertest.Network) {
			n.Cut(a, netip.AddrPort{}, membertest.Streams)
			n.Cut(netip.AddrPort{}, a, membertest.Streams)
		}},
		{"all packets", func(n *membertest.Network) {
			n.Cut(netip.AddrPort{}, netip.AddrPort{}, membertest.Packets)
		}},
		{"loss and delay", func(n *membertest.Network) {
			n.SetLoss(0.1)
			n.SetDelay(100 * time.Millisecond)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(w *world) {
				t := w.t
				all := w.startAll(5)
				digest := all[0].View().Digest()
				tt.cut(w.net)
				deaths := 0
				for range 300 {
					time.Sleep(time.Second)
					for _, p := range all {
						if p.View().Digest() != digest {
							t.Fatal("placement has changed")
						}
						deaths += len(all) - len(p.sees())
					}
				}
				t.Logf("%d times in 7500 one did not see another", deaths)
				if deaths > 0 {
					t.Error("somebody was taken for dead")
				}
				if err := all[4].SetState(t.Context(), ring.Leaving); err != nil {
					t.Fatal(err)
				}
				took := within(t, 3*time.Minute, func() bool {
					return !slices.ContainsFunc(all, func(p *proc) bool {
						return p.status("n5").Entry.State != ring.Leaving
					})
				})
				t.Logf("a change is known to all after %s", took)
			})
		})
	}
}

func TestForeignersAreRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key := func(name string, fill ...byte) string {
		var text strings.Builder
		for _, f := range fill {
			text.WriteString(base64.StdEncoding.EncodeToString(slices.Repeat([]byte{f}, 32)) + "\n")
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("# ours\n"+text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ours := key("ours", 1)
	for _, tt := range []struct {
		name           string
		edit           func(*Config)
		we, theForeign string // say once
	}{
		{"another cluster", func(c *Config) { c.Cluster = "other" }, "it is of another cluster", hungUp},
		{"another key", func(c *Config) { c.KeyFile = key("theirs", 2) }, "the other end has another gossip key", "the other end has another gossip key"},
		{"no key", func(c *Config) { c.KeyFile = "" }, "the other end has no gossip key", "the other end has a gossip key and this process has none"},
		{"another cluster and no key", func(c *Config) { c.Cluster, c.KeyFile = "other", "" }, "it is of another cluster", hungUp},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(w *world) {
				t := w.t
				all := w.startAll(3, func(c *Config) { c.KeyFile = ours })
				cfg := w.config(9)
				cfg.KeyFile = ours
				tt.edit(&cfg)
				foreigner := w.start(cfg, at(9))
				time.Sleep(10 * time.Minute)
				if got := foreigner.sees(); len(got) != 1 || foreigner.owns("n1") {
					t.Errorf("foreigner sees %v", got)
				}
				if foreigner.Stats().JoinFailures < 10 {
					t.Errorf("foreigner has given up: %+v", foreigner.Stats())
				}
				if !converged(all...) || all[0].owns("n9") {
					t.Error("others are disturbed")
				}
				if n, m := all[0].logs.count(tt.we), foreigner.logs.count(tt.theForeign); n != 1 || m != 1 {
					t.Errorf("said %d times here and %d times there what is wrong, want once each", n, m)
				}
				if n, m := all[0].logs.count("level=ERROR"), foreigner.logs.count("level=WARN"); n != 1 || m != 1 {
					t.Errorf("%d errors and %d warnings, want one line each", n, m)
				}
			})
		})
	}
}

// One of the seeds belongs to others. What it says about itself is not believed.
func TestSeedOfAnotherCluster(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		other := w.config(7)
		other.Cluster, other.Seeds = "other", nil
		foreign := w.start(other, at(7))
		all := w.startAll(2, func(c *Config) { c.Seeds = []string{at(7).String(), at(1).String(), at(99).String()} })
		time.Sleep(3 * time.Minute)
		if !converged(all...) || len(foreign.sees()) != 1 {
			t.Error("one cluster knows of the other")
		}
		for _, p := range all {
			if got := p.logs.count("hung up"); got != 1 {
				t.Errorf("%s said %d times that a seed hangs up, want once", p.id, got)
			}
			if got := p.logs.count("i/o timeout"); got != 1 {
				t.Errorf("%s said %d times that a seed does not answer, want once", p.id, got)
			}
		}
	})
}

func TestKeysRotate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keys")
	write := func(fill ...byte) {
		var text strings.Builder
		for _, f := range fill {
			text.WriteString(base64.StdEncoding.EncodeToString(slices.Repeat([]byte{f}, 32)) + "\n")
		}
		if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(1)
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(3, func(c *Config) { c.KeyFile = path })
		for _, keys := range [][]byte{{1, 2}, {2, 1}, {2}, {3, 2, 4}, {4}} {
			if len(keys) == 1 && keys[0] == 4 {
				write(4, 2, 3)
				time.Sleep(10 * time.Second)
			}
			write(keys...)
			time.Sleep(time.Minute)
			for _, p := range all {
				if got := p.keys.ring.GetKeys(); len(got) != len(keys) || got[0][0] != keys[0] {
					t.Errorf("keys %v: got %v", keys, got)
				}
			}
			if !converged(all...) {
				t.Errorf("not all are there with %v", keys)
			}
		}
		if err := os.WriteFile(path, []byte("nonsense\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := all[0].ReloadKeys(); err == nil || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("reloading nonsense: %v", err)
		}
		if !converged(all...) || all[0].logs.count("cannot reload") != 1 {
			t.Error("a bad file has changed something, or was not said once")
		}
	})
}

func TestDuplicateStops(t *testing.T) {
	t.Parallel()
	for _, saved := range []uint64{0, 1 << 20} {
		t.Run(fmt.Sprint("epoch ", saved), func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(w *world) {
				t := w.t
				all := w.startAll(3)
				time.Sleep(time.Minute)
				cfg := w.config(3)
				cfg.Entry.Addr = "10.0.0.9:8082"
				cfg.State = &memState{saved: Saved{Epoch: saved}}
				double := w.start(cfg, at(9))
				start := time.Now()
				<-double.done
				t.Logf("stopped after %s: %v", time.Since(start), double.err)
				if !errors.Is(double.err, ErrDuplicate) || time.Since(start) > 5*time.Second {
					t.Errorf("after %s: %v", time.Since(start), double.err)
				}
				within(t, repaired, func() bool {
					addr, _ := all[0].Addr("n3")
					return addr == "10.0.0.3:8082" && converged(all...)
				})
				if all[2].logs.count(`level=WARN msg="another process with this node id`) != 1 {
					t.Error("the older one has not said so")
				}
			})
		})
	}
}

func TestEpochsSurvive(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "members.json")
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(3)
		cfg := w.config(4)
		cfg.State = FileState(path)
		p := w.start(cfg, at(4))
		within(t, repaired, func() bool { return converged(append(all, p)...) })
		for range 50 {
			if err := p.SetState(t.Context(), ring.Active); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Minute)
		epoch := p.Entry().Epoch
		p.kill()
		saved, err := FileState(path).Load()
		if err != nil || saved.Epoch < epoch || len(saved.Seeds) != 3 {
			t.Fatalf("saved %+v, %v; want at least epoch %d", saved, err, epoch)
		}
		// Without its seeds it finds the others by what it has saved.
		cfg.Seeds = nil
		p = w.start(cfg, at(5))
		within(t, repaired, func() bool { return converged(append(all, p)...) })
		if got := p.Entry().Epoch; got <= epoch {
			t.Errorf("epoch %d after the restart, want above %d", got, epoch)
		}
		p.kill()
		if err := os.WriteFile(path, []byte("{broken"), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg.Seeds = w.config(4).Seeds
		p = w.start(cfg, at(6))
		within(t, repaired, func() bool {
			return converged(append(all, p)...) && all[0].status("n4").Gossip == at(6)
		})
		if p.logs.count("cannot read the state") != 1 {
			t.Error("nobody was told of the broken file")
		}
	})
}
