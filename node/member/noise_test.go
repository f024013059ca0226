package member

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"google.golang.org/protobuf/proto"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// Whatever arrives, nothing ends and the table stays as it is. Half of what arrives
// are damaged copies of what members say.
func TestNoiseHarmsNobody(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(3)
		noise := w.open(at(66))
		defer func() { _ = noise.Shutdown() }()
		rnd := rand.New(rand.NewPCG(1, 2))
		label := append([]byte{244, byte(len("test"))}, "test"...) // hasLabelMsg
		meta := delegate{all[0].Membership}.NodeMeta(512)
		state := delegate{all[0].Membership}.LocalState(false)
		for range 3000 {
			var b []byte
			switch rnd.IntN(3) {
			case 0:
				b = make([]byte, rnd.IntN(600))
				for i := range b {
					b[i] = byte(rnd.Uint32())
				}
			case 1:
				b = bytes.Clone(meta)
			case 2:
				b = bytes.Clone(state)
			}
			for range rnd.IntN(4) {
				if len(b) > 0 {
					b[rnd.IntN(len(b))] = byte(rnd.Uint32())
				}
			}
			b = append([]byte{byte(rnd.IntN(16))}, b...) // every type of message
			if rnd.IntN(2) == 0 {
				b = append(bytes.Clone(label), b...)
			}
			if _, err := noise.WriteTo(b, at(1).String()); err != nil {
				t.Fatal(err)
			}
			delegate{all[0].Membership}.NotifyMsg(b)
			delegate{all[0].Membership}.MergeRemoteState(b, true)
			if rnd.IntN(10) == 0 {
				conn, err := noise.DialTimeout(at(1).String(), time.Second)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = conn.Write(b)
				conn.Close()
			}
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		for _, s := range all[0].Members() {
			if err := s.Entry.Check(); err != nil {
				t.Error(err)
			}
		}
		if !converged(all...) {
			t.Errorf("n1 sees %v", all[0].sees())
		}
		if got := all[0].logs.count("\n"); got > 800 {
			t.Errorf("%d lines of log", got)
		}
	})
}

// says is what a member that is not ours says of itself.
type says []byte

func (s says) NodeMeta(int) []byte             { return s }
func (s says) NotifyMsg([]byte)                {}
func (s says) GetBroadcasts(int, int) [][]byte { return nil }
func (s says) LocalState(bool) []byte          { return s }
func (s says) MergeRemoteState([]byte, bool)   {}

// Who does not say properly who it is does not get in, and is spoken of once.
func TestWrongMetadataIsRefused(t *testing.T) {
	t.Parallel()
	encode := func(edit func(*ringmodv1.Member)) []byte {
		p := meta{entry: entry("bad", 5)}.encode()
		edit(p.GetMember())
		b, err := proto.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, tt := range []struct {
		name string
		meta []byte
		want string
	}{
		{"nothing", nil, "it speaks protocol 0 to 0"},
		{"garbage", []byte("garbage"), "reading metadata"},
		{"as much garbage as fits", bytes.Repeat([]byte{0xff}, memberlist.MetaMaxSize), "reading metadata"},
		{"a later version", encode(func(m *ringmodv1.Member) { m.ProtocolMin, m.ProtocolMax = 2, 3 }), "it speaks protocol 2 to 3, this process 1"},
		{"another name", encode(func(m *ringmodv1.Member) { m.Id = "n1" }), "metadata belongs to n1"},
		{"no region", encode(func(m *ringmodv1.Member) { m.Region = "" }), "region"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(w *world) {
				t := w.t
				all := w.startAll(2)
				c := memberlist.DefaultLANConfig()
				c.Name, c.Label, c.Transport = gossipName("bad", bootString(6)), "test", w.open(at(66))
				c.AdvertiseAddr, c.AdvertisePort = at(66).Addr().String(), int(at(66).Port())
				c.Delegate, c.LogOutput = says(tt.meta), io.Discard
				bad, err := memberlist.Create(c)
				if err != nil {
					t.Fatal(err)
				}
				for range 12 {
					_, _ = bad.Join([]string{at(1).String()})
					time.Sleep(10 * time.Second)
				}
				if !converged(all...) || len(all[0].Members()) != 2 || all[0].Stats().Refused == 0 {
					t.Errorf("n1 sees %v, counted %+v", all[0].sees(), all[0].Stats())
				}
				if got := all[0].logs.count(tt.want); got < 1 || got > 2 { // the entry, and the table
					t.Errorf("said %d times what is wrong, want once", got)
				}
				if err := bad.Shutdown(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// names is a DNS whose answers change.
type names struct {
	mu    sync.Mutex
	addrs []netip.Addr
	err   error
	asked int
}

func (n *names) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	return n.addrs, n.err
}

func (n *names) set(err error, addrs ...netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addrs, n.err = addrs, err
}

func TestSeedsAreResolvedEachTime(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		dns := &names{err: errors.New("lookup seeds: no such host")}
		cfg := w.config(1)
		cfg.Seeds, cfg.Resolver = []string{"seeds:8083"}, dns
		p := w.start(cfg, at(1))
		time.Sleep(5 * time.Minute)
		if got := p.logs.count("seed cannot be resolved"); got != 1 {
			t.Errorf("said %d times that a seed cannot be resolved, want once", got)
		}
		dns.set(nil, at(1).Addr()) // itself
		time.Sleep(5 * time.Minute)
		if got := p.Stats(); got.Joins != 0 {
			t.Errorf("joined itself: %+v", got)
		}
		other := w.config(2)
		other.Seeds = nil
		q := w.start(other, at(2))
		dns.set(nil, at(1).Addr(), at(2).Addr())
		took := within(t, 25*time.Second, func() bool { return converged(p, q) })
		t.Logf("found %s after the name had its address", took)
		joins := p.Stats().Joins
		time.Sleep(5 * time.Minute)
		if got := p.Stats().Joins; got != joins {
			t.Errorf("joined %d times more what is there", got-joins)
		}
	})
}

// A dead address is tried ever less often.
func TestRejoinBacksOff(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(3)
		all[2].kill()
		before := all[0].Stats().Joins
		time.Sleep(9 * time.Minute)
		// Alone it is the one of each round.
		if got := all[0].Stats().Joins - before; got < 20 || got > 75 {
			t.Errorf("%d attempts in 9 minutes", got)
		}
	})
}

// An instance that has lost its epochs outranks what the others remember.
func TestRestartWithoutState(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(3)
		for range 20 {
			if err := all[2].SetState(t.Context(), ring.Active); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		all[2].kill()
		cfg := w.config(3)
		cfg.Entry.Addr = "10.0.0.77:8082"
		back := w.start(cfg, at(77))
		took := within(t, repaired, func() bool {
			addr, _ := all[0].Addr("n3")
			return addr == cfg.Entry.Addr && converged(all[0], all[1], back)
		})
		t.Logf("known at the new address after %s", took)
	})
}

func TestOtherSpecOwnsNothing(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(2)
		cfg := w.config(3)
		cfg.Spec.Replicas = 3
		other := w.start(cfg, at(3))
		within(t, 10*time.Second, func() bool { return all[0].Up("n3") && other.Up("n1") })
		time.Sleep(time.Second)
		if all[0].owns("n3") || other.owns("n1") {
			t.Error("a member of another spec is an owner")
		}
		if all[0].logs.count("other placement settings") != 1 {
			t.Error("nobody was told")
		}
	})
}

func TestLogLines(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	w := newLogWriter(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})))
	for _, tt := range []struct{ line, want string }{
		{"2006/01/02 15:04:05 [DEBUG] memberlist: a\n", "level=DEBUG msg=memberlist text=a\n"},
		{"2006/01/02 15:04:05 [INFO] memberlist: b\n", "level=INFO msg=memberlist text=b\n"},
		{"2006/01/02 15:04:05 [WARN] memberlist: c [x] d\n", "level=WARN msg=memberlist text=\"c [x] d\"\n"},
		{"2006/01/02 15:04:05 [ERR] memberlist: e\n", "level=ERROR msg=memberlist text=e\n"},
		{"[ERR] Failed to f\n", "level=ERROR msg=memberlist text=\"Failed to f\"\n"},
		{"Err: g\n", "level=WARN msg=memberlist text=\"Err: g\"\n"},
	} {
		b.Reset()
		if n, err := w.Write([]byte(tt.line)); n != len(tt.line) || err != nil {
			t.Errorf("write: %d, %v", n, err)
		}
		if got := b.String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	b.Reset()
	for range 1000 {
		_, _ = w.Write([]byte("[ERR] memberlist: " + strings.Repeat("x", 10000)))
	}
	if got := b.Len(); got > logPerFill*(logLineMax+100) {
		t.Errorf("a flood of errors takes %d bytes of log", got)
	}
}
