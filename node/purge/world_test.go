package purge_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/purge"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/ring"
)

// world is a cluster of Keepers that talk gRPC in memory, in a bubble of virtual time.
type world struct {
	t   *testing.T
	dir string

	mu      sync.Mutex
	nodes   map[string]*keeper // those that run
	sides   map[string]int     // nodes of different ones do not reach each other
	view    *ring.View
	changed chan struct{}
}

// keeper is one life of a node.
type keeper struct {
	*purge.Keeper

	id    string
	world *world
	set   *purge.Set
	disk  *disk
	stop  func()
}

func newWorld(t *testing.T, ids ...string) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), nodes: map[string]*keeper{}, sides: map[string]int{}, changed: make(chan struct{})}
	var table ring.Members
	for _, id := range ids {
		m := ring.Member{
			ID: id, Epoch: 1, State: ring.Active, Role: ring.Node, Region: "r", Weight: 1, Addr: id, Spec: ring.DefaultSpec().Hash(),
		}
		if _, err := table.Put(m); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if w.view, err = ring.NewView(ring.DefaultSpec(), &table); err != nil {
		t.Fatal(err)
	}
	return w
}

// start begins a life of a node on a disk, with what its file has.
func (w *world) start(id string, d *disk, with ...func(*purge.Config)) *keeper {
	w.t.Helper()
	file := purge.File(filepath.Join(w.dir, id))
	log := slog.New(slog.NewTextHandler(w.t.Output(), nil)).With("node", id)
	kept, err := file.Load(log)
	if err != nil {
		w.t.Fatal(err)
	}
	k := &keeper{id: id, world: w, set: purge.Restore(kept), disk: d}
	d.begin(k.set)
	cfg := purge.Config{
		Self: id, Set: k.set, State: kept, File: file, View: func() *ring.View { return w.view }, Changed: w.change, Nodes: way{w, id}, Disk: d, Logger: log,
	}
	for _, each := range with {
		each(&cfg)
	}
	k.Keeper = purge.New(cfg)
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	node.RegisterPeer(server, node.PeerParts{Purger: k.Keeper})
	ctx, cancel := context.WithCancel(w.t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = k.Run(ctx) })
	running.Go(func() { _ = server.Serve(listener) })
	k.stop = sync.OnceFunc(func() {
		w.set(func() { delete(w.nodes, id) })
		cancel()
		server.Stop()
		running.Wait()
	})
	w.t.Cleanup(k.stop)
	d.listener = listener
	w.set(func() { w.nodes[id] = k })
	return k
}

// set changes what the nodes see of each other.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *world) change() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

// split puts nodes on a side.
func (w *world) split(side int, ids ...string) {
	w.set(func() {
		for _, id := range ids {
			w.sides[id] = side
		}
	})
}

// way is how one node reaches the others.
type way struct {
	*world

	from string
}

var errDown = errors.New("there is no way")

func (w way) Usable(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[id] != nil && w.sides[id] == w.sides[w.from]
}

// Conn is new for each call, which has to be made.
func (w way) Conn(id string) (grpc.ClientConnInterface, error) {
	conn, err := grpc.NewClient("passthrough:///"+id, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			if !w.Usable(id) {
				return nil, errDown
			}
			w.mu.Lock()
			to := w.nodes[id]
			w.mu.Unlock()
			return to.disk.listener.DialContext(ctx)
		}))
	if err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	return conn, nil
}

// disk outlives the processes of a node. It holds its users to what the real one demands.
type disk struct {
	*store.Mem

	t        *testing.T
	listener *bufconn.Listener

	mu    sync.Mutex
	set   *purge.Set
	names []string
	fails error
	slow  time.Duration
}

func newDisk(t *testing.T, names ...string) *disk {
	t.Helper()
	return &disk{Mem: store.NewMem(), t: t, names: names}
}

func (d *disk) begin(set *purge.Set) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.set = set
}

func (d *disk) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fails = err
}

func (d *disk) held() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.names)
}

func (d *disk) Purge(ctx context.Context, prefix string, match func(string) bool) (store.Purged, error) {
	d.mu.Lock()
	slow := d.slow
	d.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		return store.Purged{}, ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if prefix != "" && !d.set.Purged(prefix+"x") {
		d.t.Errorf("%q is removed before it is kept away", prefix)
	}
	before := len(d.names)
	d.names = slices.DeleteFunc(d.names, func(name string) bool { return d.fails == nil && strings.HasPrefix(name, prefix) && match(name) })
	return store.Purged{Objects: before - len(d.names)}, d.fails
}

func (d *disk) PurgeObject(ctx context.Context, name string) (store.Purged, error) {
	d.mu.Lock()
	if !d.set.Purged(name) {
		d.t.Errorf("%q is removed before it is kept away", name)
	}
	d.mu.Unlock()
	return store.Purged{}, d.drop(ctx, name)
}

func (d *disk) drop(_ context.Context, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fails == nil {
		d.names = slices.DeleteFunc(d.names, func(n string) bool { return n == name })
	}
	return d.fails
}
