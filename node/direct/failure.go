package direct

import (
	"context"
	"errors"
	"net"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/upstream"
)

// failures say what the words of the go command, git and hg mean. The first that
// matches counts: trouble on the way goes before absence, as the go command wraps
// either into "invalid version: …". This is a foreign edge: there is nothing but
// text. Words are of go 1.26 (cmd/go/internal/modfetch), git 2.47 and hg 7.
var failures = []struct {
	reason cache.Reason
	words  []string
}{
	{cache.Denied, []string{
		"could not read Username", "could not read Password", "terminal prompts disabled", "Authentication failed",
		"Permission denied (", hostUnknown, "returned error: 401", "returned error: 403",
		"401 Unauthorized", "403 Forbidden", "authorization failed", "http authorization required",
		notAllowed,
	}},
	{cache.Slow, []string{"i/o timeout", "timed out", "handshake timeout", "deadline exceeded", "Timeout was reached"}},
	{cache.Busy, []string{"429 Too Many Requests", "returned error: 429", "503 Service Unavailable", "returned error: 503"}},
	{cache.Broken, []string{
		"Could not resolve host", "no such host", "server misbehaving", "onnection refused", "Failed to connect", "Couldn't connect",
		"unreachable", "onnection reset", "unexpected disconnect", "early EOF", "RPC failed", "certificate", "TLS handshake", "tls: ",
		"gnutls_handshake", "SSL_ERROR", "returned error: 5", "500 Internal Server Error", "502 Bad Gateway", "504 Gateway",
		"executable file not found", "command not found", "o space left", "too large",
	}},
	{cache.Gone, []string{"410 Gone", "returned error: 410"}},
	{cache.NotFound, []string{
		"unknown revision", "no matching versions", "404 Not Found", "returned error: 404", "no go-import meta tags", "does not begin with hostname",
		"' not found", "epository not found", "HTTP Error 404", "but does not contain", "missing go.mod", "malformed module path",
		"invalid github.com", "go.mod has", "should be v", "must be of the form", "invalid pseudo-version", "module path must match major version",
	}},
}

const (
	// notAllowed is what the go command says when GOVCS forbids a version control system.
	notAllowed = "disallows using"
	// noProtocol is what the go command says of a path with .git in it, whatever the reason.
	noProtocol = "no secure protocol found for repository"
	// hostUnknown is what ssh says when known_hosts does not have the key of a host.
	hostUnknown = "Host key verification failed"
)

// away are the words for a host that cannot be reached at all.
var away = []string{ //nolint:gochecknoglobals // never written
	"Could not resolve host", "no such host", "server misbehaving", "onnection refused", "Failed to connect", "Couldn't connect",
	"unreachable", "onnection reset", "TLS handshake", "i/o timeout", "onnection timed out", "Timeout was reached",
}

var errAway = errors.New("the host cannot be reached")

// classify makes an error of what a go command for t complains about.
func (d *Direct) classify(ctx context.Context, t target.Target, v *visit, text string) error {
	text = v.scrub(text)
	e := &cache.Error{Reason: cache.Broken, Source: source, Text: d.line(text), Err: errors.New("go command failed")}
	said := strings.NewReplacer(t.Path, "", t.Version+":", ":").Replace(text) // a module may be named as a trouble is
	for _, f := range failures {
		if slices.ContainsFunc(f.words, func(words string) bool { return strings.Contains(said, words) }) {
			e.Reason = f.reason
			break
		}
	}
	if (e.Reason == cache.Broken || e.Reason == cache.Slow) && slices.ContainsFunc(away, func(words string) bool { return strings.Contains(said, words) }) {
		e.Err = errAway
	}
	if strings.Contains(said, "no such host") || strings.Contains(said, "Could not resolve host") {
		host, _, _ := strings.Cut(t.Path, "/")
		_, err := d.cfg.LookupHost(ctx, host)
		if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
			e.Err = upstream.ErrNoHost
		}
	}
	if advice := d.advice(t.Path, v, e.Reason, said); advice != "" {
		e.Text = advice + ": " + e.Text
	}
	return e
}

// advice says what to do about credentials, where these stand in the way.
func (d *Direct) advice(path string, v *visit, reason cache.Reason, said string) string {
	private := module.MatchPrefixPatterns(d.cfg.Private, path)
	switch {
	case strings.Contains(said, notAllowed):
		return ""
	case strings.Contains(said, hostUnknown):
		return "the SSH host shows a key that this node does not know; whoever runs it adds the line of 'ssh-keyscan HOST', compared with what the host " +
			"publishes, to known-hosts in the file of --credentials or to ~/.ssh/known_hosts"
	case reason == cache.Denied && v.entry != nil && v.entry.Password == "" && strings.Contains(said, "go-get=1"):
		return v.entry.Pattern + " has an SSH key in the file of --credentials, but where the repository is the host tells by https only who has a token or a " +
			"password, which can be there, too"
	case reason == cache.Denied && v.entry != nil:
		return "the host does not accept the credentials of " + v.entry.Pattern + " in the file of --credentials"
	case reason == cache.Denied && private:
		return "this node has no credentials for it; whoever runs it adds " + patternFor(path) + " with a token, a password or an SSH key to the file of --credentials"
	case reason == cache.Denied:
		return "the host refuses; if the module is private, whoever runs this node adds " + patternFor(path) + " to --private, and with a token, " +
			"a password or an SSH key to the file of --credentials"
	case reason == cache.NotFound && private && v.entry == nil:
		return "asked without credentials, as there are none for it in the file of --credentials"
	}
	return ""
}

// patternFor proposes a pattern: the host and what mostly is a team.
func patternFor(path string) string {
	parts := strings.SplitN(path, "/", 3)
	return strings.Join(parts[:min(2, len(parts))], "/")
}

const maxLine = 300 // bytes of a complaint that developers see

// login is user and password in a URL.
var login = regexp.MustCompile(`://[^/@\s]+@`)

// line is what a go command complains about in one line, without what is ours alone.
func (d *Direct) line(text string) string {
	text = login.ReplaceAllString(text, "://")
	text = strings.ReplaceAll(text, d.cfg.Dir, "…")
	var parts []string
	for part := range strings.Lines(text) {
		part = strings.TrimSpace(strings.TrimPrefix(part, "go: "))
		if part != "" && !strings.HasPrefix(part, "downloading ") {
			parts = append(parts, strings.TrimSuffix(part, ":"))
		}
	}
	line := strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.Join(parts, ": "))
	if len(line) > maxLine {
		line = strings.ToValidUTF8(line[:maxLine], "") + "…"
	}
	if line == "" {
		return "the go command failed without a word"
	}
	return line
}
