package test

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ringmod/ringmod/test/harness"
	"github.com/ringmod/ringmod/test/harness/gitserver"
)

const (
	pvTeam = "git.example.com/private/team"
	pvSSH  = "git.example.com/ssh/tools.git" // the suffix spares ?go-get=1, which has no login here
	pvMore = "git.example.com/private/more"
)

// privateHost has three private repositories.
func privateHost(t *testing.T, token string) *gitserver.Server {
	t.Helper()
	s := gitserver.New(t)
	for _, module := range []string{pvTeam, pvSSH, pvMore} {
		files := map[string]string{"go.mod": "module " + module + "\n", "a.go": "package a\n\nconst Word = \"private\"\n"}
		s.Repo(strings.TrimSuffix(module, ".git")).Commit(files, "v1.0.0", "v1.1.0")
	}
	s.Guard("git.example.com/", "bot", token)
	return s
}

// privateCluster is a node and a gateway that reach s and nobody else. What either
// logs has everything.
func privateCluster(t *testing.T, s *gitserver.Server, flags ...string) (c *harness.Cluster, gateway *harness.Process) {
	t.Helper()
	c = harness.NewCluster(t, "--upstream", "direct", "--private", "git.example.com", "--log-level", "debug")
	env := append(s.Env(), "HOME="+t.TempDir(), "NETRC=", "GIT_CONFIG_GLOBAL=", "SSH_AUTH_SOCK=", "GIT_SSH_COMMAND=")
	c.StartNode(harness.Spec{Name: "n1", Flags: flags, Env: env})
	gateway = c.StartGateway(harness.Spec{Name: "g1", Env: env})
	c.WaitConverged()
	return c, gateway
}

// privateDeveloper asks the gateway for everything, as GONOPROXY=none has it.
func privateDeveloper(t *testing.T, gateway *harness.Process) *harness.Go {
	t.Helper()
	g := harness.NewGo(t, "GOPROXY="+gateway.URL(), "GOSUMDB=off", "GOVCS=*:off", "HTTPS_PROXY=http://127.0.0.1:1", "HTTP_PROXY=http://127.0.0.1:1")
	g.Write("go.mod", "module example.com/work\n\ngo 1.24\n")
	return g
}

// peeper reads the command lines of all processes, over and over.
type peeper struct {
	secrets []string
	stop    chan struct{}
	done    sync.WaitGroup

	found []string
	seen  map[string]bool // names of programs
}

func peep(secrets ...string) *peeper {
	p := &peeper{secrets: secrets, stop: make(chan struct{}), seen: make(map[string]bool)}
	p.done.Go(func() {
		for {
			p.look()
			select {
			case <-p.stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	})
	return p
}

func (p *peeper) look() {
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, process := range processes {
		line, _ := os.ReadFile(filepath.Join(process, "cmdline")) // it may have ended
		environ, _ := os.ReadFile(filepath.Join(process, "environ"))
		for _, secret := range p.secrets {
			if strings.Contains(string(line)+string(environ), secret) {
				p.found = append(p.found, strings.ReplaceAll(string(line), "\x00", " "))
			}
		}
		name, _, _ := strings.Cut(string(line), "\x00")
		p.seen[filepath.Base(name)] = true
	}
}

// end returns the command lines that told a secret, or whose environment did.
func (p *peeper) end() []string {
	close(p.stop)
	p.done.Wait()
	return p.found
}

// below returns the files that hold one of the secrets.
func below(t *testing.T, dir string, secrets ...string) (found []string) {
	t.Helper()
	for _, name := range filesBelow(t, dir) {
		data, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a link to a netrc file that is not there
			t.Fatal(err)
		}
		if slices.ContainsFunc(secrets, func(secret string) bool { return strings.Contains(string(data), secret) }) {
			found = append(found, name)
		}
	}
	return found
}

// TestPrivateRepositories gets modules of a host that wants a token, and another one by SSH,
// through a gateway that knows neither; and then looks for the token.
func TestPrivateRepositories(t *testing.T) {
	t.Parallel()
	token := "glpat-" + rand.Text()
	secrets := []string{token, base64.StdEncoding.EncodeToString([]byte("bot:" + token))[:20]}
	s := privateHost(t, token)
	ssh := s.SSH(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	write("token", token+"\n")
	write("known_hosts", ssh.KnownHosts)
	file := write("credentials.yaml", fmt.Sprintf(
		"%s: {login: bot, password: 'file:token'}\ngit.example.com/ssh: {ssh-key: 'file:%s', known-hosts: 'file:known_hosts', ssh-host: '%s', ssh-user: %s}\n",
		pvTeam, ssh.Key, ssh.Addr, ssh.User))
	spy := peep(secrets...)
	c, gateway := privateCluster(t, s, "--credentials", file)

	g := privateDeveloper(t, gateway)
	for _, module := range []string{pvTeam, pvSSH} {
		if got := g.Must("get", module+"@latest"); !strings.Contains(got, "added "+module+" v1.1.0") {
			t.Errorf("go get printed %q", got)
		}
	}
	g.Write("main.go", fmt.Sprintf("package main\n\nimport (\n\ta %q\n\tb %q\n)\n\nfunc main() { println(a.Word, b.Word) }\n", pvTeam, pvSSH))
	if got := g.Must("run", "."); got != "private private\n" {
		t.Errorf("the program printed %q", got)
	}
	out, err := g.Run("get", pvMore+"@latest") // for which there are no credentials
	for _, want := range []string{"403 Forbidden", "this node has no credentials for it", "adds git.example.com/private", "--credentials"} {
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("without credentials: %v, %q, want %q", err, out, want)
		}
	}
	if n := strings.Count(out, "\n"); n > 8 {
		t.Errorf("without credentials the developer reads %d lines:\n%s", n, out)
	}
	checkPrivateAnswers(t, gateway)

	// The token changes at the host, then here.
	next := "glpat-" + rand.Text()
	s.Guard("git.example.com/", "bot", next)
	out, err = g.Run("list", "-m", pvTeam+"@v1.2.0")
	if err == nil || !strings.Contains(out, "does not accept the credentials of "+pvTeam) {
		t.Errorf("with the former token: %v, %q", err, out)
	}
	write("token", next)
	secrets = append(secrets, next, base64.StdEncoding.EncodeToString([]byte("bot:" + next))[:20])
	eventually(t, "the new token is used", func() bool {
		out, _ := g.Run("list", "-m", pvTeam+"@v1.2.0")
		return strings.Contains(out, "404 Not Found")
	})

	if found := spy.end(); len(found) > 0 || !spy.seen["git"] || !spy.seen["ssh"] {
		t.Errorf("processes told the token: %q; git was seen: %v, ssh: %v", found, spy.seen["git"], spy.seen["ssh"])
	}
	for _, p := range c.Running() {
		for _, secret := range secrets {
			if strings.Contains(p.Log(), secret) || strings.Contains(out, secret) {
				t.Errorf("%s has told the token:\n%s", p.Name, p.Log())
			}
		}
	}
	data := c.DataDir("n1")
	if found := below(t, data, append(secrets, "PRIVATE KEY")...); len(found) > 0 || len(filesBelow(t, filepath.Join(data, "direct"))) == 0 {
		t.Errorf("the token or the key is in %q", found)
	}
	if got := s.Refused(); len(got) > 0 {
		t.Errorf("somebody else was asked: %q", got)
	}
}

// checkPrivateAnswers looks at what an HTTP cache in between is told.
func checkPrivateAnswers(t *testing.T, gateway *harness.Process) {
	t.Helper()
	for path, status := range map[string]int{
		pvTeam + "/@v/v1.1.0.info": 200, pvTeam + "/@v/v1.1.0.zip": 200, pvTeam + "/@v/list": 200, pvTeam + "/@latest": 200,
		pvTeam + "/@v/v1.3.0.info": 404,
	} {
		got, err := fetch(t, gateway.URL()+"/"+path)
		if caching := got.header.Get("Cache-Control"); err != nil || got.status != status || !strings.HasPrefix(caching, "private") {
			t.Errorf("%s: got %d, Cache-Control %q, %v, want %d and private", path, got.status, caching, err, status)
		}
	}
}

// TestCredentialsStayAtTheirHost lets the host redirect elsewhere, where nobody may see
// a login; and asks for what the pattern does not cover.
func TestCredentialsStayAtTheirHost(t *testing.T) {
	t.Parallel()
	token := "glpat-" + rand.Text()
	s := privateHost(t, token)
	s.Move("git.example.com/private/away", "https://other.example.com/private/away")
	s.Move("git.example.com/private/half.git", "https://other.example.com/private/half.git")
	s.Repo("other.example.com/private/away").Commit(map[string]string{"go.mod": "module git.example.com/private/away\n"}, "v1.0.0")
	s.Repo("git.example.com/private/half").Commit(map[string]string{"go.mod": "module git.example.com/private/half\n"}, "v1.0.0")
	file := filepath.Join(t.TempDir(), "credentials.yaml")
	if err := os.WriteFile(file, []byte("git.example.com/private: {login: bot, password: "+token+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, gateway := privateCluster(t, s, "--credentials", file)
	for _, module := range []string{"git.example.com/private/away", "git.example.com/private/half", pvSSH} {
		got, err := fetch(t, gateway.URL()+"/"+module+"/@v/v1.0.0.info")
		if err != nil || got.status == http.StatusOK || strings.Contains(got.body, token) {
			t.Errorf("%s: got %d %q, %v, want a refusal", module, got.status, got.body, err)
		}
	}
	asked, shown := 0, 0
	for _, r := range s.Requests() {
		if r.Host == "other.example.com" {
			asked++
		}
		if r.Password != "" && r.Host == "git.example.com" {
			shown++
		}
		if r.Password != "" && (r.Host != "git.example.com" || strings.HasPrefix(r.Path, "/ssh/")) {
			t.Errorf("the token went to %s%s", r.Host, r.Path)
		}
	}
	if asked == 0 || shown == 0 {
		t.Errorf("the other host was asked %d times, the token shown %d times: the test shows nothing", asked, shown)
	}
}

// TestOtherCredentials gets a module by what an operator may have besides a file of
// credentials, and looks at what developers read when SSH goes wrong.
func TestOtherCredentials(t *testing.T) {
	t.Parallel()
	const token = "hunter2"
	s := privateHost(t, token)
	ssh := s.SSH(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	entry := func(key, knownHosts string) string {
		return fmt.Sprintf("git.example.com: {ssh-key: 'file:%s', known-hosts: %q, ssh-host: '%s', ssh-user: %s}\n", key, knownHosts, ssh.Addr, ssh.User)
	}
	helper := func(host string) string {
		return fmt.Sprintf("[credential \"https://%s\"]\n\thelper = \"!f() { echo username=bot; echo password=%s; }; f\"\n", host, token)
	}
	other, err := os.ReadFile(ssh.OtherKey + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	known, _, _ := strings.Cut(ssh.KnownHosts, " ")
	for _, test := range []struct {
		name, module string
		env, flags   []string
		want         string // in an error; "" = it works
	}{
		{"netrc", pvTeam, []string{"NETRC=" + write("netrc", "machine git.example.com login bot password "+token+"\n")}, nil, ""},
		{"credential helper", pvTeam, nil, []string{"--git-config", write("helper", helper("git.example.com"))}, ""},
		{"helper of another host", pvTeam, nil, []string{"--git-config", write("elsewhere", helper("other.example.com"))}, "no credentials for it"},
		{"unknown host key", pvSSH, nil, []string{"--credentials", write("unknown.yaml", entry(ssh.Key, known+" "+string(other)))}, "'ssh-keyscan HOST'"},
		{"key that is not let in", pvSSH, nil, []string{"--credentials", write("stranger.yaml", entry(ssh.OtherKey, ssh.KnownHosts))}, "does not accept the credentials of git.example.com"},
		{"authority that is not known", pvTeam, []string{"SSL_CERT_FILE=" + write("none.pem", ""), "GIT_SSL_CAINFO="}, nil, "certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			env := slices.Concat(s.Env(), []string{"HOME=" + t.TempDir(), "NETRC=", "GIT_CONFIG_GLOBAL=", "SSH_AUTH_SOCK=", "GIT_SSH_COMMAND="}, test.env)
			flags := append([]string{"--data-dir", t.TempDir(), "--upstream", "direct", "--private", "git.example.com", "--sumdb", "off", "--log-level", "error"}, test.flags...)
			p := harness.ServeEnv(t, env, flags...)
			got, err := fetch(t, p.URL()+"/"+test.module+"/@v/v1.1.0.zip")
			if works := err == nil && got.status == http.StatusOK; works != (test.want == "") || !works && !strings.Contains(got.body, test.want) {
				t.Errorf("got %d %.700q, %v, want %q in an error", got.status, got.body, err, test.want)
			}
			if len(got.body) > 648 && got.status != http.StatusOK || strings.Contains(got.body+p.Log(), token) {
				t.Errorf("the developer reads %q, the operator %q", got.body, p.Log())
			}
		})
	}
}
