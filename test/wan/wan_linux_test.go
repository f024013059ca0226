package wan

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

// serve answers each connection at a site with what handle does.
func serve(t *testing.T, s *Site, handle func(net.Conn)) string {
	t.Helper()
	l, err := s.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			// The other end's farewell may not make it through.
			stop := context.AfterFunc(t.Context(), func() { conn.Close() })
			go func() {
				defer stop()
				defer conn.Close()
				handle(conn)
			}()
		}
	}()
	return l.Addr().String()
}

// echo hides from io.Copy that conn could splice, whose pipes stay open for a
// while.
func echo(conn net.Conn) { _, _ = io.Copy(struct{ io.Writer }{conn}, conn) }

func dial(t *testing.T, from *Site, addr string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestSitesAreFarApart(t *testing.T) {
	t.Parallel()
	const delay = 40 * time.Millisecond
	w := New(t, 2, Path{Delay: delay}, 1)
	addr := serve(t, w.Sites[1], echo)
	start := time.Now()
	conn := dial(t, w.Sites[0], addr)
	if got := time.Since(start); got < 2*delay {
		t.Errorf("connected after %v, want at least %v", got, 2*delay)
	}
	start = time.Now()
	if _, err := io.WriteString(conn, "ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if got := time.Since(start); got < 2*delay {
		t.Errorf("answered after %v, want at least %v", got, 2*delay)
	}
}

func TestBytesSurviveLossAndAreCounted(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	w := New(t, 3, Path{Loss: 0.01, Delay: time.Millisecond}, 1)
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	addr := serve(t, w.Sites[1], func(conn net.Conn) { _, _ = conn.Write(data) })
	got, err := io.ReadAll(dial(t, w.Sites[0], addr))
	if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
		t.Errorf("got %d bytes, %v, want the %d that were sent", len(got), err, size)
	}
	port := uint16(portOf(t, addr))
	back, there, elsewhere := w.Stats(w.Sites[1], w.Sites[0]), w.Stats(w.Sites[0], w.Sites[1]), w.Stats(w.Sites[1], w.Sites[2])
	if back.Bytes < size || back.Ports[port] < size || back.Lost == 0 {
		t.Errorf("the way of the data counted %d bytes, %d of them TCP, and %d lost packets; want at least %d bytes and some loss", back.Bytes, back.Ports[port], back.Lost, size)
	}
	if there.Bytes == 0 || there.Bytes >= size || elsewhere.Bytes != 0 {
		t.Errorf("counted %d bytes of acknowledgements and %d to a third site, want few and none", there.Bytes, elsewhere.Bytes)
	}
}

func portOf(t *testing.T, addr string) int {
	t.Helper()
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return tcp.Port
}

func TestCutAndHeal(t *testing.T) {
	t.Parallel()
	w := New(t, 2, Path{}, 1)
	addr := serve(t, w.Sites[1], echo)
	conn := dial(t, w.Sites[0], addr)
	w.SetBoth(w.Sites[:1], w.Sites[1:], Path{Cut: Everything})
	if _, err := io.WriteString(conn, "late"); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 4)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("across a cut: %d bytes, %v, want nothing to arrive", n, err)
	}
	w.SetBoth(w.Sites[:1], w.Sites[1:], Path{})
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
		t.Errorf("after healing: %v, want what TCP sends again", err)
	}
}

// TestNoWayOut holds a site to its word: it reaches neither the machine nor its
// loopback.
func TestNoWayOut(t *testing.T) {
	t.Parallel()
	w := New(t, 1, Path{}, 1)
	machine, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer machine.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for _, addr := range []string{machine.Addr().String(), "192.0.2.1:80"} {
		if conn, err := w.Sites[0].Dial(ctx, "tcp", addr); err == nil {
			conn.Close()
			t.Errorf("a site reaches %s of the machine", addr)
		}
	}
}

func TestProcessInside(t *testing.T) {
	t.Parallel()
	w := New(t, 1, Path{}, 1)
	var devices []byte
	err := onThread(func() error {
		leave, err := w.Sites[0].Enter()
		if err != nil {
			return err
		}
		devices, err = exec.Command("cat", "/proc/net/dev").Output()
		return errors.Join(err, leave())
	})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(devices)) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			names = append(names, strings.TrimSpace(name))
		}
	}
	if got, want := strings.Join(names, " "), "lo wan0"; got != want {
		t.Errorf("a process inside has the interfaces %q, want %q", got, want)
	}
}

// TestNothingStays makes and ends WANs: no descriptor and no goroutine is left.
func TestNothingStays(t *testing.T) { //nolint:paralleltest // counts what is open
	count := func() (files, goroutines int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries), runtime.NumGoroutine()
	}
	round := func() {
		t.Run("wan", func(t *testing.T) {
			w := New(t, 3, Path{}, 1)
			dial(t, w.Sites[0], serve(t, w.Sites[1], echo))
		})
	}
	round()
	files, goroutines := count()
	for range 5 {
		round()
	}
	for deadline := time.Now().Add(30 * time.Second); ; runtime.Gosched() {
		f, g := count()
		if f <= files && g <= goroutines {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d files and %d goroutines, want the %d and %d of before", f, g, files, goroutines)
		}
		<-time.After(10 * time.Millisecond)
	}
}
