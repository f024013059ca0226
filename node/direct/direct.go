// Package direct gets modules from the version control systems they live in, as
// "direct" in GOPROXY means it, by running the go command in a sandbox.
//
// What it promises:
//
//   - .info, .mod, list, latest and queries never make or fetch a zip, as far as the
//     version control system allows.
//   - The go command sees nothing of the account that runs ringmod but what Config
//     hands on: it has folders of its own (HOME, GOPATH, build cache), no GOENV, no
//     GOFLAGS, and never another toolchain. It asks nobody for a password. It does
//     not look anything up in a checksum database: node/verify does, for whoever asks.
//   - Credentials for a module are in files that only this account can read, in a folder
//     of their own that ends with the command. A password goes over https to the hosts
//     that it is for, a key is shown to its host, whose own key must be known: neither to
//     where these redirect to, nor into a clone, an environment or a command line.
//   - Clones are kept, so that the next version of a repository costs a fetch of what
//     is new; together they stay below Config.Keep bytes, but for those in use.
//   - A command, with all that it has started, ends with the caller's context and
//     after a limit, and what it prints is bounded.
//   - The host of a repository is asked when package polite lets it be. It is the one that the go
//     command has named as a module's origin, and before that the first element of the
//     module's path.
//   - Every error is a *cache.Error with a line for a developer, without credentials
//     and without paths of this machine. Absence is only what the go command says in
//     so many words; what it says otherwise, and we do not know, is trouble.
//
// Which version control systems may be used for what is GOVCS' to say (go.dev/ref/mod):
// git and hg for public modules, all for private ones.
//
// What it never does: verify, keep zips, retry. It needs the go command and the
// version control system's own in PATH; without the go command each Fetch is an
// error that says so.
package direct

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/credentials"
	"github.com/ringmod/ringmod/node/polite"
	"github.com/ringmod/ringmod/node/upstream"
)

const (
	// DefaultKeep is how much clones may take, in bytes.
	DefaultKeep = 10 << 30
	// DefaultAtOnce is how many go commands run at the same time.
	DefaultAtOnce = 8

	askLimit = 2 * time.Minute  // for a command that fetches no zip; the first clone of a repository is in it
	zipLimit = 10 * time.Minute // for one that does
)

// Config says how to run the go command.
type Config struct {
	Dir string // absolute; for clones and all that the go command writes; made when missing
	Go  string // the go command; "" = "go" in PATH
	// Env is what the go command gets beside its sandbox, "NAME=value"; see Environ.
	Env     []string
	Private string // GOPRIVATE, which GOVCS tells private modules by
	Netrc   string // absolute path of a netrc file, which may be missing; "" = none
	// Credentials are shown for private modules, in place of what Netrc has; nil = none.
	Credentials *credentials.Credentials
	CAFile      string // PEM, the authorities that git trusts; "" = those of the machine
	AtOnce      int    // 0 = DefaultAtOnce
	Keep        int64  // bytes; 0 = DefaultKeep
	// LookupHost asks DNS; nil = net.DefaultResolver's.
	LookupHost func(ctx context.Context, host string) ([]string, error)
	// Hosts say when a host may be asked; nil = for this Direct alone.
	Hosts *polite.Hosts
	// Agent is the User-Agent of git; "" = its own. The go command's own requests, for
	// go-import, cannot have another one.
	Agent  string
	Logger *slog.Logger
}

// Direct runs go commands. Its methods may be called at any time from any goroutine.
type Direct struct {
	cfg    Config
	log    *slog.Logger
	places chan struct{} // taken by who runs a command

	mu    sync.Mutex
	made  bool      // the sandbox
	swept time.Time // when the size of the clones was looked at last

	origins origins
}

// New returns a Direct. It does no I/O.
func New(cfg Config) *Direct {
	if cfg.AtOnce <= 0 {
		cfg.AtOnce = DefaultAtOnce
	}
	if cfg.Keep <= 0 {
		cfg.Keep = DefaultKeep
	}
	if cfg.LookupHost == nil {
		cfg.LookupHost = net.DefaultResolver.LookupHost
	}
	if cfg.Go == "" {
		cfg.Go = "go"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Hosts == nil {
		cfg.Hosts = polite.New(polite.Config{Logger: cfg.Logger})
	}
	return &Direct{cfg: cfg, log: cfg.Logger, places: make(chan struct{}, cfg.AtOnce)}
}

// Fetch gets t, which is no target of a checksum database. Errors are *cache.Error.
func (d *Direct) Fetch(ctx context.Context, t target.Target) (*upstream.Response, error) {
	if err := check(t); err != nil {
		return nil, err
	}
	limit := askLimit
	if t.Kind == target.Zip {
		limit = zipLimit
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errLimit)
	defer cancel()
	return d.politely(ctx, t, func() (*upstream.Response, error) { return d.take(ctx, t) })
}

// take runs the go command when there is a place for it.
func (d *Direct) take(ctx context.Context, t target.Target) (*upstream.Response, error) {
	select {
	case d.places <- struct{}{}:
		defer func() { <-d.places }()
	case <-ctx.Done():
		return nil, d.ended(ctx)
	}
	if err := d.prepare(); err != nil {
		return nil, internal("preparing the sandbox of the go command", err)
	}
	resp, err := d.fetch(ctx, t)
	d.sweepSometimes(ctx)
	return resp, err
}

// check refuses what the go command would take for something else than a name.
func check(t target.Target) error {
	if t.Path == "" || t.Kind.Sumdb() {
		return &cache.Error{Reason: cache.Malformed, Text: "not a file of a module: " + t.String()}
	}
	switch q := t.Version; {
	case t.Kind != target.Query:
	case strings.HasPrefix(q, "<"), strings.HasPrefix(q, ">"), q == "none", q == "all", q == "upgrade", q == "patch", q == "latest":
		return &cache.Error{Reason: cache.NotFound, Source: source, Text: "no such branch, tag or commit: " + q}
	}
	return nil
}

// source is what errors and answers call us.
const source = "direct"

func (d *Direct) fetch(ctx context.Context, t target.Target) (*upstream.Response, error) {
	switch t.Kind {
	case target.List:
		return d.list(ctx, t)
	case target.Zip:
		return d.zip(ctx, t)
	default:
		return d.describe(ctx, t)
	}
}

// found is what the go command prints of a module version.
type found struct {
	Version  string
	Time     *time.Time
	Origin   json.RawMessage
	GoMod    string // path
	Zip      string // path
	Dir      string // path
	Versions []string
	Error    string // of go mod download
}

// isOther is the error when a version that has to be canonical is not f's.
func (f *found) isOther() error {
	return &cache.Error{Reason: cache.NotFound, Source: source, Text: "the canonical version is " + f.Version}
}

// list gets the tagged versions, retracted ones too, as the protocol wants it.
func (d *Direct) list(ctx context.Context, t target.Target) (*upstream.Response, error) {
	f, err := d.goList(ctx, t, "-versions", "-retracted", t.Path)
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	for _, version := range f.Versions {
		text.WriteString(version)
		text.WriteByte('\n')
	}
	return answer([]byte(text.String())), nil
}

// describe gets what needs no zip: .info, .mod, latest and queries.
func (d *Direct) describe(ctx context.Context, t target.Target) (*upstream.Response, error) {
	query := t.Version
	if t.Kind == target.Latest {
		query = "latest"
	}
	f, err := d.goList(ctx, t, t.Path+"@"+query)
	if err != nil {
		return nil, err
	}
	immutable := t.Kind == target.Info || t.Kind == target.Mod
	if immutable && f.Version != t.Version {
		return nil, f.isOther()
	}
	if t.Kind == target.Mod {
		data, err := os.ReadFile(f.GoMod)
		if err != nil {
			return nil, internal("reading what the go command has made", err)
		}
		return answer(data), nil
	}
	return f.info()
}

// info is the answer in the form of the protocol, with what the go command knows of
// the origin.
func (f *found) info() (*upstream.Response, error) {
	data, err := json.Marshal(struct {
		Version string
		Time    *time.Time      `json:",omitempty"`
		Origin  json.RawMessage `json:",omitempty"`
	}{f.Version, f.Time, f.Origin})
	if err != nil {
		return nil, internal("reading what the go command says", err)
	}
	return answer(data), nil
}

func answer(data []byte) *upstream.Response {
	return &upstream.Response{Body: io.NopCloser(bytes.NewReader(data)), Size: int64(len(data)), Source: source}
}

// zip gets a zip. The go command unpacks it as well, which nobody needs.
func (d *Direct) zip(ctx context.Context, t target.Target) (*upstream.Response, error) {
	f, err := d.run(ctx, t, "mod", "download", "-json", t.Path+"@"+t.Version)
	if err != nil {
		return nil, err
	}
	defer d.discard(ctx, f)
	if f.Version != t.Version {
		return nil, f.isOther()
	}
	file, err := os.Open(f.Zip)
	if err != nil {
		return nil, internal("reading what the go command has made", err)
	}
	info, err := file.Stat()
	if err == nil && info.Size() > upstream.Limit(target.Zip) {
		err = &cache.Error{Reason: cache.Broken, Source: source, Text: "the zip is larger than the go command accepts"}
	}
	if err != nil {
		_ = file.Close()
		return nil, asError(err)
	}
	return &upstream.Response{Body: file, Size: info.Size(), Source: source}, nil
}

// discard removes the zip, which stays readable for who has opened it, and what was
// unpacked of it.
func (d *Direct) discard(ctx context.Context, f *found) {
	if !d.below(f.Zip) || !d.below(f.Dir) {
		return
	}
	for _, name := range []string{f.Zip, strings.TrimSuffix(f.Zip, ".zip") + ".ziphash", f.Dir} {
		if err := os.RemoveAll(name); err != nil {
			d.log.WarnContext(ctx, "cannot remove what the go command has left", "err", err)
		}
	}
}

// below tells whether name is a path in our own module cache.
func (d *Direct) below(name string) bool {
	rel, err := filepath.Rel(d.modCache(), name)
	return err == nil && filepath.IsLocal(rel) && rel != "."
}

func (d *Direct) modCache() string { return filepath.Join(d.cfg.Dir, "mod") }

// goList runs go list -m with those arguments.
func (d *Direct) goList(ctx context.Context, t target.Target, args ...string) (*found, error) {
	return d.run(ctx, t, append([]string{"list", "-m", "-json"}, args...)...)
}
