package sim

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/node/member/membertest"
	"github.com/ringmod/ringmod/ring"
)

var update = flag.Bool("update", false, "write the transcripts anew")

// story is a run that a person has thought out. What it tells is compared with
// testdata: only what must be the same each time.
type story struct {
	*World

	lines   []string
	fetched int // fetches that were told
}

// tell runs f in a world of its own and compares what it tells with testdata/name.txt.
// All invariants must hold too.
func tell(t *testing.T, name string, f func(s *story)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, ring.DefaultSpec())
		w.delays(500*time.Microsecond, 40*time.Millisecond)
		for mod := range zipSizes {
			w.out.publish(mod)
		}
		s := &story{World: w}
		f(s)
		for _, bad := range slices.Concat(w.end(), w.book.check()) {
			t.Error(bad)
		}
		path := filepath.Join("testdata", name+".txt")
		got := strings.Join(s.lines, "\n") + "\n"
		if *update {
			_ = os.MkdirAll("testdata", 0o755)
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("got:\n%s\nwant:\n%s", got, want)
		}
		if t.Failed() && *logs {
			for _, id := range w.order {
				t.Logf("log of %s:\n%s", id, w.machines[id].logs)
			}
		}
	})
}

func (s *story) say(format string, args ...any) {
	s.lines = append(s.lines, fmt.Sprintf(format, args...))
}

// enlist starts nodes and gateways of a region and waits until all see all.
func (s *story) enlist(region string, nodes, gateways int) {
	s.t.Helper()
	for range nodes {
		s.run(s.add(fmt.Sprintf("n%d", len(s.nodes(""))+1), region, "", ring.Node))
	}
	for range gateways {
		s.run(s.add(fmt.Sprintf("g%d", len(s.gateways())+1), region, "", ring.Gateway))
	}
	if _, err := s.converge(converging); err != nil {
		s.t.Fatal(err)
	}
	s.book.begin()
	s.say("region %s: %d nodes, %d gateways", region, nodes, gateways)
}

// hand gives a version of a module to all replicas of a region.
func (s *story) hand(region string, mod int) {
	var holders []string
	for _, id := range s.replicas(region, file(mod, 0, ".zip").String()) {
		s.give(s.machines[id], mod, 0)
		holders = append(holders, id)
	}
	s.say("%s@%s is held by %s", modulePath(mod), versionOf(0), strings.Join(holders, " and "))
}

// replicas returns the ids of a target's replicas in a region, the owner first.
func (s *story) replicas(region, name string) []string {
	e := s.look()
	ranks := e.ranks(region, mustTarget(name))
	return ranks[:min(len(ranks), s.spec.Replicas)]
}

// ask gets a target through a gateway and tells what came, and who fetched it.
func (s *story) ask(gw, name string) answer {
	a := s.clients.get(s.machines[gw], mustTarget(name), how{})
	s.say("%s %s: %s%s", gw, short(name), outcome(a), s.newFetches())
	return a
}

func outcome(a answer) string {
	switch {
	case a.err != nil:
		return "broken off"
	case a.status == 200 && a.wrong == "":
		return "200, whole"
	default:
		return fmt.Sprintf("%d %s%s", a.status, a.text, a.wrong)
	}
}

func short(name string) string { return strings.TrimPrefix(name, "example.com/") }

// newFetches tells who asked upstream for modules since it was called last.
func (s *story) newFetches() string {
	all := s.out.history()[s.fetched:]
	s.fetched += len(all)
	var text strings.Builder
	for _, f := range all {
		if f.target.Kind.Sumdb() {
			continue
		}
		how := ""
		if f.err != nil {
			how = ", in vain"
		}
		fmt.Fprintf(&text, "; %s fetched %s%s", f.by, short(f.target.String()), how)
	}
	return text.String()
}

// crowd lets clients ask all gateways for held versions until stop is called, which
// tells how many requests there were, and how many failed.
func (s *story) crowd(mods int) (stop func()) {
	begin := len(s.book.answers)
	stopped := make(chan struct{})
	var loops []chan struct{}
	for i, gw := range s.gateways() {
		r := rand.New(rand.NewPCG(1, uint64(i)))
		ended := make(chan struct{})
		loops = append(loops, ended)
		go func() {
			defer close(ended)
			for {
				select {
				case <-stopped:
					return
				case <-time.After(100 * time.Millisecond):
					s.clients.get(gw, file(r.IntN(mods), 0, []string{".info", ".mod", ".zip"}[r.IntN(3)]), how{})
				}
			}
		}()
	}
	return func() {
		close(stopped)
		for _, ended := range loops {
			<-ended
		}
		bad := 0
		for _, a := range s.book.answers[begin:] {
			if a.status != 200 || !a.whole || a.wrong != "" {
				bad++
				s.t.Error(s.book.describe(a), a.err)
			}
		}
		s.say("clients: %d failed%s", bad, s.newFetches())
	}
}

// agree waits until all see all and place alike again, and tells whether that took
// longer than it may.
func (s *story) agree() {
	const limit = 30 * time.Second
	took, err := s.converge(limit)
	if err != nil {
		s.say("no one view within %s", limit)
		s.t.Error(err)
		return
	}
	s.t.Logf("one view after %s", took)
	s.say("one view within %s", limit)
}

func TestKillOwner(t *testing.T) {
	t.Parallel()
	tell(t, "kill_owner", func(s *story) {
		s.enlist("r1", 4, 2)
		s.hand("r1", 2)
		const zip = "example.com/m2/@v/v1.0.0.zip"
		s.ask("g1", zip)
		owner := s.replicas("r1", zip)[0]
		s.kill(s.machines[owner])
		s.say("kill %s, the owner", owner)
		s.ask("g1", zip)
		s.ask("g2", zip)
		s.ask("g2", "example.com/m2/@v/v1.0.0.info")
		s.ask("g1", "example.com/m3/@v/v1.0.0.zip")
		time.Sleep(time.Minute)
		s.say("a minute later")
		s.ask("g1", zip)
		s.restart(s.machines[owner])
		s.say("%s is back", owner)
		s.agree()
		s.ask("g2", zip)
	})
}

func TestFreezeCoordinatorInMidFill(t *testing.T) {
	t.Parallel()
	tell(t, "freeze_coordinator", func(s *story) {
		s.enlist("r1", 4, 1)
		const zip = "example.com/m2/@v/v1.0.0.zip"
		s.setMood(2, moodSlow)
		owner := s.replicas("r1", zip)[0]
		time.AfterFunc(7*time.Second, func() { s.freeze(s.machines[owner]) })
		s.say("upstream is slow; %s, the owner, freezes when it has sent half of the zip", owner)
		a := s.ask("g1", zip)
		if took := a.end.Sub(a.start); took > 30*time.Second {
			t.Errorf("took %s", took)
		}
		s.thaw(s.machines[owner])
		s.say("%s thaws", owner)
		s.agree()
		s.ask("g1", zip)
	})
}

func TestSplitHeals(t *testing.T) {
	t.Parallel()
	tell(t, "split", func(s *story) {
		s.enlist("r1", 6, 2)
		s.hand("r1", 1)
		s.hand("r1", 2)
		half := s.named([]string{"n1", "n2", "n3", "g1"})
		other := s.named([]string{"n4", "n5", "n6", "g2"})
		before := s.live()[0].member.View().Digest()
		c := cut{from: half, to: other, both: true, kind: membertest.All}
		s.sever(c)
		s.say("cut %s", c)
		time.Sleep(time.Minute)
		s.say("a minute later nobody has moved data: %v", s.disagreement() != "" && s.sameDigest(before))
		s.mend(c)
		s.say("mend")
		s.agree()
		s.say("nobody has moved data: %v", s.sameDigest(before))
		s.ask("g1", "example.com/m2/@v/v1.0.0.zip")
		s.ask("g2", "example.com/m2/@v/v1.0.0.zip")
	})
}

func (s *story) sameDigest(digest uint64) bool {
	return !slices.ContainsFunc(s.live(), func(p *process) bool { return p.member.View().Digest() != digest })
}

func TestRegionCutOff(t *testing.T) {
	t.Parallel()
	tell(t, "region_cut", func(s *story) {
		s.enlist("r1", 2, 1)
		s.enlist("r2", 2, 1)
		s.enlist("r3", 2, 1)
		s.hand("r3", 2)
		time.Sleep(time.Minute)
		c := cut{from: s.named([]string{"n5", "n6", "g3"}), to: s.named([]string{"n1", "n2", "g1", "n3", "n4", "g2"}), both: true, kind: membertest.All}
		s.sever(c)
		s.say("cut %s", c)
		s.ask("g3", "example.com/m2/@v/v1.0.0.zip")
		s.ask("g3", "example.com/m1/@v/v1.0.0.mod")
		s.ask("g1", "example.com/m1/@v/v1.0.0.mod")
		s.ask("g2", "example.com/m1/@v/v1.0.0.mod")
		time.Sleep(time.Minute)
		s.mend(c)
		s.say("a minute later: mend")
		s.agree()
		for _, gw := range []string{"g1", "g2", "g3"} {
			s.ask(gw, "example.com/m1/@v/v1.0.0.mod")
			s.ask(gw, "example.com/m2/@v/v1.0.0.zip")
		}
	})
}

func TestRollingRestart(t *testing.T) {
	t.Parallel()
	tell(t, "rolling_restart", func(s *story) {
		s.enlist("r1", 4, 2)
		for mod := range 3 {
			s.hand("r1", mod)
		}
		digest := s.live()[0].member.View().Digest()
		stop := s.crowd(3)
		for _, m := range s.nodes("") {
			s.World.stop(m)
			time.Sleep(3 * time.Second)
			s.restart(m)
			time.Sleep(5 * time.Second)
			s.say("%s has stopped and begun again", m.id)
		}
		stop()
		s.agree()
		s.say("nobody has moved data: %v", s.sameDigest(digest))
	})
}

func TestGatewayBeforeNodes(t *testing.T) {
	t.Parallel()
	tell(t, "gateway_first", func(s *story) {
		n := s.add("n1", "r1", "", ring.Node)
		g := s.add("g1", "r1", "", ring.Gateway)
		s.sever(cut{from: s.gateways(), upstream: true, kind: membertest.All})
		s.run(g)
		s.say("g1 runs, no node does, and upstream is out of its reach")
		s.ask("g1", "example.com/m1/@v/v1.0.0.mod")
		s.run(n)
		s.say("n1 runs")
		s.agree()
		s.ask("g1", "example.com/m1/@v/v1.0.0.mod")
	})
}
