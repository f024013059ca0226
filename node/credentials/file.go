package credentials

import (
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"go.yaml.in/yaml/v3"
	"golang.org/x/mod/module"
)

const (
	maxFile = 1 << 20 // bytes of any of our files
	// tokenLogin is what hosts that want a token accept for a login, as far as they
	// look at it.
	tokenLogin = "x-access-token"
)

// fileError is what is wrong with a file. Its text holds no value of it.
type fileError struct{ file, text string }

func (e *fileError) Error() string { return e.file + ": " + e.text }

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = &fileError{name, fmt.Sprintf("larger than %d bytes", maxFile)}
	}
	return data, err
}

// readableByAll reports whether everybody on the machine may read the file.
func readableByAll(name string) bool {
	info, err := os.Stat(name)
	return err == nil && runtime.GOOS != "windows" && info.Mode()&0o004 != 0
}

// reader reads the file of patterns. It is asked by one goroutine at a time.
type reader struct {
	file, private string
	log           *slog.Logger
	warned        map[string]bool // files that everybody may read

	inline bool // the file holds a secret
}

func (r *reader) read() ([]Entry, error) {
	if r.file == "" {
		return nil, nil
	}
	data, err := readFile(r.file)
	if err != nil {
		return nil, err
	}
	r.inline = false
	entries, err := r.parse(data)
	if err != nil {
		return nil, err
	}
	if r.inline && readableByAll(r.file) {
		return nil, &fileError{r.file, "holds secrets and everybody on this machine may read it: chmod o= " + r.file}
	}
	return entries, nil
}

// line is all that can be told of what the YAML parser complains about: it cites.
var line = regexp.MustCompile(`line \d+`)

func (r *reader) parse(data []byte) ([]Entry, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, &fileError{r.file, strings.TrimSpace(line.FindString(err.Error())+" not YAML:") + " what begins with *, &, !, @ or % wants quotes"}
	}
	if doc.Kind == 0 { // nothing but comments
		return nil, nil
	}
	patterns := doc.Content[0]
	if patterns.Kind != yaml.MappingNode {
		return nil, r.wrong(patterns, "want patterns, each with what to show for it")
	}
	var entries []Entry
	seen := make(map[string]bool)
	for i := 0; i+1 < len(patterns.Content); i += 2 {
		key := patterns.Content[i]
		e := Entry{Pattern: key.Value}
		if seen[e.Pattern] {
			return nil, r.wrong(key, "the pattern "+e.Pattern+" is there twice")
		}
		seen[e.Pattern] = true
		if err := r.pattern(key); err != nil {
			return nil, err
		}
		if err := r.entry(&e, key, patterns.Content[i+1]); err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func (r *reader) wrong(at *yaml.Node, text string) error {
	return &fileError{r.file, fmt.Sprintf("line %d: %s", at.Line, text)}
}

func (r *reader) pattern(key *yaml.Node) error {
	p := key.Value
	_, err := path.Match(p, "")
	switch {
	case key.Kind != yaml.ScalarNode, p == "", strings.Contains(p, ","), strings.Contains(p, "://"), strings.ContainsAny(p, " \t\n@"),
		strings.HasPrefix(p, "/"), strings.HasSuffix(p, "/"), err != nil:
		return r.wrong(key, "want one pattern as in GOPRIVATE, such as git.example.com/team/*")
	case !module.MatchPrefixPatterns(r.private, p):
		return r.wrong(key, "the pattern "+p+" is not private: add it to --private, or its modules would be asked of proxies and checksum databases")
	}
	return nil
}

// entry reads what is to be shown for a pattern.
func (r *reader) entry(e *Entry, key, fields *yaml.Node) error {
	if fields.Kind != yaml.MappingNode {
		return r.wrong(fields, "want login and password, token or ssh-key for "+e.Pattern)
	}
	token := ""
	secrets := map[string]*string{"password": &e.Password, "token": &token, "ssh-key": &e.SSHKey, "known-hosts": &e.KnownHosts}
	plain := map[string]*string{"login": &e.Login, "ssh-user": &e.SSHUser, "ssh-host": &e.SSHHost}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(fields.Content); i += 2 {
		name, value := fields.Content[i], fields.Content[i+1]
		if seen[name.Value] {
			return r.wrong(name, "the same key twice")
		}
		seen[name.Value] = true
		var err error
		if secret := secrets[name.Value]; secret != nil {
			*secret, err = r.secret(name.Value, value)
		} else if text := plain[name.Value]; text != nil {
			*text, err = r.text(value)
		} else if name.Value == "host" {
			e.Hosts, err = r.hosts(value)
		} else { // the key may be a secret that has lost its key
			err = r.wrong(name, "unknown key; want login, password, token, host, ssh-key, ssh-user, ssh-host or known-hosts")
		}
		if err != nil {
			return err
		}
	}
	if seen["password"] && seen["token"] {
		return r.wrong(key, e.Pattern+" has both a password and a token")
	}
	if seen["token"] {
		e.Password = token
		if e.Login == "" {
			e.Login = tokenLogin
		}
	}
	return r.complete(e, key)
}

// complete fills in what follows from the pattern, and finds what is missing.
func (r *reader) complete(e *Entry, key *yaml.Node) error {
	host, _, _ := strings.Cut(e.Pattern, "/")
	literal := !strings.ContainsAny(host, `*?[\`)
	if len(e.Hosts) == 0 && literal {
		e.Hosts = []string{host}
	}
	if e.SSHHost == "" && len(e.Hosts) > 0 {
		e.SSHHost, _, _ = strings.Cut(e.Hosts[0], ":")
	}
	if e.SSHUser == "" {
		e.SSHUser = "git"
	}
	block, _ := pem.Decode([]byte(e.SSHKey))
	switch {
	case e.Password == "" && e.SSHKey == "":
		return r.wrong(key, e.Pattern+" has neither a password, a token nor an ssh-key")
	case (e.Password == "") != (e.Login == ""):
		return r.wrong(key, e.Pattern+": login and password go together")
	case strings.ContainsFunc(e.Login+e.Password, notPrintable):
		return r.wrong(key, e.Pattern+": a login or password with a space or control character cannot be given to the go command")
	case e.SSHKey != "" && block == nil:
		return r.wrong(key, e.Pattern+": ssh-key is no private key in PEM; a path is written file:PATH")
	case len(e.Hosts) == 0:
		return r.wrong(key, "the host in "+e.Pattern+" stands for many: say with host which one may see the credentials")
	case e.SSHKey != "" && !isHost(e.SSHHost):
		return r.wrong(key, e.Pattern+": ssh-host is no host or host:port")
	case e.SSHKey != "" && !user.MatchString(e.SSHUser):
		return r.wrong(key, e.Pattern+": ssh-user is no name of a user")
	}
	return nil
}

// notPrintable reports what a netrc file cannot hold.
func notPrintable(c rune) bool { return c <= ' ' || c == 0x7f }

var (
	hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`)
	port     = regexp.MustCompile(`^[0-9]{1,5}$`)
	user     = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
)

func isHost(text string) bool {
	if host, p, err := net.SplitHostPort(text); err == nil {
		return hostName.MatchString(host) && port.MatchString(p)
	}
	return hostName.MatchString(text)
}

func (r *reader) hosts(value *yaml.Node) ([]string, error) {
	all := []*yaml.Node{value}
	if value.Kind == yaml.SequenceNode {
		all = value.Content
	}
	var hosts []string
	for _, each := range all {
		if each.Kind != yaml.ScalarNode || !isHost(each.Value) {
			return nil, r.wrong(each, "want a host or host:port, or a list of them")
		}
		hosts = append(hosts, strings.ToLower(each.Value))
	}
	return hosts, nil
}

func (r *reader) text(value *yaml.Node) (string, error) {
	if value.Kind != yaml.ScalarNode || value.Value == "" || value.Tag == "!!null" {
		return "", r.wrong(value, "want some text")
	}
	return value.Value, nil
}

// secret returns a value that may be in a file of its own.
func (r *reader) secret(name string, value *yaml.Node) (string, error) {
	text, err := r.text(value)
	if err != nil {
		return "", err
	}
	file, elsewhere := strings.CutPrefix(text, "file:")
	if !elsewhere {
		r.inline = r.inline || name != "known-hosts"
		return text, nil
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(filepath.Dir(r.file), file)
	}
	data, err := readFile(file)
	if err != nil {
		return "", r.wrong(value, err.Error())
	}
	if name != "known-hosts" && readableByAll(file) && !r.warned[file] {
		r.warned[file] = true
		r.log.Warn("everybody on this machine may read a secret", "file", file)
	}
	text = string(data)
	if name == "password" || name == "token" {
		text = strings.TrimRight(text, "\r\n")
	}
	if text == "" {
		return "", r.wrong(value, file+" is empty")
	}
	return text, nil
}

// moreSpecific reports whether a pattern says more of a module's path than another one.
func moreSpecific(pattern, other string) bool {
	if n, m := strings.Count(pattern, "/"), strings.Count(other, "/"); n != m {
		return n > m
	}
	return literals(pattern) > literals(other)
}

// literals counts the characters of a pattern that stand for themselves.
func literals(pattern string) (n int) {
	class := false
	for _, c := range pattern {
		switch {
		case c == '[':
			class = true
		case c == ']':
			class = false
		case !class && c != '*' && c != '?' && c != '\\':
			n++
		}
	}
	return n
}
