// Package gitserver is a host of git repositories as companies have them: HTTPS with
// an authority that nobody else trusts, the go command's ?go-get=1, a password where one
// is asked for, and SSH. It has the names below example.com, which lead to it by way of a
// proxy (Env); whoever uses that proxy reaches nobody else.
package gitserver

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Server is such a host. Its methods may be called by several goroutines.
type Server struct {
	CAFile string // PEM

	t     testing.TB
	root  string // repositories: <host>/<path>.git below it
	web   *httptest.Server
	proxy *httptest.Server
	git   http.Handler // git http-backend

	mu       sync.Mutex
	roots    []string          // modules that are a repository
	guards   map[string]string // "login:password" by the beginning of host and path
	moved    map[string]string // where a beginning of host and path redirects to
	requests []Request
	refused  []string // what the proxy was asked for and does not lead to
	sent     int64
}

// Request is what somebody has asked for over HTTPS.
type Request struct {
	Host, Path string
	Login      string // of the credentials that came along
	Password   string
}

// New starts a server; the test ends it. Without git the test is skipped, under CI it
// fails.
func New(t testing.TB) *Server {
	t.Helper()
	execPath, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		Missing(t, "git")
	}
	s := &Server{t: t, root: t.TempDir(), guards: make(map[string]string), moved: make(map[string]string)}
	s.git = &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(execPath)), "git-http-backend"), Dir: s.root,
		Env:    []string{"GIT_PROJECT_ROOT=" + s.root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "HOME=" + s.root},
		Stderr: io.Discard,
	}
	s.web = httptest.NewTLSServer(http.HandlerFunc(s.serve)) // its certificate is for *.example.com
	s.proxy = httptest.NewServer(http.HandlerFunc(s.connect))
	t.Cleanup(func() {
		s.proxy.CloseClientConnections()
		s.proxy.Close()
		s.web.CloseClientConnections()
		s.web.Close()
	})
	s.CAFile = filepath.Join(s.root, "ca.pem")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.web.Certificate().Raw})
	if err := os.WriteFile(s.CAFile, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// Missing skips a test for want of a program; under CI it fails.
func Missing(t testing.TB, program string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(program + " is missing")
	}
	t.Skip(program + " is missing")
}

// Env is the environment in which the go command and git reach the server, and trust it,
// without further settings of git.
func (s *Server) Env() []string {
	return []string{
		"HTTPS_PROXY=" + s.proxy.URL, "https_proxy=" + s.proxy.URL, "HTTP_PROXY=" + s.proxy.URL, "http_proxy=" + s.proxy.URL,
		"NO_PROXY=", "no_proxy=", "SSL_CERT_FILE=" + s.CAFile, "GIT_SSL_CAINFO=" + s.CAFile,
	}
}

// Guard asks for a login and a password where host and path begin with prefix.
func (s *Server) Guard(prefix, login, password string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.guards[prefix] = login + ":" + password
}

// Move redirects what begins with prefix to what begins with a URL.
func (s *Server) Move(prefix, to string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved[prefix] = to
}

// Requests returns what was asked for over HTTPS.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Refused returns what somebody wanted to reach through the proxy and could not.
func (s *Server) Refused() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.refused)
}

// Sent returns how many bytes git was sent over HTTPS.
func (s *Server) Sent() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

// connect is the proxy: what names us leads to us.
func (s *Server) connect(w http.ResponseWriter, r *http.Request) {
	host, port, err := net.SplitHostPort(r.Host)
	if r.Method != http.MethodConnect || err != nil || port != "443" || !strings.HasSuffix(host, ".example.com") {
		s.mu.Lock()
		s.refused = append(s.refused, r.Method+" "+r.Host+" "+r.URL.String())
		s.mu.Unlock()
		http.Error(w, "no way", http.StatusForbidden)
		return
	}
	there, err := (&net.Dialer{}).DialContext(r.Context(), "tcp", s.web.Listener.Addr().String())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer there.Close()
	here, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		_, _ = io.Copy(there, here)
		there.Close()
	}()
	_, _ = io.Copy(here, there)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	name := r.Host + r.URL.Path
	login, password, _ := r.BasicAuth()
	s.mu.Lock()
	s.requests = append(s.requests, Request{r.Host, r.URL.Path, login, password})
	_, want := longest(s.guards, name)
	from, to := longest(s.moved, name)
	s.mu.Unlock()
	switch {
	case want != "" && want != login+":"+password:
		w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
		http.Error(w, "sign in", http.StatusUnauthorized)
	case to != "":
		target := to + strings.TrimPrefix(name, from)
		if r.URL.RawQuery != "" {
			target += "?" + r.URL.RawQuery
		}
		http.Redirect(w, r, target, http.StatusFound)
	case r.URL.Query().Get("go-get") == "1":
		s.goGet(w, name)
	default:
		s.backend(w, r)
	}
}

// longest returns the longest prefix of name that is a key, and what it leads to.
func longest(all map[string]string, name string) (prefix, value string) {
	for p, v := range all {
		if strings.HasPrefix(name, p) && len(p) > len(prefix) {
			prefix, value = p, v
		}
	}
	return prefix, value
}

// goGet says where the repository of a module is.
func (s *Server) goGet(w http.ResponseWriter, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, root := range s.roots {
		if name == root || strings.HasPrefix(name, root+"/") {
			fmt.Fprintf(w, "<html><head><meta name=\"go-import\" content=\"%s git https://%s.git\"></head></html>\n", root, root)
			return
		}
	}
	http.Error(w, "no such repository", http.StatusNotFound)
}

func (s *Server) backend(w http.ResponseWriter, r *http.Request) {
	inner := r.Clone(r.Context())
	inner.Header.Del("Authorization") // or it would be in the environment of a process
	inner.URL.Path = "/" + r.Host + r.URL.Path
	counted := &counter{ResponseWriter: w}
	s.git.ServeHTTP(counted, inner)
	s.mu.Lock()
	s.sent += counted.n
	s.mu.Unlock()
}

type counter struct {
	http.ResponseWriter

	n int64
}

// Write implements http.ResponseWriter.
func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n += int64(n)
	return n, err
}

// Repo is a repository.
type Repo struct {
	s         *Server
	dir, tree string
}

// Repo makes the repository of the module root, such as git.example.com/team/x.
func (s *Server) Repo(root string) *Repo {
	s.t.Helper()
	r := &Repo{s: s, dir: filepath.Join(s.root, filepath.FromSlash(root)+".git"), tree: s.t.TempDir()}
	r.Git("init", "-q", "--bare", "-b", "main", r.dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roots = append(s.roots, root)
	return r
}

// Git runs git on the repository.
func (r *Repo) Git(args ...string) string {
	r.s.t.Helper()
	cmd := exec.CommandContext(r.s.t.Context(), "git", args...)
	cmd.Dir = r.tree
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + r.s.root, "GIT_CONFIG_NOSYSTEM=1", "GIT_DIR=" + r.dir, "GIT_WORK_TREE=" + r.tree,
		"GIT_AUTHOR_NAME=n", "GIT_AUTHOR_EMAIL=n@example.com", "GIT_COMMITTER_NAME=n", "GIT_COMMITTER_EMAIL=n@example.com",
	}
	if args[0] == "init" {
		cmd.Env = cmd.Env[:3]
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.s.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// Commit writes files, commits all to the branch main and tags that. It returns the
// commit's hash.
func (r *Repo) Commit(files map[string]string, tags ...string) string {
	r.s.t.Helper()
	for name, content := range files {
		path := filepath.Join(r.tree, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			r.s.t.Fatal(err)
		}
	}
	r.Git("add", ".")
	r.Git("commit", "-q", "-m", "a commit")
	for _, tag := range tags {
		r.Git("tag", tag)
	}
	return r.Git("rev-parse", "HEAD")
}
