package member

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ringmod/ringmod/node/member/membertest"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

func entry(id string, epoch uint64) ring.Member {
	return ring.Member{
		ID: id, Boot: bootString(epoch + 1), Epoch: epoch, State: ring.Active, Role: ring.Node,
		Region: "eu", Weight: 1, Addr: id + ":8082", Spec: ring.DefaultSpec().Hash(),
	}
}

func quietTable(id string) *table { return newTable(slog.New(slog.DiscardHandler), entry(id, 1), "") }

func (t *table) view() *ringmodv1.View { return encodeView("test", ring.DefaultSpec(), t.clone()) }

// Tombstones go after a day, and do not come back from those who drop them later.
func TestTombstonesGo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := quietTable("a"), quietTable("b")
		exchange := func() {
			for _, err := range []error{a.merge("test", b.view()), b.merge("test", a.view())} {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		gone := entry("c", 7)
		gone.State = ring.Left
		a.mu.Lock()
		if err := a.put(gone); err != nil {
			t.Fatal(err)
		}
		a.mu.Unlock()
		time.Sleep(time.Hour)
		for hour := range 60 {
			exchange()
			a.sweep(t.Context(), 0, outAfter)
			b.sweep(t.Context(), 0, outAfter)
			_, inA := a.clone().Get("c")
			_, inB := b.clone().Get("c")
			if wantA, wantB := hour < 23, hour < 24; inA != wantA || inB != wantB {
				t.Errorf("hour %d: a has it %v, b has it %v", hour, inA, inB)
			}
			time.Sleep(time.Hour)
		}
		back := entry("c", 8)
		a.mu.Lock()
		if err := a.put(back); err != nil {
			t.Fatal(err)
		}
		a.mu.Unlock()
		exchange()
		if _, ok := b.clone().Get("c"); !ok {
			t.Error("a member that came back is not known")
		}
	})
}

func TestWrongTablesAreRefused(t *testing.T) {
	t.Parallel()
	good := func() *ringmodv1.Member { return encodeMember(entry("good", 5)) }
	for _, tt := range []struct {
		name string
		edit func(m *ringmodv1.Member)
	}{
		{"no id", func(m *ringmodv1.Member) { m.Id = "" }},
		{"long id", func(m *ringmodv1.Member) { m.Id = strings.Repeat("x", 65) }},
		{"separator in id", func(m *ringmodv1.Member) { m.Id = "a~b" }},
		{"control characters in id", func(m *ringmodv1.Member) { m.Id = "a\x1b[2J" }},
		{"no boot id", func(m *ringmodv1.Member) { m.BootId = 0 }},
		{"epoch 0", func(m *ringmodv1.Member) { m.Epoch = 0 }},
		{"last epoch", func(m *ringmodv1.Member) { m.Epoch = ring.MaxEpoch }},
		{"epoch far above", func(m *ringmodv1.Member) { m.Epoch = 1 << 40 }},
		{"unknown state", func(m *ringmodv1.Member) { m.State = 6 }},
		{"state that wraps", func(m *ringmodv1.Member) { m.State = 256 + 2 }},
		{"negative role", func(m *ringmodv1.Member) { m.Role = -255 }},
		{"no region", func(m *ringmodv1.Member) { m.Region = "" }},
		{"heavy", func(m *ringmodv1.Member) { m.Weight = 17 }},
		{"weight that wraps", func(m *ringmodv1.Member) { m.Weight = 1<<32 - 1 }},
		{"node without address", func(m *ringmodv1.Member) { m.GrpcAddress = "" }},
		{"long address", func(m *ringmodv1.Member) { m.GrpcAddress = strings.Repeat("x", 129) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := quietTable("a")
			if err := a.merge("test", &ringmodv1.View{Cluster: "test"}); err != nil {
				t.Fatal(err)
			}
			bad := good()
			tt.edit(bad)
			other := encodeMember(entry("other", 9))
			v := &ringmodv1.View{Cluster: "test", Members: []*ringmodv1.Member{bad, nil, other}, ViewSeq: ring.MaxEpoch}
			if err := a.merge("test", v); err != nil {
				t.Fatal(err)
			}
			if got := a.clone().Len(); got != 2 {
				t.Errorf("table holds %d entries, want a and other", got)
			}
			if got := a.refused.Load(); got != 2 {
				t.Errorf("refused %d, want 2", got)
			}
			if err := a.writeOwn(a.ownEntry()); err != nil || a.ownEntry().Epoch != 10 {
				t.Errorf("writing the own entry: %v, epoch %d, want 10", err, a.ownEntry().Epoch)
			}
		})
	}
	a := quietTable("a")
	if err := a.merge("other", quietTable("b").view()); err == nil || a.clone().Len() != 1 {
		t.Errorf("table of another cluster: %v", err)
	}
}

func TestTableIsBounded(t *testing.T) {
	t.Parallel()
	a := quietTable("a")
	v := &ringmodv1.View{Cluster: "test"}
	for i := range 2 * maxEntries {
		v.Members = append(v.Members, encodeMember(entry(fmt.Sprintf("m%d", i), 3)))
	}
	if err := a.merge("test", v); err != nil {
		t.Fatal(err)
	}
	if got := a.clone().Len(); got != maxEntries {
		t.Errorf("table holds %d entries, want %d", got, maxEntries)
	}
	if _, err := decodeView(make([]byte, maxStateSize+1)); err == nil {
		t.Error("a table of more than 4 MiB was read")
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		edit func(*Config)
		want string // in the error; empty: fine
	}{
		{"as it should be", func(*Config) {}, ""},
		{"all at their limits", func(c *Config) {
			c.Entry.ID = strings.Repeat("i", ring.MaxIDLen)
			c.Entry.Region = strings.Repeat("r", ring.MaxRegionLen)
			c.Entry.Zone = strings.Repeat("z", ring.MaxZoneLen)
			c.Entry.Addr = strings.Repeat("a", ring.MaxAddrLen)
			c.Entry.Weight, c.Entry.Features = ring.MaxWeight, 1<<64-1
		}, ""},
		{"no cluster", func(c *Config) { c.Cluster = "" }, "cluster name"},
		{"long cluster", func(c *Config) { c.Cluster = strings.Repeat("c", 256) }, "256 bytes"},
		{"no transport", func(c *Config) { c.Transport = nil }, "transport"},
		{"no spec", func(c *Config) { c.Spec = ring.Spec{} }, "algorithm"},
		{"long id", func(c *Config) { c.Entry.ID = strings.Repeat("i", 65) }, "65 bytes"},
		{"separator", func(c *Config) { c.Entry.ID = "a~b" }, "a~b"},
		{"starts left", func(c *Config) { c.Entry.State = ring.Left }, "nobody starts as left"},
		{"seed without port", func(c *Config) { c.Seeds = []string{"example.com"} }, "not host:port"},
		{"seed with port 0", func(c *Config) { c.Seeds = []string{"example.com:0"} }, "not host:port"},
		{"no key file", func(c *Config) { c.KeyFile = "/nowhere/keys" }, "gossip keys"},
		{"advertises nothing", func(c *Config) { c.Advertise = netip.IPv4Unspecified() }, "advertise address"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tr, err := membertest.New(1).Listen(at(1))
			if err != nil {
				t.Fatal(err)
			}
			cfg := (&world{}).config(1)
			cfg.Transport = tr
			tt.edit(&cfg)
			m, err := New(cfg)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("metadata takes %d bytes", len(delegate{m}.NodeMeta(512)))
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want something about %q", err, tt.want)
			}
		})
	}
}

func FuzzDecodeMeta(f *testing.F) {
	e := entry("n1", 3)
	b, err := proto.Marshal(meta{e, 1, 2, "v1.2.3"}.encode())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(gossipName(e.ID, e.Boot), b)
	f.Add("x", []byte{})
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		m, err := decodeMeta(name, b)
		if err != nil {
			return
		}
		if err := m.entry.Check(); err != nil {
			t.Error(err)
		}
		again, err := proto.Marshal(m.encode())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decodeMeta(name, again); err != nil || got != m {
			t.Errorf("got %+v, %v; want %+v", got, err, m)
		}
	})
}

func FuzzMerge(f *testing.F) {
	b, err := proto.Marshal(quietTable("b").view())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("garbage"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a := quietTable("a")
		v, err := decodeView(b)
		if err != nil {
			return
		}
		v.Cluster = "test"
		if err := a.merge("test", v); err != nil {
			t.Fatal(err)
		}
		for _, m := range a.clone().All() {
			if err := m.Check(); err != nil {
				t.Error(err)
			}
		}
		if err := a.writeOwn(a.ownEntry()); err != nil {
			t.Errorf("the table takes no more epochs: %v", err)
		}
	})
}

func FuzzDecodeClaim(f *testing.F) {
	f.Add(claim{"n1", 1, 2, time.Hour}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		c, ok := decodeClaim(b)
		if !ok {
			return
		}
		if got, ok := decodeClaim(c.encode()); !ok || got != c {
			t.Errorf("got %+v, want %+v", got, c)
		}
		_ = quietTable("n1").judge(c, time.Minute)
	})
}
