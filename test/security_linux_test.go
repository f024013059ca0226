package test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
	"github.com/ringmod/ringmod/test/wan"
)

// TestCertificates runs a cluster between machines as README says, with a gateway
// that gossips and one that must not.
func TestCertificates(t *testing.T) {
	t.Parallel()
	certs := makeCerts(t)
	w := wan.New(t, 2, wan.Path{}, 1)
	fake := upstreamtest.NewUnstarted(t)
	c := harness.NewCluster(t, "--insecure=false", "--cluster", "safe", "--peer-ca", filepath.Join(certs, "ca.pem"))
	spec := func(name, role string, at int, flags ...string) harness.Spec {
		pair := filepath.Join(certs, role+"-"+name)
		return harness.Spec{Name: name, Host: w.Sites[at], Flags: append([]string{
			"--peer-cert", pair + ".pem", "--peer-key", pair + "-key.pem", "--upstream", serveAt(t, w.Sites[at], fake),
		}, flags...)}
	}
	key := []string{"--gossip-key-file", filepath.Join(certs, "gossip.key")}
	c.StartNode(spec("n1", "node", 0, key...))
	c.StartNode(spec("n2", "node", 1, key...))
	gossips := c.StartGateway(spec("g1", "gateway", 1, key...))
	follower := spec("g2", "gateway", 1)
	follower.ViewFrom = []string{c.Member("n2").GRPC}
	follows := c.StartGateway(follower)
	c.WaitConverged()
	objects := libraryOf(fake, modules(t, fake, "m", 10, 300<<10))
	readTogether(t, gossips, objects)
	readTogether(t, follows, objects)
	for name := range objects {
		if got := fake.Count("/" + name); got != 1 {
			t.Errorf("upstream was asked %d times for %s, want once", got, name)
		}
	}
}

// makeCerts returns a folder of certificates for the members of a cluster.
func makeCerts(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "certs")
	status, _, stderr := harness.Run(t, nil, "certs", dir, "--cluster", "safe", "--node", "n1", "--node", "n2", "--gateway", "g1", "--gateway", "g2")
	if status != 0 {
		t.Fatalf("ringmod certs ended with %d: %s", status, stderr)
	}
	return dir
}

// TestCertificateOfAnother starts members with certificates of another id and
// another role: they are refused before they serve.
func TestCertificateOfAnother(t *testing.T) {
	t.Parallel()
	certs := makeCerts(t)
	for _, test := range []struct{ name, command, id, pair string }{
		{"another id", "node", "n2", "node-n1"},
		{"gateway as node", "node", "g1", "gateway-g1"},
		{"node as gateway", "gateway", "n1", "node-n1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := []string{
				test.command, "--cluster", "safe", "--node-id", test.id, "--gossip-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0",
				"--peer-ca", filepath.Join(certs, "ca.pem"), "--upstream", "off",
				"--peer-cert", filepath.Join(certs, test.pair+".pem"), "--peer-key", filepath.Join(certs, test.pair+"-key.pem"),
			}
			if test.command == "node" {
				args = append(args, "--grpc-addr", "127.0.0.1:0", "--data-dir", t.TempDir())
			} else {
				args = append(args, "--http-addr", "127.0.0.1:0")
			}
			status, _, stderr := harness.Run(t, nil, args...)
			if status != 2 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "it names") {
				t.Errorf("exit status %d and %q, want 2 and one line that says whose the certificate is", status, stderr)
			}
		})
	}
}
