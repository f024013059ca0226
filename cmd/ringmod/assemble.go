package main

import (
	"crypto/rand"
	"log/slog"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/verify"
)

// assemble builds the process from its parts; nothing runs yet.
func (o *options) assemble(disk *store.Disk, verifier *verify.Verifier, inspector *node.Inspector, l *listeners, log *slog.Logger) (*process, error) {
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
		Store: disk, Documents: disk, Upstream: outside, Databases: databases, Writes: writes, Verifier: verifier,
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
	p.grpc = services(p.node, log)
	return p, nil
}

// services returns the gRPC server with what a node offers.
func services(n *node.Node, log *slog.Logger) *grpc.Server {
	pool := &wire.Pool{}
	server := grpc.NewServer(wire.ServerOptions(pool)...)
	node.Register(server, node.ServiceConfig{Cache: n, Holder: n, Pool: pool, Logger: log})
	healthpb.RegisterHealthServer(server, health.NewServer())
	reflection.Register(server)
	return server
}
