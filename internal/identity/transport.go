package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"

	"github.com/ringmod/ringmod/ring"
)

const (
	noesPerFill = 10 // lines about refused handshakes at once
	noesFill    = 10 * time.Second
	noesPerHost = time.Minute // between two of them about one host
	noesHosts   = 256         // that are remembered
)

// Server returns what a server of a member needs: the client's certificate is
// required and has to be of our cluster.
func (c *Credentials) Server() credentials.TransportCredentials {
	if c == nil {
		return insecure.NewCredentials()
	}
	return &transport{c: c, TransportCredentials: credentials.NewTLS(&tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequireAnyClientCert, // VerifyConnection checks it, by the CA of now
		SessionTicketsDisabled: true,
		// Records of full size from the start: the first bytes of a zip are as many as the next.
		DynamicRecordSizingDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &c.now.Load().cert, nil
		},
		VerifyConnection: func(s tls.ConnectionState) error {
			return c.verify(s, x509.ExtKeyUsageClientAuth, Identity{})
		},
	})}
}

// Client returns what a connection to the member id needs, which has to prove that
// it is that member. An empty id stands for any member of the role, for those whose
// address alone is known; the zero role for a node or a gateway.
func (c *Credentials) Client(id string, role ring.Role) credentials.TransportCredentials {
	if c == nil {
		return insecure.NewCredentials()
	}
	want := Identity{ID: id}
	if role != 0 {
		want.Role = Role(role.String())
	}
	return &transport{c: c, want: want, TransportCredentials: credentials.NewTLS(&tls.Config{
		MinVersion:                  tls.VersionTLS13,
		InsecureSkipVerify:          true, // of host names; VerifyConnection checks the rest
		DynamicRecordSizingDisabled: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &c.now.Load().cert, nil
		},
		VerifyConnection: func(s tls.ConnectionState) error {
			return c.verify(s, x509.ExtKeyUsageServerAuth, want)
		},
	})}
}

// verify returns why the other end is not who it should be.
func (c *Credentials) verify(s tls.ConnectionState, usage x509.ExtKeyUsage, want Identity) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the other end has no certificate")
	}
	now := c.now.Load()
	who, err := now.identify(s.PeerCertificates, usage)
	if err == nil {
		want.Cluster = now.self.Cluster
		err = who.matches(want)
	}
	if err == nil && usage == x509.ExtKeyUsageServerAuth && who.Role == Operator {
		err = fmt.Errorf("%s cannot be a member", who)
	}
	if err != nil {
		return fmt.Errorf("the other end is refused: %w", err)
	}
	return nil
}

// transport is TLS that knows who is at the other end.
type transport struct {
	credentials.TransportCredentials

	c    *Credentials
	want Identity // of a client
}

// authInfo is what a call's context carries of the connection.
type authInfo struct {
	credentials.TLSInfo

	who Identity
}

// Caller returns who is at the other end of the connection of a call: the client on a
// server, the server on a client (grpc.Peer). False: the cluster has no certificates.
func Caller(ctx context.Context) (Identity, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Identity{}, false
	}
	info, ok := p.AuthInfo.(authInfo)
	return info.who, ok
}

// ServerHandshake says who was refused: its own end learns no more than that it was.
func (t *transport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		t.c.tellRefused(raw, err)
		return nil, nil, err
	}
	return known(conn, info)
}

// ClientHandshake completes a connection.
func (t *transport) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, err
	}
	return known(conn, info)
}

// Clone returns a copy.
func (t *transport) Clone() credentials.TransportCredentials {
	return &transport{TransportCredentials: t.TransportCredentials.Clone(), c: t.c, want: t.want}
}

// known adds who the other end is, which the handshake has verified.
func known(conn net.Conn, info credentials.AuthInfo) (net.Conn, credentials.AuthInfo, error) {
	with, ok := info.(credentials.TLSInfo)
	if !ok || len(with.State.PeerCertificates) == 0 {
		conn.Close()
		return nil, nil, errors.New("the connection has no certificate")
	}
	who, err := Of(with.State.PeerCertificates[0])
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, authInfo{with, who}, nil
}

// tellRefused logs a handshake that failed. Connections that end before they began are
// those of whoever looks if the port is open.
func (c *Credentials) tellRefused(conn net.Conn, err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return
	}
	remote := conn.RemoteAddr().String()
	dropped, ok := c.noes.take(remote)
	if dropped > 0 {
		c.log.Warn("more connections were refused than fit in here", "connections", dropped)
	}
	if ok {
		c.log.Warn("connection was refused", "remote", remote, "err", blame(err))
	}
}

// blame says what TLS means.
func blame(err error) error {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fmt.Errorf("the other end runs without certificates: %w", err)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" { // an alert of TLS
		return fmt.Errorf("the other end does not accept our certificate, and knows why: %w", err)
	}
	return err
}

// limiter lets 10 lines in 10 s pass, and one a minute about each host: anybody can
// knock.
type limiter struct {
	mu      sync.Mutex // guards what follows
	filled  time.Time
	left    int
	dropped int
	hosts   map[string]time.Time
}

// take says whether a line about addr may be written, and how many were not before it.
func (l *limiter) take(addr string) (dropped int, ok bool) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.filled.IsZero() || time.Since(l.filled) >= noesFill {
		l.filled, l.left = time.Now(), noesPerFill
		dropped, l.dropped = l.dropped, 0
	}
	if last, known := l.hosts[host]; known && time.Since(last) < noesPerHost {
		return dropped, false
	}
	if l.left == 0 {
		l.dropped++
		return dropped, false
	}
	if l.hosts == nil || len(l.hosts) >= noesHosts {
		l.hosts = make(map[string]time.Time)
	}
	l.hosts[host] = time.Now()
	l.left--
	return dropped, true
}
