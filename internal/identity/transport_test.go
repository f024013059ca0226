package identity

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/ring"
)

func TestWhoMayConnect(t *testing.T) {
	t.Parallel()
	ours, other, staging := newCA(t, "ringmod"), newCA(t, "ringmod"), newCA(t, "staging")
	both := slices.Concat(ours.bundle(t), other.bundle(t), staging.bundle(t))
	trusting := func(p pair) *Credentials { return open(t, files(t, p, both)) }
	node := func(ca *CA) *Credentials { return trusting(ca.issue(t, "spiffe://ringmod/node/n1")) }
	stale := func() pair { // was good when the process began
		return ours.forge(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, "spiffe://ringmod/node/n1")
	}
	// with puts a certificate into use that Open would refuse.
	with := func(p pair) *Credentials {
		c := node(ours)
		cert, err := parsePair(p.cert, p.key)
		if err != nil {
			t.Fatal(err)
		}
		m := *c.now.Load()
		m.cert = cert
		c.now.Store(&m)
		return c
	}
	strict := func(uri string) *Credentials { return ours.member(t, uri) }
	const refused = "connection error" // the reason stands in the log of the server
	const n1, n2 = "spiffe://ringmod/node/n1", "spiffe://ringmod/node/n2"
	for _, tt := range []struct {
		name           string
		server, client *Credentials
		id             string
		role           ring.Role
		says           string // the client; empty: it may connect
		logs           string // the server
	}{
		{name: "node to node", server: strict(n1), client: strict(n2), id: "n1", role: ring.Node},
		{name: "node to itself", server: strict(n1), client: strict(n1), id: "n1", role: ring.Node},
		{name: "gateway to node", server: strict(n1), client: strict("spiffe://ringmod/gateway/g1"), id: "n1", role: ring.Node},
		{name: "node to gateway", server: strict("spiffe://ringmod/gateway/g1"), client: strict(n1), id: "g1", role: ring.Gateway},
		{name: "operator to any member", server: strict(n1), client: strict("spiffe://ringmod/operator/me")},
		{name: "gateway to any node", server: strict(n1), client: strict("spiffe://ringmod/gateway/g1"), role: ring.Node},
		{
			name: "another member", server: strict(n1), client: strict(n2), id: "n3", role: ring.Node,
			says: "names node n1, not node n3",
		},
		{
			name: "another member with a longer id", server: strict("spiffe://ringmod/node/n11"), client: strict(n2), id: "n1", role: ring.Node,
			says: "names node n11, not node n1",
		},
		{
			name: "node certificate used as gateway", server: strict(n1), client: strict(n2), id: "n1", role: ring.Gateway,
			says: "names node n1, not gateway n1",
		},
		{
			name: "gateway certificate used as node", server: strict("spiffe://ringmod/gateway/n1"), client: strict(n2), id: "n1", role: ring.Node,
			says: "names gateway n1, not node n1",
		},
		{
			name: "gateway where any node will do", server: strict("spiffe://ringmod/gateway/g1"), client: strict(n2), role: ring.Node,
			says: "names gateway g1, not a node",
		},
		{
			name: "operator certificate used by a server", server: strict("spiffe://ringmod/operator/me"), client: strict(n2),
			says: "operator me cannot be a member",
		},
		{
			name: "server of another CA", server: node(other), client: strict(n2), id: "n1", role: ring.Node,
			says: "node n1 was not made by our CA",
		},
		{
			name: "client of another CA", server: strict(n1), client: node(other), id: "n1", role: ring.Node,
			says: refused, logs: "node n1 was not made by our CA",
		},
		{
			name: "server of another cluster of the same CA", client: node(ours), id: "n1", role: ring.Node,
			server: trusting(ours.issue(t, "spiffe://staging/node/n1")),
			says:   `node n1 is of cluster staging, not ringmod`,
		},
		{
			name: "client of another cluster of the same CA", server: node(ours), id: "n1", role: ring.Node,
			client: func() *Credentials {
				c := trusting(ours.issue(t, "spiffe://staging/gateway/g1"))
				m := *c.now.Load()
				m.self.Cluster = "ringmod"
				c.now.Store(&m)
				return c
			}(),
			says: refused, logs: `gateway g1 is of cluster staging, not ringmod`,
		},
		{
			name: "expired server", server: with(stale()), client: strict(n2), id: "n1", role: ring.Node,
			says: "certificate of node n1 expired",
		},
		{
			name: "expired client", server: strict(n1), client: with(stale()), id: "n1", role: ring.Node,
			says: refused, logs: "certificate of node n1 expired",
		},
		{
			name: "nobody", server: strict(n1), client: with(ours.forge(t, nil)), id: "n1", role: ring.Node,
			says: refused, logs: "it names nobody",
		},
		{
			name: "client certificate for servers alone", server: strict(n1), id: "n1", role: ring.Node,
			client: with(ours.forge(t, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, n2)),
			says:   refused, logs: "not for both",
		},
		{
			name: "server certificate for clients alone", client: strict(n2), id: "n1", role: ring.Node,
			server: with(ours.forge(t, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, n1)),
			says:   "not for both",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			logs := &logBuffer{}
			tt.server.log = logs.logger()
			_, l := serve(t, tt.server)
			err := call(t.Context(), dial(t, l, tt.client.Client(tt.id, tt.role)))
			if tt.says == "" {
				if err != nil || logs.String() != "" {
					t.Errorf("got %v, and the server says %s", err, logs)
				}
				return
			}
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want Unavailable with %q", err, tt.says)
			}
			if tt.logs != "" && logs.count(tt.logs) == 0 {
				t.Errorf("server says %s, want %q", logs, tt.logs)
			}
		})
	}
}

func TestNoCertificateIsRefused(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "ringmod")
	logs := &logBuffer{}
	server := ca.member(t, "spiffe://ringmod/node/n1")
	server.log = logs.logger()
	_, l := serve(t, server)
	for name, creds := range map[string]credentials.TransportCredentials{
		"plain":                     insecure.NewCredentials(),
		"TLS without a certificate": credentials.NewTLS(nil),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := call(ctx, dial(t, l, creds)); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: got %v, want Unavailable", name, err)
		}
	}
	if logs.count("connection was refused") != 1 {
		t.Errorf("not one line about refused connections from one place:\n%s", logs)
	}
	// A client that has certificates does not talk to a server that has none.
	_, open := serve(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := call(ctx, dial(t, open, server.Client("n1", ring.Node))); err == nil {
		t.Error("talks to a server without a certificate")
	}
}

// Without certificates everybody may do everything, and nobody is known.
func TestWithoutCertificates(t *testing.T) {
	t.Parallel()
	var none *Credentials
	_, l := serve(t, none)
	conn := dial(t, l, none.Client("n1", ring.Node))
	if err := call(t.Context(), conn); err != nil {
		t.Error(err)
	}
	if who, ok := Caller(t.Context()); ok || none.Self() != (Identity{}) || none.Reload() != nil {
		t.Errorf("knows %v", who)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := none.Run(ctx); err != nil {
		t.Error(err)
	}
}

func TestCallerIsKnownOnBothSides(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "ringmod")
	_, l := serve(t, ca.member(t, "spiffe://ringmod/node/n1"))
	conn := dial(t, l, ca.member(t, "spiffe://ringmod/gateway/g1").Client("", 0))
	var p peer.Peer
	err := conn.Invoke(t.Context(), "/grpc.health.v1.Health/Check", &empty{}, &empty{}, grpc.Peer(&p))
	if err != nil {
		t.Fatal(err)
	}
	who, ok := Caller(peer.NewContext(t.Context(), &p))
	if want := (Identity{"ringmod", Node, "n1"}); who != want || !ok {
		t.Errorf("got %v, %v; want %v", who, ok, want)
	}
}

// CA and certificates of all are replaced while connections are made all the
// time; none fails. Those that stand go on.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	before, after := newCA(t, "ringmod"), newCA(t, "ringmod")
	const n1, g1 = "spiffe://ringmod/node/n1", "spiffe://ringmod/gateway/g1"
	cfgs := []Config{
		files(t, before.issue(t, n1), before.bundle(t)),
		files(t, before.issue(t, g1), before.bundle(t)),
	}
	server, client := open(t, cfgs[0]), open(t, cfgs[1])
	_, l := serve(t, server)
	standing := dial(t, l, client.Client("n1", ring.Node))
	if err := call(t.Context(), standing); err != nil {
		t.Fatal(err)
	}

	var load sync.WaitGroup
	var calls atomic.Int64
	stop := make(chan struct{})
	for range 4 {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				conn := dial(t, l, client.Client("n1", ring.Node))
				if err := call(t.Context(), conn); err != nil {
					t.Error(err)
				}
				conn.Close()
				calls.Add(1)
			}
		})
	}
	both := slices.Concat(before.bundle(t), after.bundle(t))
	old := []pair{before.issue(t, n1), before.issue(t, g1)}
	fresh := []pair{after.issue(t, n1), after.issue(t, g1)}
	for _, step := range []struct {
		pairs []pair
		ca    []byte
	}{{old, both}, {fresh, both}, {fresh, after.bundle(t)}} {
		for i, c := range []*Credentials{server, client} {
			until := calls.Load() + 20
			for calls.Load() < until && !t.Failed() {
				time.Sleep(time.Millisecond)
			}
			write(t, cfgs[i], step.pairs[i], step.ca)
			if err := c.Reload(); err != nil {
				t.Error(err)
			}
		}
	}
	close(stop)
	load.Wait()
	if err := call(t.Context(), standing); err != nil {
		t.Errorf("connection from before: %v", err)
	}
	late := before.member(t, g1).Client("n1", ring.Node)
	if err := call(t.Context(), dial(t, l, late)); status.Code(err) != codes.Unavailable {
		t.Errorf("certificate of the CA before: got %v, want Unavailable", err)
	}
	t.Logf("%d connections", calls.Load())
}

// Whoever knocks all the time does not fill the log.
func TestRefusalsAreCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var l limiter
		said := func(addr func(i int) string) (n int) {
			for i := range 1000 {
				if _, ok := l.take(addr(i)); ok {
					n++
				}
			}
			return n
		}
		one := func(i int) string { return fmt.Sprintf("10.0.0.1:%d", i) }
		many := func(i int) string { return fmt.Sprintf("10.0.%d.%d:1", 1+i/256, i%256) }
		if got := said(one); got != 1 {
			t.Errorf("%d lines about one host", got)
		}
		if got := said(many); got != noesPerFill-1 {
			t.Errorf("%d lines about many hosts", got)
		}
		time.Sleep(noesPerHost)
		if dropped, ok := l.take(one(1)); dropped < 900 || !ok {
			t.Errorf("a minute later: %d were dropped, %v", dropped, ok)
		}
	})
}
