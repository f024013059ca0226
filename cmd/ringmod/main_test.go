package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOneLineOfError holds what a mistake in the call prints: one line, no
// secrets, nothing on standard output, which scripts read "ready" from.
func TestOneLineOfError(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text.yaml")
	if err := os.WriteFile(text, []byte("no mapping\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	opens := filepath.Join(t.TempDir(), "opens.yaml")
	if err := os.WriteFile(opens, []byte("git.example.com: {token: secret}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		env  map[string]string
		args []string
		want string // part of the line
		exit int
	}{
		{
			name: "certificate that is not there", exit: 2, want: "--tls-cert",
			args: []string{"--tls-cert", filepath.Join(t.TempDir(), "cert.pem"), "--tls-key", filepath.Join(t.TempDir(), "key.pem")},
		},
		{name: "file that is no mapping", exit: 2, want: "text.yaml", args: []string{"--config", text}},
		{
			name: "two bad variables", exit: 2, want: "RINGMOD_REPLICAS",
			env: map[string]string{"RINGMOD_WEIGHT": "x", "RINGMOD_REPLICAS": "y"},
		},
		{name: "limit without a unit that is known", exit: 2, want: `--disk-limit "5G": want bytes such as 20GiB`, args: []string{"--disk-limit", "5G"}},
		{
			name: "credentials for what is not private", exit: 2, want: "opens.yaml: line 1: the pattern git.example.com is not private: add it to --private",
			args: []string{"--credentials", opens, "--private", "other.example.com"},
		},
		{name: "git configuration that git does not understand", exit: 2, want: "text.yaml: 'git config", args: []string{"--git-config", text}},
		{name: "limit beyond all", exit: 2, want: "--disk-limit", env: map[string]string{"RINGMOD_DISK_LIMIT": "101%"}},
		{
			name: "password of a checksum database", exit: 2, want: "sum.golang.org: its URL cannot be parsed",
			args: []string{"--sumdb", "sum.golang.org https://user:secret@host:port/"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for name, value := range test.env {
				t.Setenv(name, value)
			}
			args := append([]string{
				"serve", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0",
				"--data-dir", t.TempDir(), "--upstream", "off",
			}, test.args...)
			var stdout, stderr bytes.Buffer
			if got := run(t.Context(), args, &stdout, &stderr); got != test.exit {
				t.Errorf("exit status %d, want %d", got, test.exit)
			}
			line := stderr.String()
			if strings.Count(line, "\n") != 1 || !strings.Contains(line, test.want) || strings.Contains(line, "secret") {
				t.Errorf("got %q, want one line with %q and without the password", line, test.want)
			}
			if stdout.Len() > 0 {
				t.Errorf("got %q on standard output, want nothing", &stdout)
			}
		})
	}
}

// fullDisk fails as often as it is told.
type fullDisk struct {
	bytes.Buffer

	fail bool
}

func (d *fullDisk) Write(p []byte) (int, error) {
	if d.fail {
		return 0, errors.New("no space left on device")
	}
	return d.Buffer.Write(p)
}

func TestLogGoesOnAfterAFailedWrite(t *testing.T) {
	t.Parallel()
	disk := &fullDisk{fail: true}
	log := newBatchWriter(disk)
	_, _ = log.Write([]byte("lost\n"))
	log.Flush()
	disk.fail = false
	if _, err := log.Write([]byte("kept\n")); err != nil {
		t.Errorf("got %v, want the line taken", err)
	}
	log.Flush()
	if got, want := disk.String(), "kept\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
