package membertest

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// half is one direction of a stream.
type half struct {
	wake chan struct{} // of one: something has changed for the reader

	mu     sync.Mutex // guards what follows
	chunks []chunk
	silent bool // a cut has met it: nothing arrives any more
	unread bool // the reader has gone
}

// chunk is bytes that arrive together. No bytes are the end.
type chunk struct {
	data []byte
	at   time.Time
}

func newHalf() *half { return &half{wake: make(chan struct{}, 1)} }

func (h *half) notify() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// write never fails: that nobody reads any more is for the other half to tell, as
// soon as the way allows.
func (h *half) write(data []byte, lost bool, delay time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.silent = h.silent || lost
	if h.unread || h.silent {
		return
	}
	h.chunks = append(h.chunks, chunk{append([]byte(nil), data...), time.Now().Add(delay)})
	h.notify()
}

// read returns what has arrived. Without anything it tells how long to wait, 0 for
// until there is more.
func (h *half) read(b []byte) (n int, wait time.Duration, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.chunks) == 0 {
		return 0, 0, nil
	}
	first := &h.chunks[0]
	if wait := time.Until(first.at); wait > 0 {
		return 0, wait, nil
	}
	if len(first.data) == 0 {
		return 0, 0, io.EOF
	}
	n = copy(b, first.data)
	if first.data = first.data[n:]; len(first.data) == 0 {
		h.chunks = h.chunks[1:]
	}
	return n, 0, nil
}

// conn is one end of a stream.
type conn struct {
	owner *Transport
	peer  netip.AddrPort
	in    *half
	out   *half
	done  chan struct{} // closed by Close
	once  sync.Once

	mu       sync.Mutex // guards deadline
	deadline time.Time  // of reading; writing never waits
}

func newConn(owner *Transport, peer netip.AddrPort, in, out *half) *conn {
	return &conn{owner: owner, peer: peer, in: in, out: out, done: make(chan struct{})}
}

func (c *conn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		select {
		case <-c.done:
			return 0, net.ErrClosed
		default:
		}
		left, limited := c.left()
		if limited && left <= 0 {
			return 0, os.ErrDeadlineExceeded
		}
		var wait time.Duration
		thawed := c.still()
		if thawed == nil {
			var n int
			var err error
			if n, wait, err = c.in.read(b); n > 0 || err != nil {
				return n, err
			}
		}
		if limited && (wait == 0 || left < wait) {
			wait = left
		}
		c.pause(wait, thawed)
	}
}

// still returns a channel that is closed when an end that is frozen thaws, nil when
// none is.
func (c *conn) still() <-chan struct{} {
	if thawed := c.owner.network.Frozen(c.owner.addr.Addr()); thawed != nil {
		return thawed
	}
	return c.owner.network.Frozen(c.peer.Addr())
}

// pause waits for news, for thaw, or for this long, if it is not 0.
func (c *conn) pause(wait time.Duration, thawed <-chan struct{}) {
	var over <-chan time.Time
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-c.in.wake:
	case <-over:
	case <-thawed:
	case <-c.done:
	}
}

func (c *conn) left() (time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Until(c.deadline), !c.deadline.IsZero()
}

func (c *conn) Write(b []byte) (int, error) {
	select {
	case <-c.done:
		return 0, net.ErrClosed
	default:
	}
	if len(b) == 0 {
		return 0, nil
	}
	lost, delay := c.owner.network.bytes(c.owner.addr, c.peer)
	c.out.write(b, lost, delay)
	return len(b), nil
}

func (c *conn) Close() error {
	c.close()
	return nil
}

func (c *conn) close() {
	c.once.Do(func() {
		close(c.done)
		lost, delay := c.owner.network.bytes(c.owner.addr, c.peer)
		c.out.write(nil, lost, delay)
		c.in.mu.Lock()
		c.in.unread = true
		c.in.chunks = nil
		c.in.mu.Unlock()
		c.owner.mu.Lock()
		delete(c.owner.conns, c)
		c.owner.mu.Unlock()
	})
}

func (c *conn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.owner.addr) }
func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.peer) }

func (c *conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadline = t
	c.mu.Unlock()
	c.in.notify()
	return nil
}

func (c *conn) SetWriteDeadline(time.Time) error { return nil }
