package identity

import (
	"bytes"
	"context"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What is wrong with the own files is said at the start, in one line that names them.
func TestWrongFiles(t *testing.T) {
	t.Parallel()
	ours, other := newCA(t, "ringmod"), newCA(t, "ringmod")
	good := ours.issue(t, "spiffe://ringmod/node/n1")
	dated := func(from, to time.Duration) pair {
		return ours.forge(t, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(to)
		}, "spiffe://ringmod/node/n1")
	}
	_, caKey, err := ours.PEM()
	if err != nil {
		t.Fatal(err)
	}
	node := "spiffe://ringmod/node/n1"
	for _, tt := range []struct {
		name string
		pair pair
		ca   []byte // nil: ours
		self Identity
		want string // empty: fine
	}{
		{name: "as it should be", pair: good, self: Identity{"ringmod", Node, "n1"}},
		{name: "anything goes", pair: good},
		{name: "two CAs", pair: good, ca: slices.Concat(other.bundle(t), ours.bundle(t))},
		{name: "no certificate", pair: pair{[]byte("hello"), good.key}, want: "cert.pem with key"},
		{name: "key in place of the certificate", pair: pair{good.key, good.key}, want: "holds no certificate"},
		{name: "no key", pair: pair{good.cert, good.cert}, want: "go together"},
		{name: "broken certificate", pair: pair{bytes.Replace(good.cert, []byte("MII"), []byte("MIX"), 1), good.key}, want: "cert.pem"},
		{name: "another key", pair: pair{good.cert, ours.issue(t, node).key}, want: "private key does not match"},
		{name: "empty CA file", pair: good, ca: []byte{}, want: "ca.pem: it holds no certificate"},
		{name: "no CA in the CA file", pair: good, ca: good.cert, want: "none of a CA"},
		{name: "another CA", pair: good, ca: other.bundle(t), want: "not made by our CA"},
		{name: "expired", pair: dated(-2*time.Hour, -time.Hour), want: "certificate of node n1 expired at"},
		{name: "not valid yet", pair: dated(time.Hour, 2*time.Hour), want: "not valid before"},
		{name: "nobody", pair: ours.forge(t, nil), want: "it names nobody"},
		{name: "two names", pair: ours.forge(t, nil, node, node), want: "2 URIs"},
		{name: "another kind of URI", pair: ours.forge(t, nil, "https://example.com/"), want: "not of the form"},
		{name: "a CA", pair: pair{ours.bundle(t), caKey}, want: "not of the form"},
		{
			name: "a member that is a CA", want: "one of a CA",
			pair: ours.forge(t, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }, node),
		},
		{
			name: "for clients alone", want: "both clients and servers",
			pair: ours.forge(t, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, node),
		},
		{
			name: "operator for clients alone",
			pair: ours.forge(t, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, "spiffe://ringmod/operator/me"),
		},
		{name: "another cluster", pair: good, self: Identity{Cluster: "staging"}, want: `node n1 is of cluster ringmod, not staging`},
		{name: "another role", pair: good, self: Identity{"ringmod", Gateway, "n1"}, want: "names node n1, not gateway n1"},
		{name: "another id", pair: good, self: Identity{"ringmod", Node, "n2"}, want: "names node n1, not node n2"},
		{name: "no gateway", pair: good, self: Identity{Role: Gateway}, want: "names node n1, not a gateway"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.ca == nil {
				tt.ca = ours.bundle(t)
			}
			cfg := files(t, tt.pair, tt.ca)
			cfg.Self = tt.self
			_, err := Open(cfg)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("got %v, want one line with %q", err, tt.want)
			}
			if !strings.Contains(err.Error(), filepath.Dir(cfg.CA)) {
				t.Errorf("%v names no file", err)
			}
		})
	}
	cfg := files(t, good, ours.bundle(t))
	cfg.CA = filepath.Join(t.TempDir(), "none.pem")
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "none.pem") {
		t.Errorf("missing file: %v", err)
	}
}

// running runs credentials in a bubble, until the test ends.
func running(t *testing.T, cfg Config) (*Credentials, *logBuffer) {
	t.Helper()
	logs := &logBuffer{}
	cfg.Logger = logs.logger()
	c := open(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c, logs
}

func TestFilesAreReadAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "ringmod")
		cfg := files(t, ca.issue(t, "spiffe://ringmod/node/n1"), ca.bundle(t))
		cfg.Self = Identity{"ringmod", Node, "n1"}
		c, logs := running(t, cfg)
		time.Sleep(time.Minute)
		first := c.now.Load()

		for _, broken := range []struct {
			name string
			pair pair
			want string
		}{
			{"garbage", pair{[]byte("garbage"), []byte("garbage")}, "no certificate"},
			{"another member", ca.issue(t, "spiffe://ringmod/node/n2"), "names node n2"},
			{"another CA", newCA(t, "ringmod").issue(t, "spiffe://ringmod/node/n1"), "not made by our CA"},
		} {
			write(t, cfg, broken.pair, ca.bundle(t))
			time.Sleep(time.Minute)
			if c.now.Load() != first {
				t.Errorf("%s: broken files are in use", broken.name)
			}
			if got := logs.count(broken.want); got != 1 {
				t.Errorf("%s: said %d times, want once", broken.name, got)
			}
		}
		os.Remove(cfg.Key)
		time.Sleep(time.Minute)
		if got := logs.count("no such file"); got != 1 || c.now.Load() != first {
			t.Errorf("missing file: said %d times, want once", got)
		}

		second := ca.issue(t, "spiffe://ringmod/node/n1")
		write(t, cfg, second, ca.bundle(t))
		time.Sleep(reloadEvery)
		synctest.Wait()
		if c.now.Load() == first || logs.count("certificates were reloaded") != 1 {
			t.Error("new files are not in use after 5s, or nobody was told")
		}
		// Written one after the other, with a look between the two.
		third := ca.issue(t, "spiffe://ringmod/node/n1")
		write(t, cfg, pair{third.cert, second.key}, ca.bundle(t))
		time.Sleep(reloadEvery)
		synctest.Wait()
		write(t, cfg, third, ca.bundle(t))
		time.Sleep(reloadEvery)
		synctest.Wait()
		if logs.count("level=ERROR") != 4 || logs.count("certificates were reloaded") != 2 {
			t.Error("files that were being replaced were taken for broken ones")
		}
		if t.Failed() {
			t.Log(logs)
		}
	})
}

func TestEndIsAnnounced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "ringmod")
		short := ca.forge(t, nil, "spiffe://ringmod/node/n1") // valid from an hour ago for another hour
		c, logs := running(t, files(t, short, ca.bundle(t)))
		for _, step := range []struct {
			sleep         time.Duration
			warns, errors int
		}{{47 * time.Minute, 0, 0}, {2 * time.Minute, 1, 0}, {10 * time.Minute, 1, 0}, {2 * time.Minute, 1, 1}, {time.Hour, 1, 1}} {
			time.Sleep(step.sleep)
			if w, e := logs.count("level=WARN"), logs.count("level=ERROR"); w != step.warns || e != step.errors {
				t.Fatalf("%d warnings and %d errors, want %d and %d:\n%s", w, e, step.warns, step.errors, logs)
			}
		}
		if c.Self().ID != "n1" {
			t.Error("an expired certificate is forgotten")
		}
	})
}

func TestCAIsRead(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "ringmod")
	cert, key, err := ca.PEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ReadCA(cert, key)
	if err != nil || again.Cluster() != "ringmod" || !again.Expires().Equal(ca.Expires()) {
		t.Fatalf("got %+v, %v", again, err)
	}
	// What one has made the other one's files accept.
	open(t, files(t, again.issue(t, "spiffe://ringmod/node/n1"), ca.bundle(t)))
	leaf := ca.issue(t, "spiffe://ringmod/node/n1")
	for _, wrong := range []pair{leaf, {cert, leaf.key}, {key, cert}, {}} {
		if _, err := ReadCA(wrong.cert, wrong.key); err == nil {
			t.Error("what is no CA was taken for one")
		}
	}
	if _, _, err := ca.Issue(Identity{"ringmod", Node, "a/b"}); err == nil {
		t.Error("made a certificate for an id that nobody may have")
	}
	if _, err := NewCA("no cluster"); err == nil {
		t.Error("made a CA for a cluster that cannot be")
	}
}
