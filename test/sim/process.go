package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/life"
	"github.com/ringmod/ringmod/node/member"
	"github.com/ringmod/ringmod/node/member/membertest"
	"github.com/ringmod/ringmod/node/purge"
	"github.com/ringmod/ringmod/node/scrub"
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
	handle              *handle               // of a node
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
	purges *purge.Set
	purger *purge.Keeper                  // of a node
	drops  []func(func(name string) bool) // who has what was purged in memory
	life   *life.Life
	scrub  *scrub.Scrubber
	web    *http.Server // of a gateway
	reg    *prometheus.Registry

	leave context.CancelFunc // ends membership
	end   context.CancelFunc // ends the rest
}

// boot makes and runs a process.
func (w *World) boot(m *machine) (*process, error) {
	p := &process{
		w: w, m: m, boot: int(m.boots.Load()), log: w.logger(m), pool: new(wire.Pool), reg: prometheus.NewRegistry(),
		dead: make(chan struct{}), down: make(chan struct{}), done: make(chan struct{}), ending: make(chan struct{}),
	}
	p.source = &source{out: w.out, id: m.id, boot: int(m.boots.Load()), host: m.host, dead: p.dead}
	if err := p.listen(); err != nil {
		return nil, err
	}
	file := purge.File(filepath.Join(m.disk.dir, "tombstones"))
	kept, err := file.Load(p.log)
	if err != nil {
		return nil, err
	}
	p.purges = purge.Restore(kept)
	if p.member, err = member.New(p.membership()); err != nil {
		return nil, err
	}
	p.sync = member.NewSyncer(p.member, func(id string) (grpc.ClientConnInterface, error) { return p.peers.Conn(id) }, p.log)
	p.peers = peers.New(peers.Config{
		Self: m.id, Region: m.region, View: p.member, Dial: p.data.Dial, Pool: p.pool, RTT: p.member.RTT,
		OnView: p.sync.Observe, Logger: p.log,
	})
	tasks, err := p.assemble(file, kept)
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
		Cluster: "sim", Spec: p.w.spec, Transport: p.gossip, Seeds: p.w.seeds(p.m), NewView: p.w.views.build, Tombstones: p.purges, Logger: p.log,
		Entry: ring.Member{ID: p.m.id, State: p.m.initial(), Role: p.m.role, Region: p.m.region, Zone: p.m.zone},
	}
	if p.m.node() {
		cfg.Entry.Addr = netip.AddrPortFrom(p.m.host, grpcPort).String()
		cfg.State = p.m.saved
	}
	return cfg
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
	m.disk.seal()
	p.cutOff()
	p.teardown()
}

// cutOff ends what a process can still do to others.
func (p *process) cutOff() {
	close(p.dead)
	for _, t := range p.transports() {
		_ = t.Shutdown()
	}
	if p.handle != nil {
		p.handle.close()
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
		p.end()
		select {
		case <-p.done:
		case <-time.After(drainTime): // it is frozen
		}
		p.cutOff()
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
	files, pending, spools := int64(0), int64(0), 0.0
	if p.handle != nil {
		files, pending = p.handle.files.Load(), p.handle.pending.Load()
	} else {
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
