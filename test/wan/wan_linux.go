package wan

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// WAN is a number of sites with a link in each direction between each two.
type WAN struct {
	Sites []*Site

	links   map[[2]netip.Addr]*link // by source and destination; never changes
	workers sync.WaitGroup
}

// Site is a place where processes run.
type Site struct {
	addr netip.Addr
	ns   *namespace
}

// New makes sites between which path lies in both directions. Where namespaces
// cannot be made the test is skipped, and fails in CI. The losses follow from
// seed.
func New(t testing.TB, sites int, path Path, seed uint64) *WAN {
	t.Helper()
	w := &WAN{links: make(map[[2]netip.Addr]*link)}
	for i := range sites {
		addr := netip.AddrFrom4([4]byte{10, 91, 0, byte(i + 1)})
		ns, err := newNamespace(addr)
		if err != nil {
			w.close()
			unable(t, err)
		}
		w.Sites = append(w.Sites, &Site{addr, ns})
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(func() {
		stop()
		w.close()
		w.workers.Wait()
	})
	w.connect(ctx, path, rand.New(rand.NewPCG(seed, 0)))
	for _, s := range w.Sites {
		w.workers.Go(func() { w.forward(s) })
	}
	return w
}

// unable ends a test that has no permission, or no device, to make namespaces.
func unable(t testing.TB, err error) {
	t.Helper()
	if os.Getenv("CI") != "true" && (errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL)) {
		t.Skipf("network namespaces need root (CAP_SYS_ADMIN, CAP_NET_ADMIN) and /dev/net/tun: %v", err)
	}
	t.Fatal(err)
}

func (w *WAN) connect(ctx context.Context, path Path, random *rand.Rand) {
	for _, from := range w.Sites {
		for _, to := range w.Sites {
			if from == to {
				continue
			}
			l := newLink(random.Uint64(), func(packet []byte) {
				_, _ = to.ns.tun.Write(packet) // a full or closed device loses packets
			})
			l.set(path)
			w.links[[2]netip.Addr{from.addr, to.addr}] = l
			w.workers.Go(func() { l.run(ctx) })
		}
	}
}

// forward gives what leaves a site to the links, until the device is closed.
func (w *WAN) forward(s *Site) {
	buf := make([]byte, mtu)
	for {
		n, err := s.ns.tun.Read(buf)
		if err != nil {
			return
		}
		to, ok := destination(buf[:n])
		if l := w.links[[2]netip.Addr{s.addr, to}]; ok && l != nil {
			l.send(append([]byte(nil), buf[:n]...))
		}
	}
}

func (w *WAN) close() {
	for _, s := range w.Sites {
		s.ns.close()
	}
}

// Set changes the path in one direction, for what is sent from now on.
func (w *WAN) Set(from, to *Site, p Path) { w.link(from, to).set(p) }

// SetBoth changes the path in both directions between each site of a and each
// other one of b.
func (w *WAN) SetBoth(a, b []*Site, p Path) {
	for _, from := range a {
		for _, to := range b {
			if from != to {
				w.Set(from, to, p)
				w.Set(to, from, p)
			}
		}
	}
}

// Stats returns what has passed in one direction.
func (w *WAN) Stats(from, to *Site) Stats { return w.link(from, to).snapshot() }

func (w *WAN) link(from, to *Site) *link { return w.links[[2]netip.Addr{from.addr, to.addr}] }

// IP returns the address by which other sites reach the processes of s.
func (s *Site) IP() netip.Addr { return s.addr }

// Enter moves the calling goroutine's thread, which is locked, to the site until
// leave is called. What it opens or starts meanwhile stays there for good. If
// leave fails, the goroutine must end without unlocking the thread.
func (s *Site) Enter() (leave func() error, err error) {
	home, err := currentNamespace()
	if err != nil {
		return nil, err
	}
	if err := s.ns.join(); err != nil {
		home.Close()
		return nil, err
	}
	return func() error {
		defer home.Close()
		return unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)
	}, nil
}

// do runs f on a thread that is at the site.
func (s *Site) do(f func() error) error {
	return onThread(func() error {
		if err := s.ns.join(); err != nil {
			return err
		}
		return f()
	})
}

// Dial connects from s to an IP address that is there or at another site.
func (s *Site) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(addr); err != nil { // a name would be looked up elsewhere
		return nil, fmt.Errorf("dialling inside a namespace: %w", err)
	}
	err = s.do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Listen listens on a port of s that the kernel chooses.
func (s *Site) Listen(ctx context.Context) (listener net.Listener, err error) {
	err = s.do(func() error {
		listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", netip.AddrPortFrom(s.addr, 0).String())
		return err
	})
	return listener, err
}

// Transport returns an HTTP transport whose connections come from s. The caller
// closes those that are idle in the end.
func (s *Site) Transport() *http.Transport { return &http.Transport{DialContext: s.Dial} }
