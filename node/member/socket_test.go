package member

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/ring"
)

// Three members over real sockets, encrypted: join, change, goodbye, restart.
func TestLoopback(t *testing.T) {
	t.Parallel()
	first := listen(t)
	start := func(id string, tr *NetTransport) (*Membership, func()) {
		m, err := New(Config{
			Cluster: "loopback",
			Entry: ring.Member{
				ID: id, State: ring.Active, Role: ring.Node, Region: "eu", Addr: "127.0.0.1:1",
			},
			Spec:      ring.DefaultSpec(),
			Transport: tr,
			Seeds:     []string{first.Addr().String(), "no.such.host.invalid:1"},
			Resolver:  noNames{},
			Logger:    slog.New(slog.NewTextHandler(t.Output(), nil)).With("node", id),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		return m, func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(5 * time.Second):
				t.Error("still runs 5s after its end")
			}
		}
	}
	a, stopA := start("a", first)
	defer stopA()
	b, stopB := start("b", listen(t))
	defer stopB()
	c, stopC := start("c", listen(t))
	sees := func(m *Membership, ids ...string) func() bool {
		return func() bool {
			return !slices.ContainsFunc(ids, func(id string) bool {
				_, in := m.View().Find(id)
				return !in || !m.Up(id)
			})
		}
	}
	for _, m := range []*Membership{a, b, c} {
		within(t, 10*time.Second, sees(m, "a", "b", "c"))
	}
	if err := b.SetReadOnly(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	within(t, repaired, func() bool {
		i, ok := a.View().Find("b")
		return ok && a.View().Member(i).ReadOnly
	})
	stopC()
	within(t, 10*time.Second, func() bool { return !a.Up("c") && !b.Up("c") })
	if _, in := a.View().Find("c"); !in {
		t.Error("c is out after a stop")
	}
	_, stopC = start("c", listen(t))
	defer stopC()
	within(t, 10*time.Second, func() bool { return a.Up("c") && b.Up("c") })
}

func listen(t *testing.T) *NetTransport {
	t.Helper()
	tr, err := Listen("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tr.Shutdown() })
	return tr
}

type noNames struct{}

func (noNames) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	return nil, errors.New("lookup " + host + ": no such host")
}

func TestListen(t *testing.T) {
	t.Parallel()
	tr := listen(t)
	if a := tr.Addr(); a.Port() == 0 || !a.Addr().IsLoopback() {
		t.Errorf("listens on %s", a)
	}
	if _, err := Listen(tr.Addr().String(), nil); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("listening twice: %v", err)
	}
	if _, err := Listen("nonsense", nil); err == nil {
		t.Error("listening on nonsense")
	}
	all, err := Listen(":0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = all.Shutdown() }()
	if !all.Addr().Addr().IsUnspecified() {
		t.Errorf("listens on %s, want all", all.Addr())
	}
}

// A dial to where nobody answers must not outlive the transport.
func TestShutdownEndsDials(t *testing.T) {
	t.Parallel()
	tr := listen(t)
	peer := listen(t)
	conn, err := tr.DialTimeout(peer.Addr().String(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		read <- err
	}()
	go func() { // takes the connection, as memberlist would
		<-peer.StreamCh()
	}()
	if err := tr.Shutdown(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-read:
		if err == nil {
			t.Error("read something")
		}
	case <-time.After(5 * time.Second):
		t.Error("connection outlives its transport")
	}
	if _, err := tr.DialTimeout(peer.Addr().String(), time.Second); err == nil {
		t.Error("dials after the end")
	}
}
