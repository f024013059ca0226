package identity

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/test/bufconn"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// pair is a certificate and its key.
type pair struct{ cert, key []byte }

func newCA(t testing.TB, cluster string) *CA {
	t.Helper()
	ca, err := NewCA(cluster)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func (ca *CA) bundle(t testing.TB) []byte {
	t.Helper()
	cert, _, err := ca.PEM()
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// issue makes a certificate as ringmod does.
func (ca *CA) issue(t testing.TB, uri string) pair {
	t.Helper()
	who, err := Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(who)
	if err != nil {
		t.Fatal(err)
	}
	return pair{cert, key}
}

// forge makes one as others might.
func (ca *CA) forge(t testing.TB, edit func(*x509.Certificate), uris ...string) pair {
	t.Helper()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "forged"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	for _, u := range uris {
		uri, err := url.Parse(u)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, uri)
	}
	if edit != nil {
		edit(template)
	}
	cert, key, err := ca.sign(template)
	if err != nil {
		t.Fatal(err)
	}
	return pair{cert, key}
}

// files writes a process's files and returns their names.
func files(t testing.TB, p pair, ca []byte) Config {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{
		Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: filepath.Join(dir, "ca.pem"),
	}
	write(t, cfg, p, ca)
	return cfg
}

func write(t testing.TB, cfg Config, p pair, ca []byte) {
	t.Helper()
	for name, b := range map[string][]byte{cfg.Cert: p.cert, cfg.Key: p.key, cfg.CA: ca} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// member returns the credentials of whom the uri names.
func (ca *CA) member(t testing.TB, uri string) *Credentials {
	t.Helper()
	return open(t, files(t, ca.issue(t, uri), ca.bundle(t)))
}

func open(t testing.TB, cfg Config) *Credentials {
	t.Helper()
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
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

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) count(text string) int { return strings.Count(l.String(), text) }

// serve runs a server of a member with all services there are, in memory.
func serve(t testing.TB, c *Credentials) (*grpc.Server, *bufconn.Listener) {
	t.Helper()
	l := bufconn.Listen(1 << 16)
	server := grpc.NewServer(c.ServerOptions()...)
	healthpb.RegisterHealthServer(server, health.NewServer())
	reflection.Register(server)
	ringmodv1.RegisterCacheServiceServer(server, ringmodv1.UnimplementedCacheServiceServer{})
	ringmodv1.RegisterPeerServiceServer(server, ringmodv1.UnimplementedPeerServiceServer{})
	ringmodv1.RegisterClusterServiceServer(server, ringmodv1.UnimplementedClusterServiceServer{})
	ringmodv1.RegisterAdminServiceServer(server, ringmodv1.UnimplementedAdminServiceServer{})
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return server, l
}

func dial(t testing.TB, l *bufconn.Listener, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///member:8082", grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// call asks for the health of a member.
func call(ctx context.Context, conn *grpc.ClientConn) error {
	_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	return err
}
