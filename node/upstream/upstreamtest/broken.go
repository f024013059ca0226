package upstreamtest

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
)

// BrokenServer fails below HTTP. URL is what a client is pointed at, Dial the
// dialer to use with it, Text a part of what a good error message says.
type BrokenServer struct {
	Name string
	URL  string
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Text string
}

// Broken starts one server of each kind. They stop with t.
func Broken(t testing.TB) []BrokenServer {
	t.Helper()
	unknownCA := httptest.NewUnstartedServer(http.NotFoundHandler())
	unknownCA.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	unknownCA.StartTLS()
	t.Cleanup(unknownCA.Close)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	return []BrokenServer{
		{"refused", "http://" + refusedAddr(t), Dial, "connection refused"},
		{"no such host", "http://proxy.upstream.test", dialNoHost, "no such host"},
		{"unknown CA", unknownCA.URL, Dial, "certificate"},
		{"plain http behind https", "https://" + plain.Listener.Addr().String(), Dial, "HTTPS"},
		{"closes at once", "http://" + rawServer(t, ""), Dial, "closed"},
		{"speaks something else", "http://" + rawServer(t, "220 mail ready\r\n"), Dial, "HTTP"},
	}
}

// Dial is a dialer for sealed tests: it connects to loopback addresses and
// refuses all others without asking DNS.
func Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	ip, err := netip.ParseAddr(host)
	if host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("sealed test: refusing to connect to %s", addr)
	}
	var d net.Dialer
	return d.DialContext(ctx, network, addr)
}

// dialNoHost fails as a resolver does that does not know the name.
func dialNoHost(_ context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	return nil, &net.OpError{Op: "dial", Net: network, Err: &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}}
}

// refusedAddr returns an address that nobody listens on.
func refusedAddr(t testing.TB) string {
	t.Helper()
	l := listen(t)
	addr := l.Addr().String()
	_ = l.Close()
	return addr
}

// rawServer answers each connection with text once a request has begun to
// arrive, and closes it.
func rawServer(t testing.TB, text string) string {
	t.Helper()
	l := listen(t)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 64<<10))
			_, _ = conn.Write([]byte(text))
			_ = conn.Close()
		}
	}()
	return l.Addr().String()
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listening on loopback: %v", err)
	}
	return l
}
