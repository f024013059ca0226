package sim

import (
	"bytes"
	"context"
	"io"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/antientropy"
	"github.com/ringmod/ringmod/node/copies"
	"github.com/ringmod/ringmod/node/hot"
	"github.com/ringmod/ringmod/node/life"
	"github.com/ringmod/ringmod/node/member"
	"github.com/ringmod/ringmod/node/peer"
	"github.com/ringmod/ringmod/node/purge"
	"github.com/ringmod/ringmod/node/scrub"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/sumdb"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/verify"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// assemble builds the parts and returns what runs beside membership.
func (p *process) assemble(file purge.File, kept purge.State) ([]task, error) {
	if p.m.node() {
		return p.assembleNode(file, kept)
	}
	return p.assembleGateway()
}

func (p *process) assembleNode(file purge.File, kept purge.State) (_ []task, err error) {
	verifier := verify.New(1)
	inspector := node.NewInspector(verifier)
	orphans := &antientropy.Orphans{}
	if p.handle, err = p.m.disk.open(store.DiskConfig{
		Purged: p.purges.Purged,
		Class:  orphans.ClassOf(node.ClassOf("")), Place: antientropy.Place, Inspect: inspector.Inspect, Logger: p.log,
	}); err != nil {
		return nil, err
	}
	p.purger = purge.New(purge.Config{
		Self: p.m.id, Set: p.purges, State: kept, File: file, View: p.member.View, Changed: p.member.Changed, Nodes: p.peers, Disk: p.handle,
		Seeded: true, Told: p.drop, Logger: p.log,
	})
	copied := copies.New(copies.Config{
		Self: p.m.id, Region: p.m.region, View: p.member.View, Nodes: metered{p.peers, p}, Store: p.handle, Documents: p.handle,
		Dir: p.m.disk.hints(), Rate: p.w.rate, Declines: p.declines, OnConflict: p.conflict, OnView: p.sync.Observe, Caller: p.w.caller, Logger: p.log,
	})
	compared := antientropy.New(antientropy.Config{
		Self: p.m.id, Region: p.m.region, View: p.member.View, Changed: p.member.Changed, Nodes: p.peers, Store: p.handle, Pulls: copied,
		Hints: copied, Orphans: orphans, Declines: p.declines, OnConflict: p.conflict, OnView: p.sync.Observe, Caller: p.w.caller, Logger: p.log,
	})
	writes := node.NewWriteBehind(copied.Store(), p.log)
	files := &node.ChecksumFiles{Store: p.handle, Documents: p.handle, Writes: writes}
	others := peer.New(peer.Config{Self: p.m.id, Region: p.m.region, View: p.member.View, Nodes: p.peers, Logger: p.log})
	db, err := sumdb.New(sumdb.Config{
		Spec: p.w.sums.spec, Remote: others.Copies(ask{p.w.sums, p.source}), Members: others.Lookups(),
		Storage: files, Heads: files, Logger: p.log,
	})
	if err != nil {
		return nil, err
	}
	dbs := []*sumdb.DB{db}
	inspector.Use(dbs, "")
	p.node = node.New(node.Config{
		Store: copied.Store(), Documents: copied.Documents(), Upstream: p.source, Peers: others, Databases: dbs, Writes: writes,
		Verifier: verifier, Hot: p.handle.Hot(), Purges: purges{p.purges, p.purger}, Logger: p.log,
	})
	copied.Use(p.node)
	p.drops = append(p.drops, p.node.Drop)
	p.scrub = scrub.New(scrub.Config{Disk: p.handle, Node: p.node, Copies: others, Nodes: p.peers, Announce: copied.Tell, Logger: p.log})
	heat := hot.New(hot.Config{Self: p.m.id, Region: p.m.region, View: p.member.View, Nodes: p.peers, Logger: p.log})
	heat.Use(p.node)
	p.life = life.New(life.Config{Membership: p.member, Conns: p.peers, Copies: compared, Logger: p.log})
	p.grpc = grpc.NewServer(append(wire.ServerOptions(p.pool), grpc.StreamInterceptor(p.listenIn))...)
	node.Register(p.grpc, node.ServiceConfig{
		Cache: p.node, Holder: p.node, Heat: heat, Pool: p.pool, View: p.stamp, OnView: p.sync.Observe, Caller: p.w.caller,
		OnDamaged: p.scrub.Suspect, Ending: p.ending, Logger: p.log,
	})
	node.RegisterPeer(p.grpc, node.PeerParts{Announcer: copied, Comparer: compared, Purger: p.purger})
	member.Register(p.grpc, p.member)
	p.health = health.NewServer()
	healthpb.RegisterHealthServer(p.grpc, p.health)
	serve := func(context.Context) error { return p.grpc.Serve(p.data.Listener()) }
	return []task{copied.Run, compared.Run, others.Run, heat.Run, p.life.Run, p.scrub.Run, p.purger.Run, p.watchDisk, serve}, nil
}

// conflict is as in cmd/ringmod.
func (p *process) conflict(t target.Target, holder string, theirs *ringmodv1.Copy) {
	p.scrub.Conflict(t, holder, theirs)
}

// watchDisk is as in cmd/ringmod.
func (p *process) watchDisk(ctx context.Context) error {
	p.handle.WatchHealth(ctx, func(readOnly, dead error) {
		if err := p.member.SetReadOnly(ctx, readOnly != nil); err != nil {
			p.log.ErrorContext(ctx, "members not told of the disk", "err", err)
		}
		is := healthpb.HealthCheckResponse_SERVING
		if dead != nil {
			is = healthpb.HealthCheckResponse_NOT_SERVING
		}
		p.health.SetServingStatus("", is)
	})
	return nil
}

// purges are as in cmd/ringmod.
type purges struct {
	*purge.Set

	keeper *purge.Keeper
}

// Wait implements node.Purges.
func (p purges) Wait(ctx context.Context) error { return p.keeper.Wait(ctx) }

// drop lets go of what has just been purged.
func (p *process) drop(purged func(name string) bool) {
	for _, each := range p.drops {
		each(purged)
	}
}

// declines is as in cmd/ringmod.
func (p *process) declines(t target.Target, theirs *ringmodv1.Copy) bool {
	if p.handle.ReadOnly() != nil || p.purges.Purged(t.String()) {
		return true
	}
	gone := p.handle.Evicted(t.String())
	return !gone.IsZero() && theirs.GetStoredAge().AsDuration() > time.Since(gone)
}

// metered is the way to the nodes that copies are pulled by. It counts their bytes.
type metered struct {
	*peers.Set

	process *process
}

// Get is that of the Set.
func (m metered) Get(ctx context.Context, id string, req cache.Request, o wire.Options) (*cache.Object, error) {
	obj, err := m.Set.Get(ctx, id, req, o)
	if err == nil {
		obj.Body = &meter{obj.Body, m.process}
	}
	return obj, err
}

type meter struct {
	io.ReadCloser

	process *process
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	m.process.w.book.pull(pulled{m.process.m.id, m.process.boot, n, time.Now()})
	return n, err
}

// caller returns the id of the member that makes a call, by its address.
func (w *World) caller(ctx context.Context) string {
	from, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return ""
	}
	addr, err := netip.ParseAddrPort(from.Addr.String())
	if err != nil {
		return ""
	}
	id, _ := w.byHost.Load(addr.Addr())
	name, _ := id.(string)
	return name
}

// stamp tells others which view this member has.
func (p *process) stamp() (digest, seq uint64) {
	v := p.member.View()
	return v.Digest(), v.Seq()
}

func (p *process) assembleGateway() ([]task, error) {
	followed := &purge.Follower{Set: p.purges, View: p.member.View, Changed: p.member.Changed, Region: p.m.region, Nodes: p.peers, Told: p.drop, Logger: p.log}
	nodes := cluster.New(cluster.Config{
		Cluster: "sim", Region: p.m.region, Zone: p.m.zone, Peers: p.peers, Conns: p.peers, View: p.member, Upstream: lastResort{p.w.sums, p.source, followed.Heard},
		Pool: p.pool, Metrics: p.reg, Logger: p.log,
	})
	front, err := gateway.New(gateway.Config{
		Cache: nodes, Purges: p.purges, Sumdbs: []string{sumsName}, Region: p.m.region, Node: p.m.id, Memory: p.w.memory, Logger: p.log,
	})
	if err != nil {
		return nil, err
	}
	p.drops = append(p.drops, nodes.Drop, front.Drop)
	p.web = gateway.Server(front, p.log)
	return []task{nodes.Run, followed.Run, func(context.Context) error { return p.web.Serve(p.front.Listener()) }}, nil
}

// lastResort is what a gateway does when it reaches no node.
type lastResort struct {
	sums   *sums
	source *source
	heard  func() bool // what is purged
}

// Get implements cluster.Upstream.
func (l lastResort) Get(ctx context.Context, req cache.Request) (*cache.Object, error) {
	if !req.Target.Kind.Sumdb() && !l.heard() {
		return nil, &cache.Error{Reason: cache.Busy, Text: "no node has told what is purged"}
	}
	obj := &cache.Object{TTL: time.Minute, Source: cache.Upstream}
	if req.Target.Kind == target.Zip {
		resp, err := l.source.Fetch(ctx, req.Target, upstream.Validators{})
		if err != nil {
			return nil, err
		}
		obj.Size, obj.Body = resp.Size, resp.Body
		return obj, nil
	}
	data, err := l.small(ctx, req.Target)
	if err != nil {
		return nil, err
	}
	obj.Size, obj.Body = int64(len(data)), io.NopCloser(bytes.NewReader(data))
	return obj, nil
}

func (l lastResort) small(ctx context.Context, t target.Target) ([]byte, error) {
	if t.Kind.Sumdb() {
		return ask{l.sums, l.source}.Fetch(ctx, t)
	}
	resp, err := l.source.Fetch(ctx, t, upstream.Validators{})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil {
		err = verify.Form(t, data)
	}
	return data, err
}
