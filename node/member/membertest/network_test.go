package membertest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/node/member/membertest"
)

func ip(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, n}) }

func listen(t *testing.T, n *membertest.Network, ip netip.Addr) *membertest.Transport {
	t.Helper()
	tr, err := n.Listen(netip.AddrPortFrom(ip, 1))
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// pair is a stream from the first host to the second, and the second's end of it.
func pair(t *testing.T, n *membertest.Network) (near, far net.Conn) {
	t.Helper()
	a, b := listen(t, n, ip(1)), listen(t, n, ip(2))
	near, err := a.Dial(t.Context(), b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if far, err = b.Listener().Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

func TestFrozenHostAnswersLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := membertest.New(1)
		near, far := pair(t, n)
		n.Freeze(ip(2))
		if _, err := near.Write([]byte("ask")); err != nil {
			t.Fatal(err)
		}
		go func() {
			defer far.Close()
			_, _ = io.ReadFull(far, make([]byte, 3))
			_, _ = far.Write([]byte("answer"))
		}()
		if err := near.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a frozen host answered, or the wrong error came: %v", err)
		}
		_ = near.SetReadDeadline(time.Time{})
		time.AfterFunc(5*time.Second, func() { n.Thaw(ip(2)) })
		start := time.Now()
		got, err := io.ReadAll(near)
		if string(got) != "answer" || err != nil || time.Since(start) != 5*time.Second {
			t.Errorf("read %q, %v after %s, want the answer after 5s", got, err, time.Since(start))
		}
	})
}

func TestFrozenHostDoesNotDial(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := membertest.New(1)
		a, b := listen(t, n, ip(1)), listen(t, n, ip(2))
		n.Freeze(ip(1))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Dial(ctx, b.Addr().String()); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a frozen host dialled: %v", err)
		}
		c, err := b.Dial(t.Context(), a.Addr().String())
		if err != nil {
			t.Fatalf("the kernel of a stopped process takes connections: %v", err)
		}
		c.Close()
	})
}

func TestFrozenHostGetsPacketsLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := membertest.New(1)
		a, b := listen(t, n, ip(1)), listen(t, n, ip(2))
		n.Freeze(ip(2))
		send := func(from, to *membertest.Transport, text string) {
			if _, err := from.WriteTo([]byte(text), to.Addr().String()); err != nil {
				t.Fatal(err)
			}
		}
		send(a, b, "held")
		send(b, a, "never sent")
		synctest.Wait()
		if len(a.PacketCh()) != 0 || len(b.PacketCh()) != 0 {
			t.Error("a packet has passed a frozen host")
		}
		n.Thaw(ip(2))
		if got := <-b.PacketCh(); string(got.Buf) != "held" {
			t.Errorf("got %q", got.Buf)
		}
		if len(a.PacketCh()) != 0 {
			t.Error("a frozen host has sent a packet")
		}
	})
}

func TestCutsOfHosts(t *testing.T) {
	t.Parallel()
	n := membertest.New(1)
	addr := func(host byte, port uint16) netip.AddrPort { return netip.AddrPortFrom(ip(host), port) }
	n.Cut(membertest.Host(ip(1)), membertest.Host(ip(2)), membertest.Streams)
	n.Isolate(membertest.Host(ip(3)))
	n.Cut(addr(4, 1), membertest.Host(ip(5)), membertest.All)
	for _, tt := range []struct {
		from, to netip.AddrPort
		kind     membertest.Kind
		want     bool
	}{
		{addr(1, 1), addr(2, 2), membertest.Streams, true},
		{addr(1, 1), addr(2, 2), membertest.Packets, false},
		{addr(2, 2), addr(1, 1), membertest.Streams, false},
		{addr(3, 9), addr(1, 1), membertest.Packets, true},
		{addr(1, 1), addr(3, 9), membertest.Streams, true},
		{addr(4, 1), addr(5, 7), membertest.Packets, true},
		{addr(4, 2), addr(5, 7), membertest.Packets, false},
	} {
		if got := n.Blocked(tt.from, tt.to, tt.kind); got != tt.want {
			t.Errorf("blocked(%s, %s, %d) = %v, want %v", tt.from, tt.to, tt.kind, got, tt.want)
		}
	}
	n.Join(membertest.Host(ip(3)))
	if n.Blocked(addr(3, 9), addr(1, 1), membertest.Packets) {
		t.Error("still cut after Join")
	}
}

func TestDelaysDependOnHosts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := membertest.New(1)
		n.SetDelays(func(from, _ netip.Addr) time.Duration {
			if from == ip(1) {
				return 30 * time.Millisecond
			}
			return 50 * time.Millisecond
		})
		near, far := pair(t, n)
		start := time.Now()
		go func() {
			_, _ = io.ReadFull(far, make([]byte, 1))
			_, _ = far.Write([]byte("b"))
			far.Close()
		}()
		_, _ = near.Write([]byte("a"))
		if got, err := io.ReadAll(near); string(got) != "b" || err != nil || time.Since(start) != 80*time.Millisecond {
			t.Errorf("got %q, %v after %s, want b after 80ms", got, err, time.Since(start))
		}
	})
}

func TestListenerEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := membertest.New(1)
		l := listen(t, n, ip(1)).Listener()
		if got := l.Addr().String(); got != "10.0.0.1:1" {
			t.Errorf("address %s", got)
		}
		time.AfterFunc(time.Second, func() { _ = l.Close() })
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept after close: %v", err)
		}
	})
}
