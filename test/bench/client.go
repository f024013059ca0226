package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// client asks one server over plain HTTP/1.1 and lets the kernel throw the
// bodies away (MSG_TRUNC, tcp(7)): nothing is copied, so that it is the server
// one sees and not the client beside it.
type client struct {
	addr string
	void []byte // says how much to throw away at once; nothing is written to it
}

func newClient(addr string) *client {
	return &client{addr: addr, void: make([]byte, 1<<20)}
}

// conn is one connection of a client, for one goroutine.
type conn struct {
	net.Conn

	client *client
	raw    syscall.RawConn
	head   *bufio.Reader
	free   func() bool
}

// dial connects. The connection breaks when ctx ends.
func (c *client) dial(ctx context.Context) (*conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", c.addr)
	if err != nil {
		return nil, err
	}
	raw, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	free := context.AfterFunc(ctx, func() { nc.Close() })
	return &conn{Conn: nc, client: c, raw: raw, head: bufio.NewReader(nc), free: free}, nil
}

func (c *conn) Close() error {
	c.free()
	return c.Conn.Close()
}

// get asks for path and calls seen with the size of each piece of the body, as
// they come. If seen returns false, get ends early and the connection is good
// for nothing more. The same is true after last, which tells the server to close
// the connection; only then may the server leave the length open, in which case
// total includes the framing of its chunks.
func (c *conn) get(path string, last bool, seen func(n int) bool) (total int64, err error) {
	request := "GET " + path + " HTTP/1.1\r\nHost: " + c.client.addr + "\r\n"
	if last {
		request += "Connection: close\r\n"
	}
	if _, err := io.WriteString(c.Conn, request+"\r\n"); err != nil {
		return 0, fmt.Errorf("asking for %s: %w", path, err)
	}
	resp, err := http.ReadResponse(c.head, nil) //nolint:bodyclose // discard reads the body from the connection
	if err != nil {
		return 0, fmt.Errorf("reading the answer for %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		return 0, fmt.Errorf("asking for %s: %s: %s", path, resp.Status, bytes.TrimSpace(text))
	}
	if resp.ContentLength < 0 && !last {
		return 0, fmt.Errorf("asking for %s: the answer has no length", path)
	}
	total, err = c.discard(resp.ContentLength, seen)
	if err != nil {
		err = fmt.Errorf("reading %s after %d bytes: %w", path, total, err)
	}
	return total, err
}

// discard reads length bytes, or up to the end if length is negative.
func (c *conn) discard(length int64, seen func(n int) bool) (total int64, err error) {
	n := c.head.Buffered() // what came along with the header
	for {
		total += int64(n)
		if n > 0 && !seen(n) {
			return total, nil
		}
		if total == length {
			c.head.Reset(c.Conn)
			return total, nil
		}
		limit := int64(len(c.client.void))
		if length >= 0 {
			limit = min(limit, length-total)
		}
		if n, err = c.recv(int(limit)); err != nil {
			return total, err
		}
		if n == 0 && length < 0 {
			return total, nil
		}
		if n == 0 {
			return total, io.ErrUnexpectedEOF
		}
	}
}

// recv throws away what has arrived, at most limit bytes; 0 means the end.
func (c *conn) recv(limit int) (n int, err error) {
	waitErr := c.raw.Read(func(fd uintptr) bool {
		n, _, err = syscall.Recvfrom(int(fd), c.client.void[:limit], syscall.MSG_TRUNC)
		return err != syscall.EAGAIN && err != syscall.EINTR
	})
	if waitErr != nil {
		return 0, waitErr
	}
	return max(n, 0), err
}

// stream keeps clients downloads along t going for d and returns bytes a second.
func stream(ctx context.Context, addr string, t *tour, clients int, d time.Duration) (float64, error) {
	return trickle(ctx, addr, t, clients, math.MaxInt64, d)
}

// trickle is stream at no more than limit bytes a second for each client.
func trickle(ctx context.Context, addr string, t *tour, clients int, limit int64, d time.Duration) (float64, error) {
	var total atomic.Int64
	c, start := newClient(addr), time.Now()
	err := together(ctx, clients, func(ctx context.Context, _ int) error {
		conn, err := c.dial(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		got := int64(0)
		for err == nil && time.Since(start) < d {
			path, ok := t.next()
			if !ok {
				break
			}
			_, err = conn.get(path, false, func(n int) bool {
				total.Add(int64(n))
				got += int64(n)
				due := time.Duration(float64(got) / float64(limit) * float64(time.Second))
				time.Sleep(min(due, d) - time.Since(start))
				return time.Since(start) < d
			})
		}
		return err
	})
	return float64(total.Load()) / time.Since(start).Seconds(), err
}

// visit asks for each of paths once, a few at a time.
func visit(ctx context.Context, addr string, paths []string, clients int) error {
	_, err := stream(ctx, addr, newLap(paths...), clients, time.Hour)
	return err
}

// herd is what many clients saw that asked for one object at the same time.
type herd struct {
	wall   time.Duration // until the last had all of it
	firsts []float64     // seconds until a client's first byte, one for each
}

// stampede lets clients new connections ask for path at once, which must have
// size bytes.
func stampede(ctx context.Context, addr, path string, clients int, size int64) (herd, error) {
	h := herd{firsts: make([]float64, clients)}
	c, start := newClient(addr), time.Now()
	err := together(ctx, clients, func(ctx context.Context, i int) error {
		conn, err := c.dial(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		total, err := conn.get(path, true, func(int) bool {
			if h.firsts[i] == 0 {
				h.firsts[i] = time.Since(start).Seconds()
			}
			return true
		})
		if err == nil && total < size {
			return fmt.Errorf("asking for %s: got %d of %d bytes", path, total, size)
		}
		return err
	})
	h.wall = time.Since(start)
	return h, err
}

// together runs n copies of f and returns the first error, which also ends the
// others.
func together(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := f(ctx, i); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// fetch returns the body of path.
func fetch(ctx context.Context, addr, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("asking for %s: %s: %.300s", path, resp.Status, bytes.TrimSpace(body))
	}
	return body, nil
}
