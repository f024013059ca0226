package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/credentials"
	"github.com/ringmod/ringmod/node/direct"
	"github.com/ringmod/ringmod/node/peer"
	"github.com/ringmod/ringmod/node/polite"
	"github.com/ringmod/ringmod/node/sumdb"
	"github.com/ringmod/ringmod/node/upstream"
)

// checkSources finds mistakes in --upstream and --sumdb before anything is
// opened.
func (o *options) checkSources() error {
	for _, file := range []*string{&o.credentials, &o.gitConfig} {
		if whole, err := filepath.Abs(*file); *file != "" && err == nil {
			*file = whole
		}
	}
	if _, err := o.openCredentials(slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	if _, err := upstream.New(upstream.Config{List: o.upstream}); err != nil {
		return usagef("--upstream: %w", err)
	}
	if err := o.checkPoliteness(); err != nil {
		return err
	}
	if slices.Contains(o.sumdbs, "off") {
		if len(o.sumdbs) > 1 {
			return usagef("--sumdb off stands alone")
		}
		o.sumdbs = nil
	}
	for _, s := range o.sumdbs {
		if _, err := sumdb.ParseSpec(s); err != nil {
			return usagef("--sumdb: %w", err) // which does not repeat an address: it may hold a password
		}
	}
	return nil
}

// checkPoliteness finds mistakes in what upstream hosts are told and given.
func (o *options) checkPoliteness() error {
	switch {
	case !(o.hostRate > 0) || o.hostRate > 1e6:
		return usagef("--host-rate must be above 0, not %g: to ask no upstream at all there is --offline", o.hostRate)
	case o.hostRequests < 1 || o.hostRequests > 10_000:
		return usagef("--host-requests must be from 1 to 10000, not %d", o.hostRequests)
	case len(o.contact) > 256 || strings.ContainsFunc(o.contact, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("()<>\\\"", r) }):
		return usagef("--contact must be a URL or a mail address of printable ASCII without spaces, brackets and quotes, not %q", o.contact)
	}
	return nil
}

// upstreamClient opens the way out. self is where the process answers
// developers, nil if it does not.
func (o *options) upstreamClient(self net.Listener, via string, hosts *polite.Hosts, metrics *node.Metrics, log *slog.Logger) (*upstream.Client, error) {
	list, err := o.upstreamList(self, log)
	if err != nil {
		return nil, err
	}
	cfg := upstream.Config{
		List: list, Private: o.private, Netrc: netrcFile(), Contact: o.contact, Version: version(), Via: via,
		Hosts: hosts, PerHost: o.hostRequests, Observer: metrics.UpstreamRequest, Logger: log,
	}
	if o.parts.node { // a gateway has no disk for clones
		if cfg.Direct, err = o.versionControl(hosts, log); err != nil {
			return nil, err
		}
	}
	client, err := upstream.New(cfg)
	if err != nil {
		return nil, usagef("--upstream: %w", err)
	}
	return client, nil
}

// versionControl makes the way to "direct", in a folder beside the objects.
func (o *options) versionControl(hosts *polite.Hosts, log *slog.Logger) (*direct.Direct, error) {
	dir, err := filepath.Abs(filepath.Join(o.dataDir, "direct"))
	if err != nil {
		return nil, err
	}
	opens, err := o.openCredentials(log)
	if err != nil {
		return nil, err
	}
	return direct.New(direct.Config{
		Dir: dir, Env: direct.Environ(), Private: o.private, Netrc: netrcFile(), Credentials: opens, Hosts: hosts,
		Agent: upstream.UserAgent(version(), o.contact), CAFile: cmp.Or(os.Getenv("GIT_SSL_CAINFO"), os.Getenv("SSL_CERT_FILE")), Logger: log,
	}), nil
}

// openCredentials reads the files of --credentials and --git-config.
func (o *options) openCredentials(log *slog.Logger) (*credentials.Credentials, error) {
	c, err := credentials.Open(credentials.Config{File: o.credentials, GitConfig: o.gitConfig, Private: o.private, Logger: log})
	if err != nil {
		return nil, usagef("--credentials, --git-config: %w", err)
	}
	return c, nil
}

// upstreamList returns --upstream without the entries that lead back to us. A
// developer whose go command points here already ('go env -w GOPROXY=…') has
// nothing left then; the go command's own default takes its place.
func (o *options) upstreamList(self net.Listener, log *slog.Logger) (string, error) {
	if self == nil {
		return o.upstream, nil
	}
	list, dropped := upstream.DropSelf(o.upstream, addrPorts(self))
	for _, entry := range dropped {
		log.Warn("leaving out an upstream that leads back to this gateway", "upstream", entry)
	}
	switch {
	case len(dropped) == 0 || list != "" && list != "direct":
		return list, nil
	case !o.upstreamOfGo:
		return "", usagef("--upstream leads back to this gateway (%s) and nowhere else", self.Addr())
	}
	list, err := goEnv("GOPROXY", "GOENV=off", "GOPROXY=")
	if err != nil {
		return "", usagef("GOPROXY leads back to this gateway, and asking the go command for its default failed: %w; give --upstream", err)
	}
	log.Info("GOPROXY leads back to this gateway, using the go command's default as upstream")
	list, _ = upstream.DropSelf(list, addrPorts(self))
	return list, nil
}

// databases opens the checksum databases of --sumdb, which are reached by way of
// the other nodes where these may know more.
func (o *options) databases(outside *upstream.Client, others *peer.Peers, files *node.ChecksumFiles, metrics *node.Metrics, log *slog.Logger) ([]*sumdb.DB, error) {
	var dbs []*sumdb.DB
	for _, spec := range o.specs() {
		db, err := sumdb.New(sumdb.Config{
			Spec: spec, Remote: others.Copies(remoteDatabase{outside, spec}), Members: others.Lookups(), Storage: files, Heads: files,
			Refused: func(why string) { metrics.SumdbRefused(spec.Name, why) }, Logger: log,
		})
		if err != nil {
			return nil, usagef("--sumdb: %w", err)
		}
		dbs = append(dbs, db)
	}
	return dbs, nil
}

// specs returns the checksum databases of --sumdb, which checkSources has seen.
func (o *options) specs() []sumdb.Spec {
	var specs []sumdb.Spec
	for _, s := range o.sumdbs {
		if spec, err := sumdb.ParseSpec(s); err == nil {
			specs = append(specs, spec)
		}
	}
	return specs
}

func names(specs []sumdb.Spec) []string {
	var list []string
	for _, spec := range specs {
		list = append(list, spec.Name)
	}
	return list
}

// remoteDatabase reaches a checksum database as the go command does.
type remoteDatabase struct {
	outside *upstream.Client
	spec    sumdb.Spec
}

// Fetch implements sumdb.Remote.
func (r remoteDatabase) Fetch(ctx context.Context, t target.Target) ([]byte, error) {
	resp, err := r.fetch(ctx, t)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func (r remoteDatabase) fetch(ctx context.Context, t target.Target) (*upstream.Response, error) {
	if r.spec.Direct {
		return r.outside.FetchSumdbFrom(ctx, t, r.spec.URL)
	}
	return r.outside.FetchSumdb(ctx, t, r.spec.URL)
}

func addrPorts(l net.Listener) []netip.AddrPort {
	if tcp, ok := l.Addr().(*net.TCPAddr); ok {
		return []netip.AddrPort{tcp.AddrPort()}
	}
	return nil
}

// netrcFile returns the file that the go command reads, too: NETRC, or .netrc in
// the home folder (go/auth/netrc.go). It may be missing.
func netrcFile() string {
	if file := os.Getenv("NETRC"); file != "" {
		if whole, err := filepath.Abs(file); err == nil {
			return whole
		}
		return file
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	file := filepath.Join(home, ".netrc")
	if _, err := os.Stat(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "" // a home that is not ours
	}
	return file
}

// goEnv returns what 'go env' says, with env on top of our own environment.
func goEnv(name string, env ...string) (string, error) {
	cmd := exec.Command("go", "env", name) //nolint:noctx // local and instant
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return "", fmt.Errorf("%s", firstLine(exit.Stderr))
	}
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(out)), nil
}

func firstLine(b []byte) []byte {
	line, _, _ := bytes.Cut(bytes.TrimSpace(b), []byte("\n"))
	return line
}
