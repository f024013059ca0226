package peer_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/copies"
	"github.com/ringmod/ringmod/node/peer"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/ring"
)

// world is an upstream and the nodes of a cluster, each with gRPC over memory and
// the view that a test gives it.
type world struct {
	t  testing.TB
	up *origin

	copies *copies.Config // what keepers of copies have in common; nil = there are none

	mu    sync.Mutex
	nodes map[string]*process
	disks map[string]*store.Mem
}

// process is one node of a world.
type process struct {
	*node.Node

	keeper *copies.Keeper
	end    func() // ends the keeper

	mem      *store.Mem
	listener *bufconn.Listener
	server   *grpc.Server
}

func newWorld(t testing.TB, files map[string][]byte) *world {
	t.Helper()
	return &world{t: t, up: &origin{files: files, fetched: map[string]int{}}, nodes: map[string]*process{}, disks: map[string]*store.Mem{}}
}

// fixed is a view that does not change.
type fixed struct{ view *ring.View }

func (f fixed) View() *ring.View { return f.view }
func (f fixed) Up(string) bool   { return true }

func (f fixed) Member(id string) (ring.Member, bool) {
	i, ok := f.view.Find(id)
	if !ok {
		return ring.Member{}, false
	}
	return f.view.Member(i), true
}

// set returns connections for a member that sees view.
func (w *world) set(self string, view *ring.View) *peers.Set {
	region, _, _ := strings.Cut(self, "-")
	set := peers.New(peers.Config{Self: self, Region: region, View: fixed{view}, Dial: w.dial})
	w.t.Cleanup(w.background(set.Run))
	return set
}

func (w *world) dial(ctx context.Context, addr string) (net.Conn, error) {
	w.mu.Lock()
	m := w.nodes[addr]
	w.mu.Unlock()
	if m == nil {
		return nil, fmt.Errorf("nobody listens at %s", addr)
	}
	return m.listener.DialContext(ctx)
}

// start runs a node that sees view, on the disk that it has had before. change
// completes its configuration; nil for nothing.
func (w *world) start(id string, view *ring.View, change func(*node.Config)) {
	w.t.Helper()
	region, _, _ := strings.Cut(id, "-")
	mem := w.disk(id)
	cfg := node.Config{Store: mem, Documents: mem, Upstream: w.up}
	set := w.set(id, view)
	cfg.Peers = peer.New(peer.Config{Self: id, Region: region, View: fixed{view}.View, Nodes: set})
	pool := new(wire.Pool)
	m := &process{mem: mem, listener: bufconn.Listen(1 << 20), server: grpc.NewServer(wire.ServerOptions(pool)...), end: func() {}}
	if w.copies != nil {
		own := *w.copies
		own.Self, own.Region, own.View, own.Nodes, own.Store, own.Documents = id, region, fixed{view}.View, set, mem, mem
		if own.Dir != "" {
			own.Dir = filepath.Join(own.Dir, id)
		}
		m.keeper = copies.New(own)
		cfg.Store, cfg.Documents = m.keeper.Store(), m.keeper.Documents()
	}
	if change != nil {
		change(&cfg)
	}
	m.Node = node.New(cfg)
	if m.keeper != nil {
		m.keeper.Use(m.Node)
		node.RegisterPeer(m.server, node.PeerParts{Announcer: m.keeper})
		m.end = w.background(m.keeper.Run)
	}
	node.Register(m.server, node.ServiceConfig{Cache: m, Holder: m, Pool: pool})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = m.server.Serve(m.listener)
	}()
	w.t.Cleanup(func() {
		m.server.Stop()
		<-done
		w.stop(m)
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[id] = m
}

// disk returns what outlives the processes of a node.
func (w *world) disk(id string) *store.Mem {
	if w.disks[id] == nil {
		w.disks[id] = store.NewMem()
	}
	return w.disks[id]
}

// background runs a task until the function that it returns is called.
func (w *world) background(run func(context.Context) error) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

func (w *world) stop(m *process) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = m.Run(ctx, 0)
	m.end()
}

// kill ends a node as kill -9 does: what it has begun with upstream ends, too.
func (w *world) kill(id string) {
	w.mu.Lock()
	m := w.nodes[id]
	delete(w.nodes, id)
	w.mu.Unlock()
	_ = m.listener.Close()
	m.server.Stop()
	w.stop(m)
}

// ask asks a node with leave to fill, over the wire, and compares.
func (w *world) ask(set *peers.Set, id, name string) {
	w.t.Helper()
	got, err := fetch(w.t.Context(), set, id, parse(w.t, name))
	if err != nil || !bytes.Equal(got, w.up.files[name]) {
		w.t.Errorf("%s from %s: %d bytes, %v, want %d", name, id, len(got), err, len(w.up.files[name]))
	}
}

func fetch(ctx context.Context, set *peers.Set, id string, t target.Target) ([]byte, error) {
	obj, err := set.Get(ctx, id, cache.Request{Target: t}, wire.Options{})
	if err != nil {
		return nil, err
	}
	defer obj.Body.Close()
	return io.ReadAll(obj.Body)
}

// origin is an upstream that counts. It sends 64 KiB in each pause.
type origin struct {
	files map[string][]byte
	pause time.Duration

	mu      sync.Mutex
	fetched map[string]int
}

func (*origin) Offline() bool { return false }

func (o *origin) Fetch(ctx context.Context, t target.Target, _ upstream.Validators) (*upstream.Response, error) {
	o.mu.Lock()
	o.fetched[t.String()]++
	o.mu.Unlock()
	if err := wait(ctx, o.pause); err != nil {
		return nil, &cache.Error{Reason: cache.Slow, Source: "origin", Err: err}
	}
	data, ok := o.files[t.String()]
	if !ok {
		return nil, &cache.Error{Reason: cache.NotFound, Source: "origin", Text: "404"}
	}
	size := int64(len(data))
	if rand.IntN(2) == 0 {
		size = -1
	}
	return &upstream.Response{Source: "origin", Size: size, Body: io.NopCloser(&dripping{ctx, o.pause, bytes.NewReader(data)})}, nil
}

func (o *origin) count(name string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.fetched[name]
}

type dripping struct {
	ctx   context.Context //nolint:containedctx // of the fetch
	pause time.Duration
	data  io.Reader
}

func (d *dripping) Read(p []byte) (int, error) {
	if err := wait(d.ctx, d.pause); err != nil {
		return 0, &cache.Error{Reason: cache.Slow, Source: "origin", Err: err}
	}
	return d.data.Read(p[:min(len(p), 64<<10)])
}

// offline is an upstream that there is not.
type offline struct{ *origin }

func (offline) Offline() bool { return true }

// filesOf returns the files of n modules, whose zips are larger than pad, by
// target.
func filesOf(t testing.TB, n int, pad int64) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for i := range n {
		m := upstreamtest.Module{Path: fmt.Sprintf("example.com/m%d", i), Version: "v1.0.0", Pad: pad}
		for _, ext := range []string{".info", ".mod", ".zip"} {
			data, err := m.File(ext)
			if err != nil {
				t.Fatal(err)
			}
			files[m.Path+"/@v/v1.0.0"+ext] = data
		}
		files[m.Path+"/@v/list"] = []byte("v1.0.0\n")
	}
	return files
}

// members returns n active nodes in each of the regions.
func members(n int, regions ...string) []ring.Member {
	var all []ring.Member
	for _, region := range regions {
		for i := range n {
			all = append(all, member(fmt.Sprintf("%s-%d", region, i+1), ring.Active))
		}
	}
	return all
}
