package harness

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ringmod/ringmod/internal/wire"
)

// logTail is how much of each process's log a failed test prints, in bytes.
const logTail = 16 << 10

// Host is a place other than this machine for processes to run, such as a
// network namespace of package wan.
type Host interface {
	// IP is the address that processes there listen on.
	IP() netip.Addr
	// Enter moves the calling thread, which is locked, there until leave is called.
	Enter() (leave func() error, err error)
	// Dial connects from there.
	Dial(ctx context.Context, network, addr string) (net.Conn, error)
}

// Process is a running ringmod. What it does not have is empty.
type Process struct {
	Name   string // node id; of a process outside a cluster its command
	HTTP   string // host:port of the GOPROXY protocol
	GRPC   string // host:port of the node's services
	Gossip string // host:port of the gossip
	Admin  string // host:port of /metrics

	t      testing.TB
	host   Host
	cmd    *exec.Cmd
	client http.Client
	done   chan struct{} // closed when the process has ended

	mu  sync.Mutex
	log strings.Builder
	err error // of Wait
}

// start runs ringmod and waits for its ready line.
func start(t testing.TB, name string, host Host, env, args []string) *Process {
	t.Helper()
	p := &Process{Name: cmp.Or(name, args[0]), t: t, host: host, cmd: exec.Command(Binary(t), args...), done: make(chan struct{})}
	p.client.Transport = &http.Transport{DialContext: p.dial, MaxIdleConnsPerHost: 64}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = p
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := startCommand(p.cmd, host); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.cleanup)
	ready := make(chan string, 1)
	go p.watch(stdout, ready)
	select {
	case line := <-ready:
		p.parse(line)
	case <-p.done:
		t.Fatalf("%s ended before it was ready:\n%s", p.Name, p.Log())
	case <-time.After(startTimeout):
		t.Fatalf("%s was not ready within %v:\n%s", p.Name, startTimeout, p.Log())
	}
	return p
}

// watch passes the ready line on and waits for the end.
func (p *Process) watch(stdout io.Reader, ready chan<- string) {
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if line, ok := strings.CutPrefix(lines.Text(), "ready "); ok {
			ready <- line
		}
	}
	err := p.cmd.Wait()
	p.mu.Lock()
	p.err = err
	p.mu.Unlock()
	close(p.done)
}

func (p *Process) parse(line string) {
	for field := range strings.FieldsSeq(line) {
		switch key, value, _ := strings.Cut(field, "="); key {
		case "http":
			p.HTTP = value
		case "grpc":
			p.GRPC = value
		case "gossip":
			p.Gossip = value
		case "admin":
			p.Admin = value
		}
	}
}

func (p *Process) cleanup() {
	p.Kill()
	p.client.CloseIdleConnections()
	if p.t.Failed() {
		log := p.Log()
		p.t.Logf("the end of what %s (pid %d) has logged:\n%s", p.Name, p.PID(), log[max(0, len(log)-logTail):])
	}
}

func (p *Process) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if p.host != nil {
		return p.host.Dial(ctx, network, addr)
	}
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

// Client returns an HTTP client that reaches the process, wherever it runs.
func (p *Process) Client() *http.Client { return &p.client }

// Conn connects to the services of a node. The test closes the connection.
func (p *Process) Conn() *grpc.ClientConn {
	p.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+p.GRPC, append(wire.DialOptions(&wire.Pool{}, wire.Near),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return p.dial(ctx, "tcp", addr) }))...)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Write collects the process's log.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

// Log returns what the process has logged so far.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// URL returns the GOPROXY of the process.
func (p *Process) URL() string { return "http://" + p.HTTP }

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Running tells whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Stop sends SIGTERM and waits; a process that fails or hangs fails the test.
func (p *Process) Stop() {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.Wait(); err != nil {
		p.t.Fatalf("%s stopped with %v:\n%s", p.Name, err, p.Log())
	}
}

// Wait waits until the process ends by itself, and returns what os/exec says of
// its end.
func (p *Process) Wait() error {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(startTimeout):
		p.t.Fatalf("%s did not end within %v:\n%s", p.Name, startTimeout, p.Log())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Kill sends SIGKILL and waits.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Freeze sends SIGSTOP: the process does nothing until Thaw, but its sockets stay
// open.
func (p *Process) Freeze() { _ = p.cmd.Process.Signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on.
func (p *Process) Thaw() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }

// Metric returns the sum of all series of a counter or gauge whose line starts
// with prefix.
func (p *Process) Metric(prefix string) float64 {
	p.t.Helper()
	sum, err := p.metric(prefix)
	if err != nil {
		p.t.Fatalf("metrics of %s: %v", p.Name, err)
	}
	return sum
}

func (p *Process) metric(prefix string) (float64, error) {
	body, err := p.admin("/metrics", startTimeout)
	if err != nil {
		return 0, err
	}
	var sum float64
	for line := range strings.Lines(body) {
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		fields := strings.Fields(line)
		value, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil {
			return 0, fmt.Errorf("line %q: %w", line, err)
		}
		sum += value
	}
	return sum, nil
}

// admin reads a page of the admin address.
func (p *Process) admin(path string, within time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Admin+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

// PeakRSS returns the largest resident set that the process has had, in bytes.
func (p *Process) PeakRSS() int64 {
	p.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return kib << 10
		}
	}
	p.t.Fatal("no VmHWM in /proc")
	return 0
}
