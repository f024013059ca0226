package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
	"github.com/ringmod/ringmod/node/member"
	"github.com/ringmod/ringmod/node/member/membertest"
	"github.com/ringmod/ringmod/node/peer"
	"github.com/ringmod/ringmod/node/sumdb"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/verify"
	"github.com/ringmod/ringmod/ring"
)

// What cmd/ringmod grants a process that stops.
const (
	drainTime = 30 * time.Second
	fillGrace = 5 * time.Second
)

// process is one life of a member: what cmd/ringmod puts together, on a network and
// a disk in memory.
type process struct {
	w    *World
	m    *machine
	boot int
	log  *slog.Logger

	gossip, data, front *membertest.Transport // data is for gRPC, front a gateway's
	handle              *handle
	source              *source
	dead                chan struct{} // closed when nothing of it matters any more
	down                chan struct{} // closed when its addresses are free
	done                chan struct{} // closed when all of it has ended

	member *member.Membership
	sync   *member.Syncer
	peers  *peers.Set
	pool   *wire.Pool
	grpc   *grpc.Server // of a node
	health *health.Server
	ending chan struct{}
	node   *node.Node
	copies *copies.Keeper // of node
	web    *http.Server   // of a gateway
	reg    *prometheus.Registry

	leave context.CancelFunc // ends membership
	end   context.CancelFunc // ends the rest
}

// boot makes and runs a process.
func (w *World) boot(m *machine) (*process, error) {
	p := &process{
		w: w, m: m, boot: int(m.boots.Load()), log: w.logger(m), handle: &handle{disk: m.disk}, pool: new(wire.Pool), reg: prometheus.NewRegistry(),
		dead: make(chan struct{}), down: make(chan struct{}), done: make(chan struct{}), ending: make(chan struct{}),
	}
	p.source = &source{out: w.out, id: m.id, boot: int(m.boots.Load()), host: m.host, dead: p.dead}
	if err := p.listen(); err != nil {
		return nil, err
	}
	var err error
	if p.member, err = member.New(p.membership()); err != nil {
		return nil, err
	}
	p.sync = member.NewSyncer(p.member, func(id string) (grpc.ClientConnInterface, error) { return p.peers.Conn(id) }, p.log)
	p.peers = peers.New(peers.Config{
		Self: m.id, Region: m.region, View: p.member, Dial: p.data.Dial, Pool: p.pool, RTT: p.member.RTT,
		OnView: p.sync.Observe, Logger: p.log,
	})
	tasks, err := p.assemble()
	if err != nil {
		return nil, err
	}
	p.run(append(tasks, p.peers.Run, p.sync.Run))
	return p, nil
}

func (p *process) listen() (err error) {
	open := func(port uint16) *membertest.Transport {
		t, failure := p.w.net.Listen(netip.AddrPortFrom(p.m.host, port))
		err = errors.Join(err, failure)
		return t
	}
	p.gossip, p.data = open(gossipPort), open(grpcPort)
	if !p.m.node() {
		p.front = open(httpPort)
	}
	return err
}

func (p *process) membership() member.Config {
	cfg := member.Config{
		Cluster: "sim", Spec: p.w.spec, Transport: p.gossip, Seeds: p.w.seeds(), NewView: p.w.views.build, Logger: p.log,
		Entry: ring.Member{ID: p.m.id, State: ring.Active, Role: p.m.role, Region: p.m.region, Zone: p.m.zone},
	}
	if p.m.node() {
		cfg.Entry.Addr = netip.AddrPortFrom(p.m.host, grpcPort).String()
		cfg.State = p.m.saved
	}
	return cfg
}

// assemble builds the parts and returns what runs beside membership.
func (p *process) assemble() ([]task, error) {
	if p.m.node() {
		return p.assembleNode()
	}
	return p.assembleGateway()
}

func (p *process) assembleNode() ([]task, error) {
	p.copies = copies.New(copies.Config{
		Self: p.m.id, Region: p.m.region, View: p.member.View, Nodes: p.peers, Store: p.handle, Documents: p.handle,
		OnView: p.sync.Observe, Caller: p.w.caller, Logger: p.log,
	})
	writes := node.NewWriteBehind(p.copies.Store(), p.log)
	files := &node.ChecksumFiles{Store: p.handle, Documents: p.handle, Writes: writes}
	others := peer.New(peer.Config{Self: p.m.id, Region: p.m.region, View: p.member.View, Nodes: p.peers})
	db, err := sumdb.New(sumdb.Config{
		Spec: p.w.sums.spec, Remote: others.Copies(ask{p.w.sums, p.source}), Members: others.Lookups(),
		Storage: files, Heads: files, Logger: p.log,
	})
	if err != nil {
		return nil, err
	}
	p.node = node.New(node.Config{
		Store: p.copies.Store(), Documents: p.copies.Documents(), Upstream: p.source, Peers: others, Databases: []*sumdb.DB{db}, Writes: writes,
		Verifier: verify.New(1), Logger: p.log,
	})
	p.grpc = grpc.NewServer(append(wire.ServerOptions(p.pool), grpc.StreamInterceptor(p.listenIn))...)
	node.Register(p.grpc, node.ServiceConfig{
		Cache: p.node, Holder: p.node, Pool: p.pool, View: p.stamp, OnView: p.sync.Observe, Caller: p.w.caller, Ending: p.ending, Logger: p.log,
	})
	p.copies.Use(p.node)
	compared := antientropy.New(antientropy.Config{
		Self: p.m.id, Region: p.m.region, View: p.member.View, Changed: p.member.Changed, Nodes: p.peers, Store: p.handle, Pulls: p.copies,
		Hints: p.copies, OnView: p.sync.Observe, Caller: p.w.caller, Logger: p.log,
	})
	node.RegisterPeer(p.grpc, node.PeerParts{Announcer: p.copies, Comparer: compared})
	member.Register(p.grpc, p.member)
	p.health = health.NewServer()
	healthpb.RegisterHealthServer(p.grpc, p.health)
	return []task{p.copies.Run, compared.Run, func(context.Context) error { return p.grpc.Serve(p.data.Listener()) }}, nil
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
	nodes := cluster.New(cluster.Config{
		Cluster: "sim", Region: p.m.region, Zone: p.m.zone, Peers: p.peers, Conns: p.peers, View: p.member, Upstream: lastResort{p.w.sums, p.source},
		Pool: p.pool, Metrics: p.reg, Logger: p.log,
	})
	front, err := gateway.New(gateway.Config{
		Cache: nodes, Sumdbs: []string{sumsName}, Region: p.m.region, Node: p.m.id, Memory: p.w.memory, Logger: p.log,
	})
	if err != nil {
		return nil, err
	}
	p.web = gateway.Server(front, p.log)
	return []task{nodes.Run, func(context.Context) error { return p.web.Serve(p.front.Listener()) }}, nil
}

// lastResort is what a gateway does when it reaches no node.
type lastResort struct {
	sums   *sums
	source *source
}

// Get implements cluster.Upstream.
func (l lastResort) Get(ctx context.Context, req cache.Request) (*cache.Object, error) {
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
		return ask(l).Fetch(ctx, t)
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

// run starts everything. done is closed when all has ended.
func (p *process) run(tasks []task) {
	var all sync.WaitGroup
	begin := func(t task) (cancel context.CancelFunc) {
		ctx, cancel := context.WithCancel(p.w.t.Context())
		all.Go(func() {
			if err := t(ctx); err != nil && !errors.Is(err, http.ErrServerClosed) && !p.isDead() {
				p.log.ErrorContext(ctx, "a part of the process ended", "err", err)
			}
		})
		return cancel
	}
	p.leave = begin(p.member.Run)
	var ends []context.CancelFunc
	for _, t := range tasks {
		ends = append(ends, begin(t))
	}
	p.end = func() {
		for _, end := range ends {
			end()
		}
	}
	go func() {
		all.Wait()
		close(p.done)
	}()
}

func (p *process) isDead() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

// kill ends a process as kill -9 does: its connections break, nobody hears a word,
// and what it has not stored is gone.
func (w *World) kill(m *machine) {
	p := w.unplug(m)
	p.cutOff()
	p.teardown()
}

// cutOff ends what a process can still do to others.
func (p *process) cutOff() {
	close(p.dead)
	p.handle.kill()
	for _, t := range p.transports() {
		_ = t.Shutdown()
	}
	close(p.down)
}

// crash ends a process as the loss of power does: not even its connections break.
func (w *World) crash(m *machine) {
	m.off = true
	w.redraw()
	w.kill(m)
}

// unplug takes the process off its machine.
func (w *World) unplug(m *machine) *process {
	w.t.Helper()
	p := m.running
	if p == nil {
		w.t.Fatalf("%s does not run", m.id)
	}
	m.running = nil
	m.ended = append(m.ended, p)
	w.book.observe(1)
	return p
}

func (p *process) transports() []*membertest.Transport {
	all := []*membertest.Transport{p.gossip, p.data}
	if p.front != nil {
		all = append(all, p.front)
	}
	return all
}

// teardown ends what is left of a dead process; nobody waits for it.
func (p *process) teardown() {
	p.leave()
	p.end()
	now, cancel := context.WithCancel(context.Background())
	cancel()
	if p.grpc != nil {
		go p.grpc.Stop()
		go func() { _ = p.node.Run(now, 0) }()
	}
	if p.web != nil {
		_ = p.web.Close()
	}
}

// stop ends a process as SIGTERM does. It does not wait for its end.
func (w *World) stop(m *machine) {
	p := w.unplug(m)
	go func() {
		w.drain(p)
		p.cutOff()
		p.end()
	}()
}

// drain is what cmd/ringmod does: the others hear that it goes, no new connections,
// the streams that run, the fills that run.
func (w *World) drain(p *process) {
	p.leave()
	ctx, cancel := context.WithTimeout(w.t.Context(), drainTime)
	defer cancel()
	if p.web != nil {
		if err := p.web.Shutdown(ctx); err != nil {
			_ = p.web.Close()
		}
		return
	}
	p.health.Shutdown()
	close(p.ending)
	hasten := context.AfterFunc(ctx, p.grpc.Stop)
	defer hasten()
	now, cancelNow := context.WithCancel(ctx)
	cancelNow()
	var ending sync.WaitGroup
	ending.Go(func() { _ = p.node.Run(now, fillGrace) })
	p.grpc.GracefulStop()
	ending.Wait()
}

// leaks tells what an ended process has left open (I11).
func (p *process) leaks() []string {
	files, pending := p.handle.leaks()
	spools := 0.0
	if !p.m.node() {
		spools = p.metric("ringmod_cluster_spool_bytes") + p.metric("ringmod_cluster_spools")
	}
	if files == 0 && pending == 0 && spools == 0 {
		return nil
	}
	return []string{fmt.Sprintf("I11 %s (boot %d) left %d files, %d pending objects and spools (%.0f) open",
		p.m.id, p.boot, files, pending, spools)}
}

// metric returns the value of a gauge, -1 where there is none.
func (p *process) metric(name string) float64 {
	families, err := p.reg.Gather()
	if err != nil {
		return -1
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return -1
}
