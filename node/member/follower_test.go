package member

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/ringmod/ringmod/internal/identity"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// A follower knows what the member it follows knows.
func TestFollower(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(3)
		ports := newPorts(t)
		for _, p := range all {
			ports.member(p)
		}
		f := ports.follow(nil, firstAddr)
		<-f.Joined()
		if !f.agrees(all[0]) || f.up() != "n1 n2 n3" {
			t.Fatalf("begins with %s", f.up())
		}
		if a, ok := f.Addr("n2"); a != "10.0.0.2:8082" || !ok {
			t.Errorf("address of n2: %q, %v", a, ok)
		}

		changed := f.Changed()
		if err := all[2].SetState(t.Context(), ring.Leaving); err != nil {
			t.Fatal(err)
		}
		within(t, repaired, func() bool { e, _ := f.Member("n3"); return e.State == ring.Leaving && f.agrees(all[0]) })
		<-changed
		if err := all[2].Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		within(t, repaired, func() bool { _, in := f.Member("n3"); return !in && f.up() == "n1 n2" && f.agrees(all[0]) })

		n4 := w.start(w.config(4), at(4))
		within(t, repaired, func() bool { return f.up() == "n1 n2 n4" && f.agrees(n4) })
		n4.kill()
		within(t, repaired, func() bool { return f.up() == "n1 n2" })
		if _, in := f.View().Find("n4"); !in || !f.agrees(all[0]) {
			t.Error("who is down is not in any more")
		}
		moved := w.config(4)
		moved.Entry.Addr = "10.0.0.44:8082"
		w.start(moved, at(44))
		within(t, repaired, func() bool { a, _ := f.Addr("n4"); return a == moved.Entry.Addr && f.Up("n4") })
		if s := f.Stats(); s.Joins != 1 || s.JoinFailures+s.Refused+s.ViewErrors != 0 || s.ViewChanges < 4 {
			t.Errorf("counted %+v", s)
		}
	})
}

// One after the other is lost; what was known stays.
func TestFollowerGoesOn(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(3)
		ports := newPorts(t)
		stops := make([]func(), 3)
		for i, p := range all {
			stops[i] = ports.member(p)
		}
		f := ports.follow(nil, firstAddr)
		<-f.Joined()
		digest := f.View().Digest()
		check := func(when string) {
			t.Helper()
			if f.up() != "n1 n2 n3" || f.View().Digest() != digest {
				t.Errorf("%s: knows %s", when, f.up())
			}
		}
		stops[0]()
		took := within(t, 3*time.Second, func() bool { return f.logs.count("following a member") == 2 })
		t.Logf("follows another one after %s", took)
		check("one away")
		stops[1]()
		stops[2]()
		time.Sleep(5 * time.Minute)
		check("all away")
		if got := f.logs.count("cannot be followed"); got != 3 {
			t.Errorf("complained %d times in 5m, want once for each", got)
		}
		ports.member(all[0])
		took = within(t, 2*followPauses, func() bool { return f.logs.count("following a member") == 3 })
		t.Logf("follows again %s after the first is back", took)
		if err := all[0].SetReadOnly(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		within(t, repaired, func() bool { e, _ := f.Member("n1"); return e.ReadOnly })
	})
}

// teller is a member that says what a test wants.
type teller struct {
	ringmodv1.UnimplementedClusterServiceServer

	says []*ringmodv1.WatchViewResponse
	ends error // after that; nil: silence
}

func (s *teller) WatchView(_ *ringmodv1.WatchViewRequest, stream grpc.ServerStreamingServer[ringmodv1.WatchViewResponse]) error {
	for _, msg := range s.says {
		if err := stream.Send(msg); err != nil {
			return err
		}
	}
	if s.ends == nil {
		<-stream.Context().Done()
	}
	return s.ends
}

func (p *ports) tell(addr string, says ...*ringmodv1.WatchViewResponse) (stop func()) {
	return p.serve(addr, func(r grpc.ServiceRegistrar) {
		ringmodv1.RegisterClusterServiceServer(r, &teller{says: says})
	})
}

// wholeView is what a member says first, whose table holds these entries.
func wholeView(entries ...ring.Member) *ringmodv1.WatchViewResponse {
	var members ring.Members
	for _, e := range entries {
		if _, err := members.Put(e); err != nil {
			panic(err)
		}
	}
	return &ringmodv1.WatchViewResponse{View: encodeView("test", ring.DefaultSpec(), &members)}
}

// A member that stands still is left.
func TestFollowerLeavesTheSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ports := newPorts(t)
		ports.tell("10.0.0.8:1")                                            // accepts and says nothing
		ports.tell("10.0.0.9:1", wholeView(entry("n1", 5), entry("n2", 6))) // falls silent
		f := ports.follow(nil, "10.0.0.8:1", "10.0.0.9:1")
		start := time.Now()
		<-f.Joined()
		if took := time.Since(start); took > firstWord+time.Second {
			t.Errorf("joined after %s", took)
		}
		time.Sleep(2 * time.Minute)
		if got := f.logs.count("no sign of life"); got < 3 || got > 5 {
			t.Errorf("left the silent %d times in 2m", got)
		}
		if f.up() != "n1 n2" {
			t.Errorf("knows %s", f.up())
		}
	})
}

func TestFollowerRefuses(t *testing.T) {
	t.Parallel()
	otherSpec := ring.DefaultSpec()
	otherSpec.Replicas = 3
	odd := entry("odd", 9)
	odd.Spec = otherSpec.Hash()
	for _, tt := range []struct {
		name string
		says func(*ringmodv1.WatchViewResponse)
		want string
	}{
		{"no view", func(m *ringmodv1.WatchViewResponse) { m.View = nil }, "it is a member of cluster"},
		{"another cluster", func(m *ringmodv1.WatchViewResponse) { m.View.Cluster = "staging" }, `it is a member of cluster \"staging\", this is one of \"test\"`},
		{"no spec", func(m *ringmodv1.WatchViewResponse) { m.View.Spec = nil }, "placement settings are missing"},
		{"unknown algorithm", func(m *ringmodv1.WatchViewResponse) { m.View.Spec.Algorithm = 9 }, "algorithm 9 is unknown"},
		{"negative numbers", func(m *ringmodv1.WatchViewResponse) { m.View.Spec.Replicas = 1<<32 - 1 }, "replicas must be"},
		{"another spec than the others", func(m *ringmodv1.WatchViewResponse) {
			m.View.Spec = encodeSpec(otherSpec)
			m.View.Members = append(m.View.Members, encodeMember(odd))
		}, "1 nodes place objects as it does and 2 otherwise"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ports := newPorts(t)
				bad := wholeView(entry("n1", 5), entry("n2", 6))
				tt.says(bad)
				ports.tell("10.0.0.8:1", bad)
				f := ports.follow(nil, "10.0.0.8:1", "10.0.0.9:1")
				time.Sleep(time.Minute)
				select {
				case <-f.Joined():
					t.Error("follows")
				default:
				}
				if got := f.logs.count(tt.want); got != 1 {
					t.Errorf("said %d times what is wrong, want once", got)
				}
				ports.tell("10.0.0.9:1", wholeView(entry("n1", 5)))
				within(t, time.Minute, func() bool { return f.up() == "n1" })
			})
		})
	}
}

// Members that begin know nobody, and those of a cluster made anew know nothing
// of the one before.
func TestFollowerBelievesSlowly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ports := newPorts(t)
		stop := ports.tell(firstAddr, wholeView(entry("n1", 50), entry("n2", 60), entry("n3", 70)))
		f := ports.follow(nil, firstAddr)
		<-f.Joined()
		stop()
		again := entry("n1", 2)
		again.Addr = "10.0.0.77:8082"
		// Signs of life, or else it would be left.
		stop = ports.serve(firstAddr, func(r grpc.ServiceRegistrar) {
			ringmodv1.RegisterClusterServiceServer(r, &ticker{first: wholeView(again)})
		})
		defer stop()
		time.Sleep(4 * time.Minute)
		if a, _ := f.Addr("n1"); f.up() != "n1 n2 n3" || a != "n1:8082" || len(f.View().Members()) != 3 {
			t.Errorf("believes after 4m: %s, n1 at %s", f.up(), a)
		}
		time.Sleep(2 * time.Minute)
		if a, _ := f.Addr("n1"); f.up() != "n1" || a != again.Addr || len(f.View().Members()) != 1 {
			t.Errorf("does not believe after 6m: %s, n1 at %s", f.up(), a)
		}
	})
}

// ticker says one thing first and then that it is there.
type ticker struct {
	ringmodv1.UnimplementedClusterServiceServer

	first *ringmodv1.WatchViewResponse
}

func (s *ticker) WatchView(_ *ringmodv1.WatchViewRequest, stream grpc.ServerStreamingServer[ringmodv1.WatchViewResponse]) error {
	msg := s.first
	for stream.Send(msg) == nil {
		msg = &ringmodv1.WatchViewResponse{View: &ringmodv1.View{Cluster: "test"}}
		select {
		case <-stream.Context().Done():
		case <-time.After(signOfLife):
		}
	}
	return nil
}

// directory resolves what it was told.
type directory struct {
	mu sync.Mutex
	to map[string]string
}

func (n *directory) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ip, ok := n.to[host]; ok {
		return []netip.Addr{netip.MustParseAddr(ip)}, nil
	}
	return nil, errors.New("lookup " + host + ": no such host")
}

// Names are looked up at each attempt.
func TestFollowerResolves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ports := newPorts(t)
		names := &directory{to: make(map[string]string)}
		ports.serve("10.0.0.9:8082", func(r grpc.ServiceRegistrar) {
			ringmodv1.RegisterClusterServiceServer(r, &ticker{first: wholeView(entry("n1", 5))})
		})
		f := ports.follow(func(c *FollowerConfig) { c.Resolver = names }, "nodes.example.com:8082")
		for _, step := range []struct{ ip, logged string }{
			{"", "seed cannot be resolved"}, {"10.0.0.8", "connection refused"}, {"10.0.0.9", "following a member"},
		} {
			names.mu.Lock()
			if step.ip != "" {
				names.to["nodes.example.com"] = step.ip
			}
			names.mu.Unlock()
			time.Sleep(2 * followPauses)
			if got := f.logs.count(step.logged); got != 1 {
				t.Errorf("%q is logged %d times, want once", step.logged, got)
			}
		}
	})
}

func TestFollowerConfigIsChecked(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		cfg  FollowerConfig
		want string
	}{
		{FollowerConfig{From: []string{"h:1"}}, "needs its name"},
		{FollowerConfig{Cluster: "c"}, "address of a member"},
		{FollowerConfig{Cluster: "c", From: []string{"h"}}, "not host:port"},
		{FollowerConfig{Cluster: "c", From: []string{"h:0"}}, "not host:port"},
	} {
		if _, err := NewFollower(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want something about %q", err, tt.want)
		}
	}
	f, err := NewFollower(FollowerConfig{Cluster: "c", From: []string{"h:1"}})
	if err != nil {
		t.Fatal(err)
	}
	if f.View() == nil || len(f.Members()) != 0 || f.Up("n1") {
		t.Error("knows somebody before it has asked anybody")
	}
}

// certified returns the credentials of a member, from files as a process has them.
func certified(t *testing.T, ca *identity.CA, role identity.Role, id string) *identity.Credentials {
	t.Helper()
	cert, key, err := ca.Issue(identity.Identity{Cluster: "test", Role: role, ID: id})
	if err != nil {
		t.Fatal(err)
	}
	root, _, err := ca.PEM()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cfg := identity.Config{Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key"), CA: filepath.Join(dir, "ca")}
	for name, b := range map[string][]byte{cfg.Cert: cert, cfg.Key: key, cfg.CA: root} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := identity.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// With certificates it follows only who proves to be who it should be.
func TestFollowerChecksIdentity(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ca, err := identity.NewCA("test")
		if err != nil {
			t.Fatal(err)
		}
		ports := newPorts(t)
		serve := func(addr, id string) (stop func()) {
			return ports.serve(addr, func(r grpc.ServiceRegistrar) {
				ringmodv1.RegisterClusterServiceServer(r, &ticker{first: wholeView(entry("n1", 5), entry("n2", 6))})
			}, certified(t, ca, identity.Node, id).ServerOptions()...)
		}
		stop := serve("10.0.0.9:1", "n1")
		serve("n2:8082", "n3") // pretends to be n2
		us := certified(t, ca, identity.Gateway, "g1")
		f := ports.follow(func(c *FollowerConfig) { c.Credentials = us.Client }, "10.0.0.9:1")
		<-f.Joined()
		stop()
		time.Sleep(time.Minute)
		if got := f.logs.count("it names node n3, not node n2"); got != 1 {
			t.Errorf("said %d times that another member answers, want once", got)
		}
		serve("n1:8082", "n1")
		within(t, time.Minute, func() bool { return f.logs.count("following a member") == 2 })
	})
}

// Nothing that a member sends breaks a follower.
func FuzzFollowerTakes(f *testing.F) {
	good := wholeView(entry("n1", 5), entry("n2", 6))
	good.Down = []string{"n2", "n9"}
	for _, msg := range []*ringmodv1.WatchViewResponse{good, {View: &ringmodv1.View{Cluster: "test", ViewSeq: 1 << 63}}} {
		b, err := proto.Marshal(msg)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, b)
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		follower, err := NewFollower(FollowerConfig{Cluster: "test", From: []string{"h:1"}})
		if err != nil {
			t.Fatal(err)
		}
		told := &telling{began: time.Now()}
		for _, b := range [][]byte{first, second} {
			var msg ringmodv1.WatchViewResponse
			if proto.Unmarshal(b, &msg) != nil {
				return
			}
			if follower.take(told, &msg) != nil {
				return
			}
			_ = follower.Merge(msg.GetView())
		}
		for _, s := range follower.Members() {
			if err := s.Entry.Check(); err != nil {
				t.Error(err)
			}
		}
		if err := follower.views.build(); err != nil && len(follower.Members()) < 100 {
			t.Error(err) // so few can be placed always
		}
	})
}

// A table that is too large is cut.
func TestFollowerIsBounded(t *testing.T) {
	t.Parallel()
	f, err := NewFollower(FollowerConfig{Cluster: "test", From: []string{"h:1"}})
	if err != nil {
		t.Fatal(err)
	}
	msg := wholeView()
	for i := range 2 * maxEntries {
		msg.View.Members = append(msg.View.Members, encodeMember(entry(fmt.Sprintf("m%d", i), 3)))
	}
	if err := f.take(&telling{began: time.Now()}, msg); err != nil {
		t.Fatal(err)
	}
	if got := len(f.Members()); got != maxEntries {
		t.Errorf("knows %d, want %d", got, maxEntries)
	}
}
