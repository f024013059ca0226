package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// startLimit bounds how long a server may take until it serves.
const startLimit = 20 * time.Second

// process is a server that runs as a child until stop.
type process struct {
	addr   string            // host:port of its HTTP side
	ready  map[string]string // the addresses of its ready line, by name
	cmd    *exec.Cmd
	log    *tail
	cancel context.CancelFunc
	done   chan struct{} // closed when it has ended
}

// spawn starts a program. It ends by SIGTERM when ctx ends or stop is called,
// and by SIGKILL if that takes it longer than 10 s.
func spawn(ctx context.Context, name string, args ...string) (*process, error) {
	ctx, cancel := context.WithCancel(ctx)
	p := &process{cancel: cancel, log: newTail(), done: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, name, args...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 10 * time.Second
	if err := p.cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("starting %s: %w", filepath.Base(name), err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // a server that we end has a bad status or not, as it likes
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends the server and waits until it is gone.
func (p *process) stop() {
	p.cancel()
	<-p.done
}

// lastWords returns the end of what the server printed.
func (p *process) lastWords() string { return p.log.String() }

// await waits until ready yields true. It stops the process and returns its
// last words if it ends first or takes longer than startLimit.
func (p *process) await(ctx context.Context, ready func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-tick.C:
		case <-p.done:
			return fmt.Errorf("%s ended at once: %s", filepath.Base(p.cmd.Path), p.lastWords())
		case <-ctx.Done():
			p.stop()
			return fmt.Errorf("%s was not ready in %s: %s", filepath.Base(p.cmd.Path), startLimit, p.lastWords())
		}
	}
	return nil
}

// node says how ringmod is started: on which data, with which upstream.
type node struct {
	dataDir  string
	upstream string // GOPROXY syntax; ignored when offline
	sumdb    string // "off" or a name
	offline  bool
}

func (b *bench) startRingmod(ctx context.Context, n node) (*process, error) {
	const free = "127.0.0.1:0"
	args := []string{
		"serve", "--http-addr", free, "--grpc-addr", free, "--gossip-addr", free, "--admin-addr", free,
		"--data-dir", n.dataDir, "--sumdb", n.sumdb, "--log-level", b.logLevel,
	}
	if n.offline {
		args = append(args, "--offline")
	} else {
		args = append(args, "--upstream", n.upstream)
	}
	return spawnReady(ctx, b.ringmod, args...)
}

// spawnReady starts a program that says with a ready line when it serves, and
// where.
func spawnReady(ctx context.Context, name string, args ...string) (*process, error) {
	p, err := spawn(ctx, name, args...)
	if err != nil {
		return nil, err
	}
	err = p.await(ctx, func() bool { p.ready = p.log.readyAddrs(); return p.ready != nil })
	p.addr = p.ready["http"]
	return p, err
}

// parseReady returns the addresses of a line "ready http=ADDR grpc=ADDR …", nil
// for any other line.
func parseReady(line string) map[string]string {
	fields := strings.Fields(line)
	if len(fields) < 2 || fields[0] != "ready" {
		return nil
	}
	addrs := map[string]string{}
	for _, f := range fields[1:] {
		name, addr, ok := strings.Cut(f, "=")
		if !ok {
			return nil
		}
		addrs[name] = addr
	}
	return addrs
}

// freeAddr returns an address on loopback that nobody listens on just now.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// tail keeps the end of what a child prints, and its ready line.
type tail struct {
	mu    sync.Mutex
	text  []byte
	line  []byte            // what follows the last newline
	ready map[string]string // its addresses
}

const tailSize = 4 << 10

func newTail() *tail { return &tail{} }

// Write implements io.Writer; it never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.line = append(t.line, p...)
	for {
		line, rest, found := bytes.Cut(t.line, []byte("\n"))
		if !found {
			break
		}
		if addrs := parseReady(string(line)); t.ready == nil {
			t.ready = addrs
		}
		t.line = rest
	}
	if t.text = append(t.text, p...); len(t.text) > 16*tailSize {
		t.text = append(t.text[:0], t.text[len(t.text)-tailSize:]...)
	}
	return len(p), nil
}

func (t *tail) readyAddrs() map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ready
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.text[max(0, len(t.text)-tailSize):]))
}

// awaitFiles waits until the files of a tree are there, and are not empty: a
// server may answer a little earlier than it stores.
func awaitFiles(ctx context.Context, root string, paths ...string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for _, path := range paths {
		for {
			info, err := os.Stat(filepath.Join(root, filepath.FromSlash(path)))
			if err == nil && info.Size() > 0 {
				break
			}
			select {
			case <-ctx.Done():
				return errors.Join(fmt.Errorf("nginx cannot serve the same tree: %s is not below %s", path, root), err)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return nil
}
