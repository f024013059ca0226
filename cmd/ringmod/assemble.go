package main

import (
	"context"
	"crypto/rand"
	"log/slog"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/identity"
	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/internal/refresh"
	"github.com/ringmod/ringmod/internal/spans"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/admin"
	"github.com/ringmod/ringmod/node/antientropy"
	"github.com/ringmod/ringmod/node/audit"
	"github.com/ringmod/ringmod/node/copies"
	"github.com/ringmod/ringmod/node/hot"
	"github.com/ringmod/ringmod/node/life"
	"github.com/ringmod/ringmod/node/member"
	"github.com/ringmod/ringmod/node/peer"
	"github.com/ringmod/ringmod/node/polite"
	"github.com/ringmod/ringmod/node/purge"
	"github.com/ringmod/ringmod/node/scrub"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/sumdb"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/verify"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// assembly is a process while it is being built, and what its parts share.
type assembly struct {
	*options
	*process

	access  *slog.Logger // for lines that name the member themselves
	reg     *prometheus.Registry
	metrics *node.Metrics
	tracers trace.TracerProvider // nil: no traces
	pool    *wire.Pool
	via     string
	own     *member.Membership // members, where they are known by gossip
	creds   *identity.Credentials
	sync    *member.Syncer
	peers   *peers.Set
	keys    *hot.Keys // of the node
	hosts   *polite.Hosts
	visitor *polite.Keeper // of the node
	outside *upstream.Client
	dbs     []*sumdb.DB
	scrub   *scrub.Scrubber
	audit   *audit.Auditor

	orders       *refresh.Orders              // to refresh
	operator     ringmodv1.AdminServiceServer // of a node
	purges       *purge.Set
	followed     *purge.Follower                // of a gateway
	nodesPrivate atomic.Pointer[string]         // of a gateway: what they have told
	drops        []func(func(name string) bool) // who has what was purged in memory
}

// start opens what the process needs and builds it; nothing runs yet.
func (o *options) start(ctx context.Context, log *slog.Logger) (_ *process, err error) {
	p := &process{place: o.region, tlsCert: o.tlsCert, tlsKey: o.tlsKey, ending: make(chan struct{})}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.listeners, err = o.listen(ctx, log); err != nil {
		return nil, err
	}
	p.closers = append(p.closers, p.listeners.close)
	a := &assembly{options: o, process: p, access: log, reg: registry(), pool: &wire.Pool{}, orders: refresh.New()}
	a.metrics = node.NewMetrics(a.reg)
	if o.parts.node {
		err = a.openNode(ctx, log)
	} else {
		err = a.identify(ctx, log)
	}
	if err != nil {
		return nil, err
	}
	if o.parts.gateway {
		err = a.openGateway()
	}
	p.admin = gateway.Server(gateway.Admin(a.reg, p.ready), p.log)
	return p, err
}

// identify gives the process its name and its view of the cluster.
func (a *assembly) identify(ctx context.Context, log *slog.Logger) error {
	if err := a.certify(log); err != nil {
		return err
	}
	var err error
	if a.id, err = a.identity(); err != nil {
		return err
	}
	a.log = log.With("node", a.id)
	a.trace(ctx)
	if !a.parts.node {
		a.purges = purge.NewSet()
		a.followed = &purge.Follower{Set: a.purges, Region: a.options.region, Told: a.drop, Self: a.id, Refreshes: a.orders, Logger: a.log, OnPrivate: a.hearPrivate}
	}
	a.via = "1.1 ringmod-" + a.id + "-" + rand.Text()[:8]
	if err := a.meet(); err != nil {
		return err
	}
	a.bePolite()
	if a.outside, err = a.upstreamClient(a.listeners.http, a.via, a.hosts, a.metrics, a.log); err == nil {
		a.hosts.UseRobots(a.outside.Robots)
	}
	return err
}

// openNode opens the disk and builds the node with its services.
func (a *assembly) openNode(ctx context.Context, log *slog.Logger) error {
	verifier := verify.New(0) // one for fills and inspections, which share its workers
	inspector := node.NewInspector(verifier)
	orphans := &antientropy.Orphans{}
	file := purge.File(filepath.Join(a.dataDir, tombstonesFile))
	purged, err := file.Load(log)
	if err != nil {
		return err
	}
	a.purges = purge.Restore(purged)
	disk, err := store.OpenDisk(store.DiskConfig{ //nolint:contextcheck // the disk's walk lives as long as the disk
		Purged: a.purges.Purged,
		Dir:    a.dataDir, Limit: a.limit, Class: orphans.ClassOf(node.ClassOf(a.private)), Place: antientropy.Place, Inspect: inspector.Inspect, Logger: log,
	})
	if err != nil {
		return err
	}
	a.closers = append(a.closers, func() { _ = disk.Close() })
	if err := a.identify(ctx, log); err != nil {
		return err
	}
	purger := a.keepPurged(file, purged, disk)
	copied := a.keepCopies(disk)
	compared := a.compareCopies(disk, copied, orphans)
	writes := node.NewWriteBehind(copied.Store(), a.log)
	others := peer.New(peer.Config{Self: a.id, Region: a.options.region, View: a.members.View, Nodes: a.peers, Logger: a.log})
	a.tasks = append(a.tasks, others.Run)
	if a.dbs, err = a.databases(a.outside, others, &node.ChecksumFiles{Store: disk, Documents: disk, Writes: writes}, a.metrics, a.log); err != nil {
		return err
	}
	inspector.Use(a.dbs, a.private)
	var copier node.Copier
	if a.durability > 1 {
		copier = copied
	}
	a.node = node.New(node.Config{
		Store: copied.Store(), Documents: copied.Documents(), Upstream: a.outside, Peers: others, Databases: a.dbs, Writes: writes, Verifier: verifier,
		Copier: copier, Hot: disk.Hot(), Used: disk.Used, Purges: purges{a.purges, purger}, Refreshes: a.orders, Private: a.private, Metrics: a.metrics, Logger: a.log,
	})
	copied.Use(a.node)
	a.scrubber(disk, others, copied)
	a.auditor(disk, others)
	a.drops = append(a.drops, a.node.Drop)
	node.RegisterDisk(a.reg, disk.Usage)
	a.tasks = append(a.tasks, a.watchDisk(disk, compared.Wake))
	a.services(disk, copied, compared, purger)
	return nil
}

// watchHot finds out what is asked for more than a few nodes should bear.
func (a *assembly) watchHot() *hot.Keys {
	k := hot.New(hot.Config{
		Self: a.id, Region: a.options.region, View: a.members.View, Nodes: a.peers, Metrics: a.reg, Logger: a.log,
	})
	k.Use(a.node)
	a.keys = k
	a.tasks = append(a.tasks, k.Run)
	return k
}

// tombstonesFile is where the data folder keeps what operators have purged.
const tombstonesFile = "tombstones"

// keepPurged keeps removed what operators remove, here and at the other nodes.
func (a *assembly) keepPurged(file purge.File, kept purge.State, disk *store.Disk) *purge.Keeper {
	k := purge.New(purge.Config{
		Self: a.id, Set: a.purges, State: kept, File: file, View: a.members.View, Changed: a.members.Changed, Nodes: a.peers, Disk: disk,
		Seeded: len(a.join) > 0, Told: a.drop, Metrics: a.reg, Logger: a.log,
	})
	a.tasks = append(a.tasks, k.Run)
	return k
}

// purges are what a node asks: what is purged, and whether that is known yet.
type purges struct {
	*purge.Set

	keeper *purge.Keeper
}

// Wait implements node.Purges.
func (p purges) Wait(ctx context.Context) error { return p.keeper.Wait(ctx) }

// drop lets go of what has just been purged.
func (a *assembly) drop(purged func(name string) bool) {
	for _, each := range a.drops {
		each(purged)
	}
}

// hintsDir is where the data folder keeps what other nodes are still to be told.
const hintsDir = "hints"

// keepCopies sees to it that what the node stores is at other nodes, too.
func (a *assembly) keepCopies(disk *store.Disk) *copies.Keeper {
	k := copies.New(copies.Config{
		Self: a.id, Region: a.options.region, View: a.members.View, Nodes: a.peers, Store: disk, Documents: disk,
		Dir: filepath.Join(a.dataDir, hintsDir), Declines: a.declines(disk), OnView: a.sync.Observe, Caller: caller,
		OnConflict: a.conflict, Metrics: a.reg, Logger: a.log,
	})
	a.tasks = append(a.tasks, k.Run)
	return k
}

// compareCopies finds what has come to other nodes and not to this one, or the other
// way round.
func (a *assembly) compareCopies(disk *store.Disk, copied *copies.Keeper, orphans *antientropy.Orphans) *antientropy.Comparer {
	c := antientropy.New(antientropy.Config{
		Self: a.id, Region: a.options.region, View: a.members.View, Changed: a.members.Changed, Nodes: a.peers, Store: disk, Pulls: copied, Hints: copied,
		Orphans: orphans, Declines: a.declines(disk), OnConflict: a.conflict, OnView: a.sync.Observe, Caller: caller, Metrics: a.reg, Logger: a.log,
	})
	a.tasks = append(a.tasks, c.Run)
	return c
}

// declines tells of announced objects that the disk does not want: any while it is
// read-only, what was purged, and what it has evicted though the other node had it at that
// time.
func (a *assembly) declines(disk *store.Disk) func(target.Target, *ringmodv1.Copy) bool {
	return func(t target.Target, theirs *ringmodv1.Copy) bool {
		if disk.ReadOnly() != nil || a.purges.Purged(t.String()) {
			return true
		}
		gone := disk.Evicted(t.String())
		return !gone.IsZero() && theirs.GetStoredAge().AsDuration() > time.Since(gone)
	}
}

// conflict has the scrubber, which is made later, decide between two copies.
func (a *assembly) conflict(t target.Target, holder string, theirs *ringmodv1.Copy) {
	a.scrub.Conflict(t, holder, theirs)
}

// scrubber sees to it that what the node holds stays as it was stored.
func (a *assembly) scrubber(disk *store.Disk, others *peer.Peers, copied *copies.Keeper) {
	a.scrub = scrub.New(scrub.Config{
		Disk: disk, Node: a.node, Copies: others, Nodes: a.peers, Announce: copied.Tell, Metrics: a.reg, Logger: a.log,
	})
	a.tasks = append(a.tasks, a.scrub.Run)
}

// auditor sees whether upstream still says of versions what it said when they came.
func (a *assembly) auditor(disk *store.Disk, others *peer.Peers) {
	a.audit = audit.New(audit.Config{Disk: disk, Upstream: a.outside, Metrics: a.reg, Logger: a.log, Mine: func(t target.Target) bool {
		first := others.Coordinators(t)
		return len(first) > 0 && first[0].Self
	}})
	a.tasks = append(a.tasks, a.audit.Run)
}

// services builds the gRPC server with what a node offers.
func (a *assembly) services(disk *store.Disk, copied *copies.Keeper, compared *antientropy.Comparer, purger *purge.Keeper) {
	streams := &admin.Streams{}
	a.grpc = grpc.NewServer(slices.Concat(
		wire.ServerOptions(a.pool), spans.ServerOptions(a.tracers), a.creds.ServerOptions(), []grpc.ServerOption{grpc.ChainStreamInterceptor(streams.Intercept)},
	)...)
	a.health = health.NewServer()
	a.life = life.New(life.Config{Membership: a.own, Conns: a.peers, Copies: compared, Streams: streams.Running, OnReady: a.tellReady, Metrics: a.reg, Logger: a.log})
	a.tellReady(false)
	node.Register(a.grpc, node.ServiceConfig{
		Cache: a.node, Holder: a.node, Heat: a.watchHot(), Metrics: a.metrics, Pool: a.pool, View: a.stamp, OnView: a.sync.Observe, Caller: caller,
		OnDamaged: a.scrub.Suspect, Ending: a.ending, Logger: a.log,
	})
	refreshes := &admin.Refreshes{Orders: a.orders, Renewer: a.node, Followers: a.own.Watchers}
	node.RegisterPeer(a.grpc, node.PeerParts{Announcer: copied, Comparer: compared, Purger: purger, Outdater: refreshes, Visitor: a.visitor})
	member.Register(a.grpc, a.own)
	a.operator = admin.Register(a.grpc, admin.Config{
		Self: a.id, Membership: a.own, Conns: a.peers, Holder: a.node, Leaver: a.life, Scrubber: a.scrub, Auditor: a.audit, Purger: purger, Filler: a.node, Refreshes: refreshes, Ending: a.ending, Logger: a.log,
		Reporter: &admin.Local{
			Version: version(), Started: time.Now(), View: a.members.View, Usage: disk.Usage, Fills: a.node.Fills, Streams: streams, Copies: copied,
			Compared: compared, Moved: a.life.Moved, Hosts: a.hosts, Databases: a.dbs,
		},
	})
	healthpb.RegisterHealthServer(a.grpc, a.health)
	reflection.Register(a.grpc)
}

// readyService is the name under which the health service tells what /readyz does.
// The health of the whole server, "", is another thing: others must call a node that is
// up, ready or not.
const readyService = "ready"

func (a *assembly) tellReady(now bool) {
	is := healthpb.HealthCheckResponse_NOT_SERVING
	if now {
		is = healthpb.HealthCheckResponse_SERVING
	}
	a.health.SetServingStatus(readyService, is)
}

// stamp tells others which view this member has.
func (a *assembly) stamp() (digest, seq uint64) {
	v := a.members.View()
	return v.Digest(), v.Seq()
}

// openGateway builds the HTTP side.
func (a *assembly) openGateway() error {
	nodes := cluster.New(cluster.Config{
		Cluster: a.cluster, Region: a.options.region, Zone: a.zone, Peers: reachable{a.peers, a.id, a.node, a.keys}, Conns: a.peers, View: a.members,
		Upstream: a.withoutNodes(), Private: a.private, Pool: a.pool, Metrics: a.reg, Logger: a.log,
	})
	a.tasks = append(a.tasks, nodes.Run)
	a.drops = append(a.drops, nodes.Drop)
	a.nodesReady = nodes.Ready
	var objects gateway.Cache = heeding{nodes, a.hosts}
	if a.node != nil {
		objects = localFirst{a.node, a.members.View, nodes}
	}
	hooks, err := a.hooks(nodes)
	if err != nil {
		return err
	}
	front, err := gateway.New(gateway.Config{
		Cache: objects, Purges: a.purges, Refreshes: a.orders, Hooks: hooks, Sumdbs: names(a.specs()), Via: a.via, Region: a.region, Node: a.id, Private: a.private,
		Ready: a.canServe, Version: version(), Regions: a.regions, Upstreams: a.outside.Entries(), Logger: a.access, Metrics: a.reg,
	})
	if err != nil {
		return err
	}
	a.drops = append(a.drops, front.Drop)
	a.web = gateway.Server(spans.Handler(a.tracers, front), a.log)
	return nil
}
