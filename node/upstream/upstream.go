// Package upstream fetches module files from the sources of a GOPROXY list:
// module proxies over http and https, and folders (file://) in the layout of
// the go command's download cache.
//
// It is transport only: it promises that a body which ends with io.EOF has the
// length that the source announced and came from one state of the file, and it
// promises nothing about the content, which node/verify checks.
//
// What it promises to a node:
//   - Entries are walked as cmd/go does (go/modfetch/proxy.go, TryProxies):
//     404 and 410 go on to the next entry, other trouble only behind a "|", and
//     trouble outranks absence. NotFound and Gone are returned only when each
//     entry that was asked said so.
//   - Every error, also of a body, is a *cache.Error with one line of text that
//     a developer can read and never holds credentials. When the caller's
//     context ends the reason is Slow and the error matches the context's.
//   - Each request is bounded: time to connect and to the header, silence
//     in a body, redirects, size by kind. There is no
//     limit on the whole time of a body that keeps coming.
//   - What may pass by itself is tried again: connection errors, 502, 503 and
//     504, within a short budget. A body that breaks is resumed where it stopped.
//   - A host is asked when package polite lets it be, and no other way.
//   - Modules that match the private patterns are never sent to an http(s)
//     entry nor to a checksum database.
//
// It never writes to disk, keeps no body in memory, leaves version control systems to
// Config.Direct and never contacts anybody when the list is "off" or empty. HTTP_PROXY, HTTPS_PROXY and NO_PROXY apply as for
// the go command.
package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/polite"
)

// Config says where to fetch from and how patiently.
type Config struct {
	// List is the GOPROXY list. Entries are separated by "," (on to the next
	// on 404 and 410) or "|" (on any error). Entries: http, https and file URLs,
	// "direct" and "off", which end the list; a host without scheme is
	// https. User and password may be in an https URL, and in an http URL to
	// loopback. Empty: as "off".
	List string
	// Private has the patterns (GOPRIVATE, module.MatchPrefixPatterns) of modules
	// that no http(s) entry may hear of. Empty: none.
	Private string
	// Netrc is the path of a netrc file, used for https hosts and for http to
	// loopback. Empty, or no such file: none.
	Netrc string
	// Contact is a URL or mail address in the User-Agent, for those who run the upstream. Empty: none.
	Contact string
	// Version is this program's, for the User-Agent. Empty: left out.
	Version string
	// Via is the Via header of each request, by which a gateway recognises a
	// loop, for example "1.1 ringmod-7f3a". Empty: none.
	Via string
	// Hosts say when a host may be asked. Nil: for this client alone, with PerHost
	// requests at once.
	Hosts   *polite.Hosts
	PerHost int // 0: polite.DefaultAtOnce
	// Timeouts bound a request; see there.
	Timeouts Timeouts
	// Dial connects. Nil: a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// TLS is the client's configuration. Nil: TLS 1.2 and the system's roots.
	TLS *tls.Config
	// Observer is called once per request with the host of the entry, the
	// status (0: no answer) and the time to the header. Nil: none.
	Observer func(host string, status int, d time.Duration)
	// Direct asks version control systems, for the entry "direct" and for what
	// is private. Nil: such an entry is an error that says so.
	Direct Source
	// Logger gets retries and resumptions at debug level. Nil: none.
	Logger *slog.Logger
}

// ErrNoHost is wrapped by an error of Config.Direct when the host in a module's path does not
// exist (NXDOMAIN). That is trouble when nobody else was asked, and what the proxies
// said when they have said that there is no such module.
var ErrNoHost = errors.New("the host of the module does not exist")

// Source is a place to get files from that is not one of a list's: version control, for
// which *direct.Direct stands, or a bundle.
type Source interface {
	// Fetch gets a target. Errors are *cache.Error.
	Fetch(ctx context.Context, t target.Target) (*Response, error)
}

// Timeouts bound a request to a host. Zero values mean the defaults.
type Timeouts struct {
	Connect time.Duration // to a connection, name resolution included; 5 s
	TLS     time.Duration // for the handshake; 10 s
	Header  time.Duration // to the header of the answer, connecting and redirects included; 20 s
	Stall   time.Duration // without a byte in a body; 15 s
	Retry   time.Duration // in which a new attempt may begin; 10 s
}

func (t Timeouts) withDefaults() Timeouts {
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{
		{&t.Connect, 5 * time.Second},
		{&t.TLS, 10 * time.Second},
		{&t.Header, 20 * time.Second},
		{&t.Stall, 15 * time.Second},
		{&t.Retry, 10 * time.Second},
	} {
		if *d.value <= 0 {
			*d.value = d.def
		}
	}
	return t
}

// Client fetches from the entries of one list. It is safe for concurrent use.
type Client struct {
	entries   []entry
	private   string
	netrc     netrc
	userAgent string
	via       string
	timeouts  Timeouts
	observe   func(host string, status int, d time.Duration)
	direct    Source
	log       *slog.Logger
	http      *http.Client

	hosts *polite.Hosts

	mu  sync.Mutex
	dbs map[string]*database
}

// New checks cfg and reads the netrc file; it sends nothing. The error of a bad
// list names the entry, without credentials.
func New(cfg Config) (*Client, error) {
	c := &Client{
		private:   cfg.Private,
		userAgent: UserAgent(cfg.Version, cfg.Contact),
		via:       cfg.Via,
		timeouts:  cfg.Timeouts.withDefaults(),
		observe:   cfg.Observer,
		direct:    cfg.Direct,
		log:       cfg.Logger,
		hosts:     cfg.Hosts,
		dbs:       make(map[string]*database),
	}
	if c.hosts == nil {
		c.hosts = polite.New(polite.Config{AtOnce: cfg.PerHost, Logger: cfg.Logger})
	}
	if c.observe == nil {
		c.observe = func(string, int, time.Duration) {}
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if c.netrc, err = readNetrc(cfg.Netrc); err != nil {
		return nil, err
	}
	if c.entries, err = parseList(cfg.List); err != nil {
		return nil, err
	}
	c.http = newHTTPClient(cfg, c.timeouts)
	for i, e := range c.entries {
		if e.kind == proxyEntry {
			c.entries[i].source = c.newSource(e.base)
		}
	}
	return c, nil
}

// UserAgent is how this program introduces itself.
func UserAgent(version, contact string) string {
	agent := "ringmod"
	if version != "" {
		agent += "/" + version
	}
	if contact != "" {
		agent += " (+" + contact + ")"
	}
	return agent
}

// Offline reports whether the list is "off" or empty: nothing is ever sent.
func (c *Client) Offline() bool { return len(c.entries) == 0 || c.entries[0].kind == offEntry }

// Entries returns the list for people: scheme and host of each entry, without
// credentials and, because some hosts put a token there, without the path.
func (c *Client) Entries() []string {
	names := make([]string, len(c.entries))
	for i, e := range c.entries {
		names[i] = e.name
	}
	return names
}

// Close closes idle connections. Bodies that are being read go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Validators are what a source said to recognise a state of a file by.
type Validators struct{ ETag, LastModified string }

// Response is a source's answer. The caller closes Body.
type Response struct {
	// Body yields the bytes, never more than the kind's limit. It resumes by
	// itself; a read fails with an *cache.Error, never with a short io.EOF.
	Body   io.ReadCloser
	Size   int64  // bytes; -1 where the source has not said
	Source string // host that answered, or file:// and the folder
	Validators
	// NotModified is set when the validators of the request still hold; Body is
	// empty then.
	NotModified bool
}
