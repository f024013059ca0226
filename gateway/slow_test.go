package gateway_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/internal/cache"
)

// pipes is a listener of connections without buffers, in which time is virtual.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	c, ok := <-p.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.conns) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// TestSlowClients checks that a client that takes nothing is cut after a
// minute, and one that is merely slow gets everything.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	for name, test := range map[string]struct {
		pause time.Duration // after each 16 KiB
		whole bool
	}{
		"silent": {2 * time.Minute, false},
		"slow":   {10 * time.Second, true},
	} {
		for how, object := range map[string]func() *cache.Object{
			"memory": func() *cache.Object { return whole(make([]byte, size), cache.Object{}) },
			"fill":   func() *cache.Object { return &cache.Object{Size: -1, Body: &fill{parts: [][]byte{make([]byte, size)}}} },
		} {
			for _, path := range []string{modName, zipName} {
				synctest.Test(t, func(t *testing.T) {
					c := newFakeCache(t)
					c.on(path, func(context.Context, cache.Request) (*cache.Object, error) { return object(), nil })
					l := &pipes{conns: make(chan net.Conn, 1)}
					s := gateway.Server(newGateway(t, gateway.Config{Cache: c}), nil)
					done := make(chan struct{})
					go func() { defer close(done); _ = s.Serve(l) }()
					client, server := net.Pipe()
					l.conns <- server
					go func() { _, _ = io.WriteString(client, "GET /"+path+" HTTP/1.1\r\nHost: x\r\n\r\n") }()
					r, err := http.ReadResponse(bufio.NewReaderSize(client, 16), nil)
					if err != nil {
						t.Fatal(err)
					}
					n, buf := 0, make([]byte, 16<<10)
					for err == nil {
						<-time.After(test.pause)
						var m int
						m, err = io.ReadFull(r.Body, buf)
						n += m
					}
					if got := n == size && errors.Is(err, io.EOF); got != test.whole {
						t.Errorf("%s, %s, %s: got %d of %d bytes and %v", name, how, path, n, size, err)
					}
					_ = r.Body.Close()
					_ = client.Close()
					_ = s.Close()
					<-done
				})
			}
		}
	}
}

// TestSlowHeader checks that nobody holds a connection without a request.
func TestSlowHeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{conns: make(chan net.Conn, 1)}
		s := gateway.Server(newGateway(t, gateway.Config{}), nil)
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(l) }()
		for text, want := range map[string]time.Duration{
			"GET /healthz HTTP/1.1\r\nHost: x\r\nX-":   10 * time.Second,
			"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n": 2 * time.Minute,
		} {
			client, server := net.Pipe()
			l.conns <- server
			start := time.Now()
			go func() { _, _ = io.WriteString(client, text) }()
			_, _ = io.Copy(io.Discard, client)
			if got := time.Since(start); got != want {
				t.Errorf("%q: the connection was held for %v, want %v", text, got, want)
			}
		}
		_ = s.Close()
		<-done
	})
}
