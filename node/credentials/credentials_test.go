package credentials_test

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/ringmod/ringmod/node/credentials"
)

const (
	private = "git.example.com,*.corp.example.com,github.com/acme"
	key     = "-----BEGIN OPENSSH PRIVATE KEY-----\naHVudGVyMg==\n-----END OPENSSH PRIVATE KEY-----\n"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func open(t *testing.T, text string) (*credentials.Credentials, error) {
	t.Helper()
	return credentials.Open(credentials.Config{File: write(t, filepath.Join(t.TempDir(), "c.yaml"), text), Private: private})
}

// The most specific pattern decides alone, and only for what is private.
func TestFor(t *testing.T) {
	t.Parallel()
	c, err := open(t, `
# a comment
git.example.com: {login: all, password: p}
git.example.com/t*: {login: glob, password: p}
git.example.com/team: {login: team, password: p}
git.example.com/te?m: {login: other, password: p}
git.example.com/[a-z]eam: {login: class, password: p}
git.example.com/*/deep: {token: t}
"*.corp.example.com/x": {login: corp, password: p, host: [Git.corp.example.com, "git2.corp.example.com:8443"]}
github.com/acme: {login: acme, password: p}
`)
	if err != nil {
		t.Fatal(err)
	}
	for path, login := range map[string]string{
		"git.example.com/x":          "all",
		"git.example.com/tools/x":    "glob",
		"git.example.com/team":       "team",
		"git.example.com/team/x":     "team",
		"git.example.com/teem/x":     "other",
		"git.example.com/beam/x":     "class",
		"git.example.com/team/deep":  "x-access-token",
		"git.example.com/a/deep/x":   "x-access-token",
		"go.corp.example.com/x/y":    "corp",
		"go.corp.example.com/y":      "",
		"corp.example.com/x":         "",
		"github.com/acme/x":          "acme",
		"github.com/acmecorp/x":      "",
		"git.example.com.evil.com/x": "",
	} {
		e, ok := c.For(t.Context(), path)
		if e.Login != login || ok != (login != "") {
			t.Errorf("%s: got the login %q, %v, want %q", path, e.Login, ok, login)
		}
	}
	e, _ := c.For(t.Context(), "go.corp.example.com/x")
	if want := []string{"git.corp.example.com", "git2.corp.example.com:8443"}; !reflect.DeepEqual(e.Hosts, want) {
		t.Errorf("got hosts %q, want %q", e.Hosts, want)
	}
	var none *credentials.Credentials
	if _, ok := none.For(t.Context(), "git.example.com/x"); ok || none.GitConfig(t.Context()) != nil {
		t.Error("nil knows something")
	}
}

func TestEntry(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "key"), key)
	write(t, filepath.Join(dir, "token"), "hunter2\r\n")
	file := write(t, filepath.Join(dir, "c.yaml"), `
git.example.com/a: {token: "file:token"}
git.example.com/b: {token: "file:`+dir+`/token", login: me}
git.example.com/c: {ssh-key: "file:key", known-hosts: "git.example.com ssh-ed25519 AAAA"}
git.example.com/d: {ssh-key: "file:key", ssh-user: gogs, ssh-host: "src.example.com:2222", token: "123"}
`)
	c, err := credentials.Open(credentials.Config{File: file, Private: private})
	if err != nil {
		t.Fatal(err)
	}
	host := []string{"git.example.com"}
	for _, want := range []credentials.Entry{
		{Pattern: "git.example.com/a", Login: "x-access-token", Password: "hunter2", Hosts: host, SSHUser: "git", SSHHost: host[0]},
		{Pattern: "git.example.com/b", Login: "me", Password: "hunter2", Hosts: host, SSHUser: "git", SSHHost: host[0]},
		{Pattern: "git.example.com/c", Hosts: host, SSHKey: key, SSHUser: "git", SSHHost: host[0], KnownHosts: "git.example.com ssh-ed25519 AAAA"},
		{Pattern: "git.example.com/d", Login: "x-access-token", Password: "123", Hosts: host, SSHKey: key, SSHUser: "gogs", SSHHost: "src.example.com:2222"},
	} {
		if got, _ := c.For(t.Context(), want.Pattern+"/x"); !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

// What is wrong is one line that names the file and never cites it.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ text, want string }{
		{"git.example.com: {password: *hunter2}", "not YAML"},
		{"*.corp.example.com: {token: hunter2}", "wants quotes"},
		{"git.example.com: {login: x, password: 'hunter2}", "not YAML"},
		{"hunter2", "line 1: want patterns"},
		{"- hunter2", "line 1: want patterns"},
		{"git.example.com: hunter2", "line 1: want login and password, token or ssh-key"},
		{"git.example.com:\n  hunter2: x", "line 2: unknown key"},
		{"git.example.com: {token: [hunter2]}", "want some text"},
		{"git.example.com: {token: ''}", "want some text"},
		{"git.example.com: {token: ~}", "want some text"},
		{"git.example.com: {token: a, token: hunter2}", "twice"},
		{"git.example.com: {token: a}\ngit.example.com: {token: hunter2}", "line 2: the pattern git.example.com is there twice"},
		{"git.example.com: {token: a, login: x, password: hunter2}", "both"},
		{"git.example.com: {password: hunter2}", "go together"},
		{"git.example.com: {login: x}", "neither"},
		{"git.example.com: {}", "neither"},
		{"git.example.com: {login: x, password: 'hunter2 is long'}", "space"},
		{"git.example.com: {login: x, password: \"hunter2\\nmachine other\"}", "space"},
		{"git.example.com: {ssh-key: hunter2}", "file:PATH"},
		{"git.example.com: {token: 'file:/does/not/exist'}", "no such file"},
		{"other.example.com: {token: hunter2}", "other.example.com is not private: add it to --private"},
		{"'*': {token: hunter2}", "is not private"},
		{"'*.corp.example.com': {token: hunter2}", "say with host"},
		{"git.example.com: {token: hunter2, host: 'https://git.example.com'}", "want a host"},
		{"git.example.com: {token: hunter2, host: 'a b'}", "want a host"},
		{"git.example.com: {token: hunter2, host: '-oProxyCommand=x'}", "want a host"},
		{"git.example.com,github.com/acme: {token: hunter2}", "one pattern"},
		{"https://git.example.com: {token: hunter2}", "one pattern"},
		{"git.example.com/[: {token: hunter2}", "one pattern"},
	} {
		_, err := open(t, test.text)
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.ContainsAny(err.Error(), "\n") {
			t.Errorf("%q: got %v, want one line with %q", test.text, err, test.want)
		} else if strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "c.yaml") {
			t.Errorf("%q: %v", test.text, err)
		}
	}
	for _, empty := range []string{"", "# nothing yet\n"} {
		if _, err := open(t, empty); err != nil {
			t.Errorf("%q: %v", empty, err)
		}
	}
	if _, err := credentials.Open(credentials.Config{File: filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Error("a missing file was accepted")
	}
}

type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

// A file that everybody may read is refused when it holds a secret, and warned of when
// it is one.
func TestReadableByAll(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	inline := write(t, filepath.Join(dir, "inline"), "git.example.com: {token: hunter2}")
	token := write(t, filepath.Join(dir, "token"), "hunter2")
	names := write(t, filepath.Join(dir, "names"), "git.example.com: {token: 'file:token'}")
	for _, name := range []string{inline, token, names} {
		if err := os.Chmod(name, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := credentials.Open(credentials.Config{File: inline, Private: private}); err == nil || !strings.Contains(err.Error(), "chmod o= "+inline) {
		t.Errorf("got %v, want that everybody may read it", err)
	}
	var out logs
	c, err := credentials.Open(credentials.Config{File: names, Private: private, Logger: slog.New(slog.NewTextHandler(&out, nil))})
	if err != nil {
		t.Fatal(err)
	}
	c.For(t.Context(), "git.example.com/x")
	if got := out.count("everybody on this machine may read a secret"); got != 1 || out.count("hunter2") > 0 {
		t.Errorf("warned %d times, want once:\n%s", got, &out.buf)
	}
}

// A change counts at once; what is broken does not, and is told once.
func TestFilesAreReadAgain(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is missing")
	}
	var out logs
	dir := t.TempDir()
	file, token, git := filepath.Join(dir, "c.yaml"), filepath.Join(dir, "token"), filepath.Join(dir, "gitconfig")
	write(t, file, "git.example.com: {token: 'file:token'}")
	write(t, token, "first")
	write(t, git, "[http]\n\tproxy = first\n")
	c, err := credentials.Open(credentials.Config{File: file, GitConfig: git, Private: private, Logger: slog.New(slog.NewTextHandler(&out, nil))})
	if err != nil {
		t.Fatal(err)
	}
	now := func() (string, string) {
		e, _ := c.For(t.Context(), "git.example.com/x")
		return e.Password, string(c.GitConfig(t.Context()))
	}
	check := func(when, password, config string) {
		t.Helper()
		if p, g := now(); p != password || !strings.Contains(g, config) {
			t.Errorf("%s: got %q and %q, want %q and %q", when, p, g, password, config)
		}
	}
	check("at first", "first", "first")
	write(t, token, "second")
	write(t, git, "[http]\n\tproxy = second\n")
	check("changed", "second", "second")
	write(t, file, "git.example.com: {token")
	write(t, git, "[http\nproxy = hunter2")
	check("broken", "second", "second")
	check("still broken", "second", "second")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	check("gone", "second", "second")
	if got := out.count("level=ERROR"); got != 3 || out.count("hunter2") > 0 {
		t.Errorf("told %d times, want 3:\n%s", got, &out.buf)
	}
	write(t, file, "git.example.com/x: {token: third}")
	check("mended", "third", "second")
}

func FuzzFile(f *testing.F) {
	f.Add("git.example.com: {token: t}\ngithub.com/acme: {ssh-key: k}\n")
	f.Add("git.example.com/[a: {login: l, password: p, host: [a, b:1]}")
	f.Add("? [a]\n: &x {token: *x}\n")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "file:") {
			t.Skip("reads files")
		}
		c, err := open(t, text)
		if err != nil {
			return
		}
		if e, ok := c.For(t.Context(), "git.example.com/x"); ok && e.Password == "" && e.SSHKey == "" {
			t.Errorf("%+v opens nothing", e)
		}
		if _, ok := c.For(t.Context(), "public.example.com/x"); ok {
			t.Error("a module that is not private gets credentials")
		}
	})
}
