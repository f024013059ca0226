package test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/test/harness"
)

// TestBadInput starts ringmod with what cannot work: one line that says what to
// do, exit status 2 for a wrong call and 1 for a machine that does not play
// along, never a stack trace.
func TestBadInput(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { busy.Close() })
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	newer := filepath.Join(dir, "newer")
	config := filepath.Join(dir, "config.yaml")
	for name, content := range map[string]string{file: "", config: "http-addr: 127.0.0.1:0\nhtp-addr: oops\n", filepath.Join(newer, "format"): "999\n"} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	used := t.TempDir()
	harness.Serve(t, "--data-dir", used, "--offline", "--sumdb", "off")

	ports := []string{"--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--gossip-addr", "127.0.0.1:0", "--sumdb", "off"}
	serve := func(args ...string) []string { return append(append([]string{"serve"}, ports...), args...) }
	tests := []struct {
		name   string
		env    []string
		args   []string
		status int
		want   string // in the one line on stderr
	}{
		{name: "unknown command", args: []string{"sreve"}, status: 2, want: `unknown command "sreve"`},
		{name: "unknown flag", args: []string{"serve", "--htp-addr", "x"}, status: 2, want: "see 'ringmod serve --help'"},
		{name: "argument", args: serve("extra"), status: 2, want: `"extra"`},
		{name: "bad address", args: []string{"serve", "--http-addr", "8080"}, status: 2, want: "host:port"},
		{name: "bad port", args: []string{"serve", "--offline", "--http-addr", "127.0.0.1:99999"}, status: 2, want: "65535"},
		{name: "bad level", args: serve("--log-level", "loud"), status: 2, want: "debug, info, warn"},
		{name: "bad format", args: serve("--log-format", "xml"), status: 2, want: "text nor json"},
		{name: "bad sumdb", args: append(serve("--offline", "--data-dir", dir)[:9], "--sumdb", "unknown.example.com"), status: 2, want: "unknown.example.com"},
		{name: "bad upstream", args: serve("--upstream", "ftp://mirror.example.com"), status: 2, want: "ftp"},
		{name: "bad environment", env: []string{"RINGMOD_OFFLINE=perhaps"}, args: serve(), status: 2, want: "RINGMOD_OFFLINE"},
		{name: "bad configuration", args: serve("--config", config), status: 2, want: `unknown key "htp-addr"`},
		{name: "services for everybody", args: serve("--offline", "--grpc-addr", ":0"), status: 2, want: "loopback"},
		{name: "bad region", args: serve("--offline", "--region", "eu west"), status: 2, want: "region"},
		{name: "bad replicas", args: serve("--offline", "--replicas", "9"), status: 2, want: "--replicas"},
		{name: "bad node id", args: serve("--offline", "--data-dir", t.TempDir(), "--node-id", "a|b"), status: 2, want: "node id"},
		{name: "no configuration", args: serve("--config", filepath.Join(dir, "none")), status: 2, want: "no such file"},
		{name: "no go command", env: []string{"PATH=" + dir}, args: serve("--data-dir", dir), status: 2, want: "give --upstream"},
		{name: "certificate without key", args: serve("--tls-cert", file), status: 2, want: "--tls-key"},
		{name: "address in use", args: serve("--http-addr", busy.Addr().String(), "--offline"), status: 1, want: "in use by another process"},
		{name: "data folder is a file", args: serve("--offline", "--data-dir", file), status: 1, want: file},
		{name: "data folder in use", args: serve("--offline", "--data-dir", used), status: 1, want: "in use by another process"},
		{name: "data folder of a newer version", args: serve("--offline", "--data-dir", newer), status: 1, want: "newer"},
		{name: "data folder not writable", args: serve("--offline", "--data-dir", "/proc/ringmod"), status: 1, want: "/proc/ringmod"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			status, stdout, stderr := harness.Run(t, test.env, test.args...)
			if status != test.status {
				t.Errorf("exit status %d, want %d", status, test.status)
			}
			if strings.Count(strings.TrimRight(stderr, "\n"), "\n") != 0 || !strings.Contains(stderr, test.want) {
				t.Errorf("stderr %q, want one line with %q", stderr, test.want)
			}
			if stdout != "" {
				t.Errorf("stdout %q, want nothing", stdout)
			}
		})
	}
}

// TestUpstreamIsOurselves gives a gateway its own address as the only upstream.
func TestUpstreamIsOurselves(t *testing.T) {
	t.Parallel()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	status, _, stderr := harness.Run(t, nil, "serve", "--http-addr", addr, "--grpc-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--gossip-addr", "127.0.0.1:0",
		"--data-dir", t.TempDir(), "--upstream", "http://"+addr)
	if status != 2 || !strings.Contains(stderr, "leads back") {
		t.Errorf("exit status %d, stderr %q, want 2 and a line that says that the upstream leads back here", status, stderr)
	}
}

// TestGoproxyIsOurselves starts where the developer's go command points here
// already: the go command's own default is the upstream then.
func TestGoproxyIsOurselves(t *testing.T) {
	t.Parallel()
	p := harness.ServeEnv(t, []string{"GOPROXY=http://127.0.0.1:1,direct", "RINGMOD_LOG_FORMAT=json"}, "--data-dir", t.TempDir())
	if got := p.Log(); strings.Contains(got, "leads back") {
		t.Errorf("an upstream elsewhere was taken for ourselves: %s", got)
	}
	addr := p.HTTP
	p.Stop()
	p = harness.ServeEnv(t, []string{"GOPROXY=http://" + addr + ",direct"}, "--data-dir", t.TempDir(), "--http-addr", addr)
	p.Stop()
	if got, want := p.Log(), "using the go command's default as upstream"; !strings.Contains(got, want) {
		t.Errorf("the log %q does not say %q", got, want)
	}
}

// TestSettings checks that the command line wins over the environment and the
// environment over the file.
func TestSettings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config := filepath.Join(dir, "ringmod.yaml")
	yaml := "data-dir: " + filepath.Join(dir, "from-file") + "\nnode-id: from-file\nsumdb: [off]\noffline: true\n"
	if err := os.WriteFile(config, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	p := harness.Serve(t, "--config", config, "--node-id", "from-flag")
	p.Stop()
	got, err := os.ReadFile(filepath.Join(dir, "from-file", "node-id"))
	if err != nil || string(got) != "from-flag\n" {
		t.Errorf("node-id file holds %q, %v, want from-flag", got, err)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	status, stdout, stderr := harness.Run(t, nil, "version")
	if status != 0 || !strings.HasPrefix(stdout, "ringmod ") || stderr != "" {
		t.Errorf("ringmod version: status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
}
