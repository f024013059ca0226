package gitserver

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// startTimeout is how long sshd may take to listen.
const startTimeout = 30 * time.Second

// SSH is a way by SSH to the repositories of git.example.com.
type SSH struct {
	Addr       string // host:port
	User       string
	Key        string // file of the private key that is let in
	OtherKey   string // file of one that is not
	KnownHosts string // what a known_hosts file needs to have

	mu  sync.Mutex
	log bytes.Buffer
}

// SSH starts sshd for the account that runs the test; the test ends it. Where there is
// no sshd, the test is skipped, under CI it fails.
func (s *Server) SSH(t testing.TB) *SSH {
	t.Helper()
	program := ""
	for _, name := range []string{"sshd", "/usr/sbin/sshd"} { // which wants an absolute path
		if found, err := exec.LookPath(name); err == nil {
			program = found
		}
	}
	if program == "" {
		Missing(t, "sshd (Debian: openssh-server)")
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	x := &SSH{User: me.Username, Key: filepath.Join(dir, "key"), OtherKey: filepath.Join(dir, "other")}
	host := filepath.Join(dir, "host")
	for _, key := range []string{x.Key, x.OtherKey, host} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", key).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x.Addr = l.Addr().String()
	l.Close()
	x.KnownHosts = x.known(t, host+".pub")
	x.start(t, program, dir, s.root)
	return x
}

func (x *SSH) port() string { return x.Addr[strings.LastIndex(x.Addr, ":")+1:] }

func (x *SSH) known(t testing.TB, file string) string {
	t.Helper()
	public, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("[127.0.0.1]:%s %s", x.port(), public)
}

func (x *SSH) start(t testing.TB, program, dir, root string) {
	t.Helper()
	serve := fmt.Sprintf("#!/bin/sh\neval \"set -- $SSH_ORIGINAL_COMMAND\"\n[ \"$1\" = git-upload-pack ] && exec git upload-pack '%s/git.example.com'\"$2\"\n", root)
	config := fmt.Sprintf("Port %s\nListenAddress 127.0.0.1\nHostKey %s/host\nPidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n"+
		"KbdInteractiveAuthentication no\nAuthorizedKeysFile %s/key.pub\nPermitRootLogin yes\nAcceptEnv GIT_PROTOCOL\nForceCommand %s/serve\nLogLevel INFO\n",
		x.port(), dir, dir, dir)
	for name, content := range map[string]string{"serve": serve, "config": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o700); err != nil { //nolint:gosec // one is a program
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 {
		_ = os.MkdirAll("/run/sshd", 0o755) // sshd of root does not start without it
	}
	cmd := exec.Command(program, "-D", "-e", "-f", filepath.Join(dir, "config"))
	cmd.Stderr = x
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("sshd has logged:\n%s", x.Log())
		}
	})
	x.await(t, ended)
}

// await waits until sshd listens.
func (x *SSH) await(t testing.TB, ended chan error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", x.Addr)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case end := <-ended:
			ended <- end
			t.Fatalf("sshd: %v\n%s", end, x.Log())
		case <-ctx.Done():
			t.Fatalf("sshd does not listen: %v\n%s", err, x.Log())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Write collects what sshd logs.
func (x *SSH) Write(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.log.Write(p)
}

// Log returns what sshd has logged.
func (x *SSH) Log() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.log.String()
}
