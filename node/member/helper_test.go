package member

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/node/member/membertest"
	"github.com/ringmod/ringmod/ring"
)

// repaired is when everybody knows what was gossiped: mostly that takes half a second,
// but gossip may pass somebody by, and one of the next full exchanges has to tell it.
const repaired = time.Minute

// world is a cluster in one bubble.
type world struct {
	t   *testing.T
	net *membertest.Network
	all []*proc
}

// proc is one process of it.
type proc struct {
	*Membership
	t         *testing.T
	id        string
	addr      netip.AddrPort
	transport *membertest.Transport
	logs      *logBuffer
	cancel    context.CancelFunc
	done      chan struct{}
	err       error // of Run, once done is closed
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// inBubble runs f in virtual time, and ends all processes after it.
func inBubble(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: membertest.New(1)}
		defer func() {
			for _, p := range w.all {
				p.cancel()
			}
			for _, p := range w.all {
				<-p.done
			}
			time.Sleep(time.Minute) // for the timers of memberlist
			if t.Failed() {
				for _, p := range w.all {
					p.logs.mu.Lock()
					t.Logf("log of %s:\n%s", p.id, p.logs.b.String())
					p.logs.mu.Unlock()
				}
			}
		}()
		f(w)
	})
}

func at(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 8083)
}

// config describes the node n1 at the address at(1), and so on. All know at(1).
func (w *world) config(n int) Config {
	return Config{
		Cluster: "test",
		Entry: ring.Member{
			ID: fmt.Sprintf("n%d", n), State: ring.Active, Role: ring.Node, Region: "eu",
			Addr: fmt.Sprintf("10.0.0.%d:8082", n),
		},
		Spec:  ring.DefaultSpec(),
		Seeds: []string{at(1).String()},
	}
}

func (w *world) open(addr netip.AddrPort) *membertest.Transport {
	w.t.Helper()
	tr, err := w.net.Listen(addr)
	if err != nil {
		w.t.Fatal(err)
	}
	return tr
}

// start runs cfg at an address.
func (w *world) start(cfg Config, addr netip.AddrPort) *proc {
	w.t.Helper()
	p := &proc{t: w.t, id: cfg.Entry.ID, addr: addr, logs: &logBuffer{}, done: make(chan struct{})}
	p.transport = w.open(addr)
	cfg.Transport = p.transport
	cfg.Logger = slog.New(slog.NewTextHandler(p.logs, nil))
	var err error
	if p.Membership, err = New(cfg); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	p.cancel = cancel
	go func() {
		defer close(p.done)
		p.err = p.Run(ctx)
	}()
	w.all = append(w.all, p)
	return p
}

// startAll starts n1 to nN, and waits until all see all.
func (w *world) startAll(n int, edit ...func(*Config)) []*proc {
	w.t.Helper()
	var all []*proc
	for i := range n {
		cfg := w.config(i + 1)
		for _, f := range edit {
			f(&cfg)
		}
		all = append(all, w.start(cfg, at(i+1)))
	}
	within(w.t, repaired, func() bool { return converged(all...) })
	return all
}

// kill ends a process as kill -9 does.
func (p *proc) kill() {
	if err := p.transport.Shutdown(); err != nil {
		p.t.Error(err)
	}
	p.stop()
}

func (p *proc) stop() {
	p.cancel()
	<-p.done
}

// sees returns the ids that p holds for up.
func (p *proc) sees() []string {
	var ids []string
	for _, s := range p.Members() {
		if s.Up {
			ids = append(ids, s.Entry.ID)
		}
	}
	return ids
}

func (p *proc) status(id string) Status {
	for _, s := range p.Members() {
		if s.Entry.ID == id {
			return s
		}
	}
	return Status{}
}

func (p *proc) owns(id string) bool {
	_, ok := p.View().Find(id)
	return ok
}

// converged tells whether all see all, and place alike.
func converged(all ...*proc) bool {
	var ids []string
	for _, p := range all {
		ids = append(ids, p.id)
	}
	slices.Sort(ids)
	for _, p := range all {
		if !slices.Equal(p.sees(), ids) || p.View().Digest() != all[0].View().Digest() {
			return false
		}
	}
	return true
}

// within waits for ok and returns how long it took.
func within(t *testing.T, limit time.Duration, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > limit {
			t.Fatalf("not within %s", limit)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(start)
}

// memState keeps a Saved, and counts.
type memState struct {
	mu    sync.Mutex
	saved Saved
	saves int
	err   error
}

func (s *memState) Load() (Saved, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saved, s.err
}

func (s *memState) Save(saved Saved) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if saved.Epoch < s.saved.Epoch {
		return fmt.Errorf("epoch falls from %d to %d", s.saved.Epoch, saved.Epoch)
	}
	s.saved = saved
	s.saves++
	return nil
}
