// Package credentials knows what opens the repositories of private modules: a file of
// patterns (--credentials) and a configuration for git (--git-config).
//
// The file is YAML, patterns as in GOPRIVATE with what is to be shown for them:
//
//	git.example.com/team/*:              # the host may hold no *, ? or [ unless "host" is given
//	  login: bot                         # with a password, sent over https and nothing else
//	  password: file:/run/secrets/bot    # inline, or file: and a path, relative to this file's folder
//	git.example.com/ops:
//	  token: glpat-…                     # a password whose login hardly any host looks at
//	  host: [git.example.com, src.example.com:8443]
//	git.example.com/infra:
//	  ssh-key: file:id_ed25519           # the repositories are reached by SSH then
//	  known-hosts: file:known_hosts
//	  ssh-user: git                      # the default
//	  ssh-host: git.example.com:2222     # default: the host of the pattern
//
// What it promises:
//
//   - The most specific pattern that matches a module decides alone: the one of most
//     path elements, of these the one with most characters that stand for themselves, of
//     these the first in the file. Nothing of another pattern is used for the module.
//   - A pattern must be private, too (Config.Private), or it is refused: what needs
//     credentials is nobody else's business. A module that is not private gets none.
//   - Login and password are for the hosts of "host" alone, by default for the one the
//     pattern begins with.
//   - Both files, and those that "file:" names, are read at each use, so a change
//     counts at once. What has become unusable is logged, once, and what was good last
//     stays in use.
//   - A file that holds a secret itself and that everybody on the machine may read is
//     refused; one that "file:" names is warned of only, as some orchestrators mount
//     secrets like that.
//   - No error and no log line holds a value of the file.
package credentials

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"golang.org/x/mod/module"
)

// Config says where to look.
type Config struct {
	File      string // the file of patterns; "" = none
	GitConfig string // what git is configured by; "" = nothing
	Private   string // GOPRIVATE: for what else there are no credentials
	Logger    *slog.Logger
}

// Entry is what is to be shown for the modules of a pattern.
type Entry struct {
	Pattern string
	// Login and Password are for Hosts, over https; Password "" = none.
	Login, Password string
	Hosts           []string // host or host:port
	// SSHKey is a private key in PEM, by which to reach SSHHost in place of Hosts; "" = none.
	SSHKey           string
	SSHUser, SSHHost string // SSHHost is host or host:port
	KnownHosts       string // content of a known_hosts file; "" = those of the account and the machine
}

// Credentials are what the files say now. Methods may be called at any time from any
// goroutine, also on nil, which knows nothing.
type Credentials struct {
	private string
	entries kept[[]Entry]
	git     kept[[]byte]
}

// Open reads the files. Its errors name the file, and a line where they can.
func Open(cfg Config) (*Credentials, error) {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &reader{file: cfg.File, private: cfg.Private, log: log, warned: make(map[string]bool)}
	g := &gitReader{file: cfg.GitConfig}
	c := &Credentials{
		private: cfg.Private,
		entries: kept[[]Entry]{what: "credentials", read: r.read, log: log},
		git:     kept[[]byte]{what: "git configuration", read: g.read, log: log},
	}
	if err := c.entries.open(); err != nil {
		return nil, err
	}
	return c, c.git.open()
}

// For returns what is to be shown for a module.
func (c *Credentials) For(ctx context.Context, path string) (Entry, bool) {
	if c == nil || !module.MatchPrefixPatterns(c.private, path) {
		return Entry{}, false
	}
	var best Entry
	for _, e := range c.entries.now(ctx) {
		if module.MatchPrefixPatterns(e.Pattern, path) && (best.Pattern == "" || moreSpecific(e.Pattern, best.Pattern)) {
			best = e
		}
	}
	return best, best.Pattern != ""
}

// GitConfig returns the text of a git configuration, empty where there is none.
func (c *Credentials) GitConfig(ctx context.Context) []byte {
	if c == nil {
		return nil
	}
	return c.git.now(ctx)
}

// kept is what a file said when it was good last.
type kept[T any] struct {
	what string
	read func() (T, error)
	log  *slog.Logger

	mu      sync.Mutex
	good    T
	failure string // that was logged
}

func (k *kept[T]) open() (err error) {
	k.good, err = k.read()
	return err
}

func (k *kept[T]) now(ctx context.Context) T {
	k.mu.Lock()
	defer k.mu.Unlock()
	value, err := k.read()
	switch {
	case err == nil:
		if k.failure != "" {
			k.log.InfoContext(ctx, "a file is good again", "what", k.what)
		}
		k.good, k.failure = value, ""
	case err.Error() != k.failure:
		k.failure = err.Error()
		k.log.ErrorContext(ctx, "a file has become unusable, what it said before stays in use", "what", k.what, "err", err)
	}
	return k.good
}

// gitReader reads a git configuration. It is asked by one goroutine at a time.
type gitReader struct {
	file string
	good []byte
}

func (g *gitReader) read() ([]byte, error) {
	if g.file == "" {
		return nil, nil
	}
	data, err := readFile(g.file)
	if err != nil || bytes.Equal(data, g.good) {
		return data, err
	}
	git, err := exec.LookPath("git")
	if err != nil { // nobody can be configured
		return data, nil //nolint:nilerr // the go command says what is missing
	}
	cmd := exec.Command(git, "config", "--file", "-", "--list") //nolint:noctx // local and instant
	cmd.Stdin, cmd.Dir = bytes.NewReader(data), filepath.Dir(g.file)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.DevNull, "GIT_CONFIG_NOSYSTEM=1", "LC_ALL=C"}
	if cmd.Run() != nil { // what it prints may hold a secret
		return nil, &fileError{g.file, "'git config --file " + g.file + " --list' does not understand it"}
	}
	g.good = data
	return data, nil
}
