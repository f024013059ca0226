package wan

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	device = "wan0"
	mtu    = 1500
)

// namespace is a network namespace with a TUN device in it.
type namespace struct {
	fd  *os.File
	tun *os.File // one packet per read and write
}

// newNamespace makes a namespace in which addr is the only address beside those
// of loopback.
func newNamespace(addr netip.Addr) (*namespace, error) {
	n := &namespace{}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		var err error
		if n.fd, err = currentNamespace(); err != nil {
			return err
		}
		if n.tun, err = openTUN(); err != nil {
			return err
		}
		return configure(addr)
	})
	if err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *namespace) close() {
	for _, f := range []*os.File{n.tun, n.fd} {
		if f != nil {
			f.Close()
		}
	}
}

// onThread runs f on a thread that ends with it, because it has got into a state
// that nobody else must see. The first thread of a process cannot end, and is
// kept out of it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// join moves the calling thread, which is locked, into the namespace.
func (n *namespace) join() error {
	if err := unix.Setns(int(n.fd.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering a network namespace: %w", err)
	}
	return nil
}

func currentNamespace() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") }

func openTUN() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(device)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making a TUN device: %w", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil // the runtime polls it, as it does not block
}

// configure brings loopback and the TUN device up. All of the /16 of addr is
// reached through the device.
func configure(addr netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	ip := addr.As4()
	for _, step := range []struct {
		device  string
		request uint
		set     func(*unix.Ifreq) error
	}{
		{"lo", unix.SIOCSIFFLAGS, up},
		{device, unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(ip[:]) }},
		{device, unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{255, 255, 0, 0}) }},
		{device, unix.SIOCSIFMTU, func(r *unix.Ifreq) error { r.SetUint32(mtu); return nil }},
		{device, unix.SIOCSIFFLAGS, up},
	} {
		req, err := unix.NewIfreq(step.device)
		if err == nil {
			err = step.set(req)
		}
		if err == nil {
			err = unix.IoctlIfreq(fd, step.request, req)
		}
		if err != nil {
			return fmt.Errorf("configuring %s (request %#x): %w", step.device, step.request, err)
		}
	}
	return nil
}

func up(r *unix.Ifreq) error {
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return nil
}
