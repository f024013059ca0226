package direct_test

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/credentials"
	"github.com/ringmod/ringmod/node/direct"
	"github.com/ringmod/ringmod/node/upstream"
)

// repository is a git repository that https://example.com/repo stands for.
type repository struct {
	t    *testing.T
	dir  string
	home string // of who commits; its .gitconfig leads the go command here
}

func newRepository(t *testing.T) *repository {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("git is missing")
		}
		t.Skip("git is missing")
	}
	r := &repository{t: t, dir: t.TempDir(), home: t.TempDir()}
	config := fmt.Sprintf("[user]\n\tname = n\n\temail = n@example.com\n[url %q]\n\tinsteadOf = https://example.com/repo\n", "file://"+r.dir)
	if err := os.WriteFile(r.config(), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	r.git("init", "-q", "-b", "main")
	return r
}

func (r *repository) config() string { return filepath.Join(r.home, ".gitconfig") }

func (r *repository) git(args ...string) string {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "git", args...)
	cmd.Dir = r.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.home, "GIT_CONFIG_NOSYSTEM=1"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit writes files, commits them and tags the commit.
func (r *repository) commit(files map[string]string, tags ...string) {
	r.t.Helper()
	for name, content := range files {
		path := filepath.Join(r.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			r.t.Fatal(err)
		}
	}
	r.git("add", ".")
	r.git("commit", "-q", "-m", "a commit")
	for _, tag := range tags {
		r.git("tag", tag)
	}
}

// newDirect asks the repository, and no network.
func newDirect(t *testing.T, r *repository, change func(*direct.Config)) (d *direct.Direct, dir string) {
	t.Helper()
	var configured *credentials.Credentials
	if r.t != nil {
		var err error
		if configured, err = credentials.Open(credentials.Config{GitConfig: r.config()}); err != nil {
			t.Fatal(err)
		}
	}
	cfg := direct.Config{
		Dir: t.TempDir(), Credentials: configured, Env: []string{"PATH=" + os.Getenv("PATH"), "GIT_ALLOW_PROTOCOL=file:https"},
		LookupHost: func(_ context.Context, host string) ([]string, error) {
			return nil, &net.DNSError{Name: host, IsNotFound: true}
		},
	}
	if change != nil {
		change(&cfg)
	}
	return direct.New(cfg), cfg.Dir
}

func parse(t *testing.T, name string) target.Target {
	t.Helper()
	parsed, err := target.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func fetch(t *testing.T, d *direct.Direct, name string) ([]byte, error) {
	t.Helper()
	resp, err := d.Fetch(t.Context(), parse(t, name))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && (int64(len(data)) != resp.Size || resp.Source != "direct") {
		t.Errorf("%s: %d bytes of %d from %s", name, len(data), resp.Size, resp.Source)
	}
	return data, err
}

func mustFetch(t *testing.T, d *direct.Direct, name string) string {
	t.Helper()
	data, err := fetch(t, d, name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return string(data)
}

const (
	repo = "example.com/repo.git"
	mod1 = "module example.com/repo.git\n\ngo 1.20\n\nretract v1.0.1\n"
)

// zips returns the zips and unpacked modules that are in a sandbox.
func zips(t *testing.T, dir string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "mod"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && (strings.HasSuffix(path, ".zip") || strings.HasSuffix(path, ".ziphash") || e.IsDir() && strings.Contains(e.Name(), "@v1")) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A repository with tags, a module in a folder, a commit without a tag: everything
// that the protocol can ask for, and a zip only where a zip is asked for.
func TestFetch(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	r.commit(map[string]string{"go.mod": mod1, "a.go": "package repo\n"}, "v1.0.0")
	r.commit(map[string]string{"a.go": "package repo // retracted\n"}, "v1.0.1", "unrelated")
	r.commit(map[string]string{"a.go": "package repo // again\n"}, "v1.1.0")
	r.commit(map[string]string{"sub/go.mod": "module example.com/repo.git/sub\n", "sub/b.go": "package sub\n"}, "sub/v0.1.0")
	head := r.git("rev-parse", "HEAD")
	d, dir := newDirect(t, r, nil)

	if got, want := mustFetch(t, d, repo+"/@v/list"), "v1.0.0\nv1.0.1\nv1.1.0\n"; got != want {
		t.Errorf("list: got %q, want %q", got, want)
	}
	if got, want := mustFetch(t, d, repo+"/sub/@v/list"), "v0.1.0\n"; got != want {
		t.Errorf("list of the folder: got %q, want %q", got, want)
	}
	if got := mustFetch(t, d, repo+"/@v/v1.0.0.mod"); got != mod1 {
		t.Errorf("mod: got %q, want %q", got, mod1)
	}
	pseudo := ""
	for name, version := range map[string]string{
		"/@v/v1.0.0.info":            "v1.0.0",
		"/@latest":                   "v1.1.0",
		"/@v/unrelated.info":         "v1.0.1",
		"/@v/main.info":              "v1.1.1-0.",
		"/@v/" + head[:12] + ".info": "v1.1.1-0.",
	} {
		var got struct {
			Version string
			Time    time.Time
			Origin  struct{ VCS, Hash string }
		}
		text := mustFetch(t, d, repo+name)
		err := json.Unmarshal([]byte(text), &got)
		if err != nil || !strings.HasPrefix(got.Version, version) || got.Time.IsZero() || got.Origin.VCS != "git" || len(got.Origin.Hash) != 40 {
			t.Errorf("%s: got %s, %v, want %s", name, text, err, version)
		}
		if name == "/@v/main.info" {
			pseudo = got.Version
		}
	}
	if got := mustFetch(t, d, repo+"/@v/"+pseudo+".mod"); got != mod1 {
		t.Errorf("mod of a commit: got %q, want %q", got, mod1)
	}
	if got := zips(t, dir); len(got) > 0 {
		t.Errorf("made without being asked for: %v", got)
	}
	for range 2 {
		data := []byte(mustFetch(t, d, repo+"/@v/v1.1.0.zip"))
		z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
		if err != nil || len(z.File) != 2 || !strings.HasPrefix(z.File[0].Name, repo+"@v1.1.0/") {
			t.Errorf("zip: %v, %v", z, err)
		}
		if got := zips(t, dir); len(got) > 0 {
			t.Errorf("left behind: %v", got)
		}
	}
	r.commit(map[string]string{"a.go": "package repo // new\n"}, "v1.2.0")
	if got, want := mustFetch(t, d, repo+"/@v/list"), "v1.0.0\nv1.0.1\nv1.1.0\nv1.2.0\n"; got != want {
		t.Errorf("list with a new tag: got %q, want %q", got, want)
	}
}

func TestAbsence(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	r.commit(map[string]string{"go.mod": mod1}, "v1.0.0")
	d, _ := newDirect(t, r, nil)
	for _, test := range []struct {
		name string
		want cache.Reason
	}{
		{repo + "/@v/v9.0.0.info", cache.NotFound}, // of a /v9
		{repo + "/@v/v1.9.0.info", cache.NotFound},
		{repo + "/@v/v1.9.0.mod", cache.NotFound},
		{repo + "/@v/v1.9.0.zip", cache.NotFound},
		{repo + "/@v/nobranch.info", cache.NotFound},
		{repo + "/@v/upgrade.info", cache.NotFound},
		{repo + "/none/@latest", cache.NotFound},
		{repo + "/@v/v1.0.1-0.20200101000000-0123456789ab.info", cache.NotFound},
		{"example.com/none.git/@v/list", cache.Broken}, // no protocol leads there
		{"sumdb/sum.example.com/latest", cache.Malformed},
	} {
		if _, err := fetch(t, d, test.name); cache.ReasonOf(err) != test.want {
			t.Errorf("%s: got %v (%v), want %v", test.name, cache.ReasonOf(err), err, test.want)
		}
	}
}

// script makes a program that stands for the go command.
func script(t *testing.T, text string) func(*direct.Config) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "go")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	return func(cfg *direct.Config) { cfg.Go = name }
}

// The sandbox has nothing of ours.
func TestSandbox(t *testing.T) {
	t.Setenv("GOFLAGS", "-mod=vendor")
	t.Setenv("SECRET_TOKEN", "hunter2")
	r := &repository{home: t.TempDir()}
	out := filepath.Join(t.TempDir(), "env")
	d, dir := newDirect(t, r, script(t, "env > "+out+"; pwd >> "+out+"; echo '{\"Version\":\"v1.0.0\"}'"))
	mustFetch(t, d, repo+"/@v/v1.0.0.info")
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	got := string(data)
	for _, want := range []string{
		"HOME=" + dir + "/home\n", "GOMODCACHE=" + dir + "/mod\n", "GOENV=off\n", "GOFLAGS=-modcacherw\n", "GOTOOLCHAIN=local\n",
		"GOPROXY=direct\n", "GOSUMDB=off\n", "GIT_TERMINAL_PROMPT=0\n", "\n" + dir + "/work\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if strings.Contains(got, "hunter2") || strings.Contains(got, "vendor") {
		t.Errorf("our own environment is handed on:\n%s", got)
	}
}

// A caller that leaves ends the command and what it has started.
func TestEnd(t *testing.T) {
	t.Parallel()
	r := &repository{home: t.TempDir()}
	pid := filepath.Join(t.TempDir(), "pid")
	d, _ := newDirect(t, r, script(t, "sleep 1000 & echo $! > "+pid+".new; mv "+pid+".new "+pid+"; wait"))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := d.Fetch(ctx, parse(t, repo+"/@latest"))
		ended <- err
	}()
	var child []byte
	eventually(t, "the child runs", func() bool {
		child, _ = os.ReadFile(pid)
		return len(child) > 0
	})
	cancel()
	if err := <-ended; cache.ReasonOf(err) != cache.Slow || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was given up", err)
	}
	eventually(t, "the child is gone", func() bool { return !alive(strings.TrimSpace(string(child))) })
}

// alive tells whether a process runs; one that nobody has waited for does not.
func alive(pid string) bool {
	data, err := os.ReadFile("/proc/" + pid + "/stat")
	_, state, _ := strings.Cut(string(data), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for start := time.Now(); !check(); {
		if time.Since(start) > 20*time.Second {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A go command that is missing, mad or endless.
func TestGoCommandInTrouble(t *testing.T) {
	t.Parallel()
	r := &repository{home: t.TempDir()}
	missing, _ := newDirect(t, r, func(cfg *direct.Config) { cfg.Go = "there-is-no-such-go" })
	endless, _ := newDirect(t, r, script(t, "exec cat /dev/zero"))
	mad, _ := newDirect(t, r, script(t, "echo '<html>'"))
	mute, _ := newDirect(t, r, script(t, "exit 3"))
	for _, test := range []struct {
		d    *direct.Direct
		want cache.Reason
		text string
	}{
		{missing, cache.Broken, "needs the go command, and there is none here: install go"},
		{endless, cache.Broken, "printed more than"},
		{mad, cache.Internal, "failed here"},
		{mute, cache.Broken, "without a word"},
	} {
		_, err := fetch(t, test.d, repo+"/@latest")
		if e, ok := errors.AsType[*cache.Error](err); !ok || e.Reason != test.want || !strings.Contains(e.Text, test.text) {
			t.Errorf("got %v, want %v with %q", err, test.want, test.text)
		}
	}
}

// What the go command, git and hg say, and what it means.
func TestFailures(t *testing.T) {
	t.Parallel()
	const reading = "go: example.com/timed/out@v1.0.0: "
	for _, test := range []struct {
		said string
		want cache.Reason
		host bool // DNS says that there is no such host
		text string
	}{
		{"invalid version: unknown revision v1.0.0", cache.NotFound, false, "unknown revision"},
		{"no matching versions for query \"v1.0.0\"", cache.NotFound, false, "no matching"},
		{"unrecognized import path \"example.com/timed/out\": reading https://example.com/timed/out?go-get=1: 404 Not Found", cache.NotFound, false, "404"},
		{"unrecognized import path \"example.com/timed/out\": parse https://example.com/timed/out?go-get=1: no go-import meta tags ()", cache.NotFound, false, "meta tags"},
		{"reading https://example.com/timed/out?go-get=1: 410 Gone", cache.Gone, false, "410"},
		{"unrecognized import path \"example.com/timed/out\": https fetch: Get \"https://example.com/x?go-get=1\": EOF", cache.Broken, false, "EOF"},
		{"unrecognized import path \"example.com/timed/out\": reading https://example.com/x?go-get=1: 500 Internal Server Error", cache.Broken, false, "500"},
		{"unrecognized import path: https fetch: Get \"https://example.com/x?go-get=1\": dial tcp: lookup example.com on 192.0.2.1:53: no such host", cache.Broken, true, "no such host"},
		{"unrecognized import path: https fetch: Get \"https://example.com/x?go-get=1\": dial tcp: lookup example.com: i/o timeout", cache.Slow, false, "timeout"},
		{"invalid version: git ls-remote -q origin in DIR/mod/cache/vcs/0a: exit status 128:\n\tfatal: unable to access 'https://u:hunter2@example.com/': Could not resolve host: example.com", cache.Broken, true, "in …/mod/cache/vcs/0a: exit status 128: fatal: unable to access 'https://example.com/'"},
		{"invalid version: git ls-remote -q origin: exit status 128:\n\tfatal: unable to access 'https://example.com/': The requested URL returned error: 503", cache.Busy, false, "503"},
		{"git fetch: exit status 128:\n\tfatal: could not read Username for 'https://example.com': terminal prompts disabled\nConfirm the import path was entered correctly.", cache.Denied, false, "adds example.com/timed to --private"},
		{"git ls-remote -q origin: exit status 128:\n\tgit@example.com: Permission denied (publickey).", cache.Denied, false, "publickey"},
		{"git fetch: exit status 128:\n\tfatal: repository 'https://example.com/timed/out/' not found", cache.NotFound, false, "not found"},
		{"go: GOVCS disallows using git for public example.com/timed/out; see 'go help vcs'", cache.Denied, false, "GOVCS"},
		{"exec: \"git\": executable file not found in $PATH", cache.Broken, false, "git"},
		{"sh: 1: ssh: not found", cache.Broken, false, "ssh"},
		{"x509: certificate signed by unknown authority", cache.Broken, false, "certificate"},
		{"no secure protocol found for repository", cache.Broken, false, "protocol"},
		{"words that nobody knows", cache.Broken, false, "words"},
	} {
		r := &repository{home: t.TempDir()}
		said := filepath.Join(t.TempDir(), "said")
		var dir string
		d, dir := newDirect(t, r, script(t, "cat "+said+" >&2; exit 1"))
		if err := os.WriteFile(said, []byte(reading+strings.ReplaceAll(test.said, "DIR", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := fetch(t, d, "example.com/timed/out/@v/v1.0.0.mod")
		e, ok := errors.AsType[*cache.Error](err)
		if !ok || e.Reason != test.want || !strings.Contains(e.Text, test.text) || errors.Is(err, upstream.ErrNoHost) != test.host {
			t.Errorf("%q: got %v, want %v with %q, no host: %v", test.said, err, test.want, test.text, test.host)
		}
		if strings.Contains(e.Text, "hunter2") || strings.Contains(e.Text, dir) || strings.ContainsAny(e.Text, "\n\t") {
			t.Errorf("%q tells %q", test.said, e.Text)
		}
	}
}

// Clones that take too much go, those with nothing new for long first.
func TestKeep(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	r.commit(map[string]string{"go.mod": mod1, "a.go": "package repo\n"}, "v1.0.0")
	d, dir := newDirect(t, r, func(cfg *direct.Config) { cfg.Keep = 1 })
	mustFetch(t, d, repo+"/@v/list")
	clones := filepath.Join(dir, "mod", "cache", "vcs", "*")
	eventually(t, "the clone is gone", func() bool {
		found, _ := filepath.Glob(clones)
		for _, name := range found {
			if info, err := os.Stat(name); err == nil && info.IsDir() {
				return false
			}
		}
		return true
	})
	if got := mustFetch(t, d, repo+"/@v/list"); got != "v1.0.0\n" {
		t.Errorf("after the sweep: got %q", got)
	}
}
