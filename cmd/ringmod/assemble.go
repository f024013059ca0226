package main

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/sumdb"
	"github.com/ringmod/ringmod/node/upstream"
)

// assemble builds the process from its parts; nothing runs yet.
func (o *options) assemble(disk *store.Disk, inspector *node.Inspector, l *listeners, log *slog.Logger) (*process, error) {
	id, err := o.identity()
	if err != nil {
		return nil, err
	}
	access := log // its lines name the node themselves
	log = log.With("node", id)
	reg := registry()
	metrics := node.NewMetrics(reg)
	via := "1.1 ringmod-" + id + "-" + rand.Text()[:8]
	outside, err := o.upstreamClient(l.http.Addr(), via, metrics, log)
	if err != nil {
		return nil, err
	}
	writes := node.NewWriteBehind(disk, log)
	databases, err := o.databases(outside, &node.ChecksumFiles{Store: disk, Documents: disk, Writes: writes}, log)
	if err != nil {
		return nil, err
	}
	inspector.Use(databases)
	p := &process{log: log, listeners: l, tlsCert: o.tlsCert, tlsKey: o.tlsKey}
	p.node = node.New(node.Config{
		Store: disk, Documents: disk, Upstream: outside, Databases: databases, Writes: writes,
		Private: o.private, Metrics: metrics, Logger: log,
	})
	front, err := gateway.New(gateway.Config{
		Cache: p.node, Sumdbs: names(databases), Via: via, Region: o.region, Node: id, Private: o.private,
		Ready: p.ready, Version: version(), Upstreams: outside.Entries(), Logger: access, Metrics: reg,
	})
	if err != nil {
		return nil, err
	}
	p.web = gateway.Server(front, log)
	p.admin = gateway.Server(gateway.Admin(reg, p.ready), log)
	p.grpc = grpc.NewServer()
	healthpb.RegisterHealthServer(p.grpc, health.NewServer())
	return p, nil
}

func (o *options) upstreamClient(self net.Addr, via string, metrics *node.Metrics, log *slog.Logger) (*upstream.Client, error) {
	list, dropped := upstream.DropSelf(o.upstream, addrPorts(self))
	for _, entry := range dropped {
		log.Warn("leaving out an upstream that leads back to this gateway", "upstream", entry)
	}
	if len(dropped) > 0 && list == "" {
		return nil, usagef("the upstream leads back to this gateway (%s); give --upstream", self)
	}
	client, err := upstream.New(upstream.Config{
		List: list, Private: o.private, Netrc: netrcFile(), Contact: o.contact, Version: version(), Via: via,
		Observer: metrics.UpstreamRequest, Logger: log,
	})
	if err != nil {
		return nil, usagef("--upstream: %w", err)
	}
	return client, nil
}

// databases opens the checksum databases of --sumdb.
func (o *options) databases(outside *upstream.Client, files *node.ChecksumFiles, log *slog.Logger) ([]*sumdb.DB, error) {
	var dbs []*sumdb.DB
	for _, s := range o.sumdbs {
		spec, err := sumdb.ParseSpec(s)
		if err != nil {
			return nil, err // checkSources has seen it
		}
		db, err := sumdb.New(sumdb.Config{
			Spec: spec, Remote: remoteDatabase{outside, spec}, Storage: files, Heads: files, Logger: log,
		})
		if err != nil {
			return nil, usagef("--sumdb %q: %w", s, err)
		}
		dbs = append(dbs, db)
	}
	return dbs, nil
}

func names(dbs []*sumdb.DB) []string {
	var list []string
	for _, db := range dbs {
		list = append(list, db.Name())
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

func addrPorts(a net.Addr) []netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return []netip.AddrPort{tcp.AddrPort()}
	}
	return nil
}

// netrcFile returns the file that the go command reads, too: NETRC, or .netrc in
// the home folder; "" where there is none (go/auth/netrc.go).
func netrcFile() string {
	if file := os.Getenv("NETRC"); file != "" {
		return file
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	file := filepath.Join(home, ".netrc")
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return file
}
