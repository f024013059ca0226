package peers_test

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/test/bufconn"

	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// node is a node at an address of a network.
type node struct {
	ringmodv1.UnimplementedCacheServiceServer

	get    atomic.Pointer[getFunc]
	small  func(smallStream) error // nil = the node has no lanes
	health *health.Server
	asked  atomic.Int64 // calls of Get
	checks atomic.Int64 // calls of other services
	server *grpc.Server
	dials  atomic.Int64

	mu      sync.Mutex
	open    map[*serverConn]bool
	thawed  chan struct{}   // closed while the node runs
	streams []*atomic.Int64 // of each connection, in the order of their coming
}

// Get implements CacheServiceServer.
func (n *node) Get(req *ringmodv1.GetRequest, stream getStream) error {
	n.asked.Add(1)
	return (*n.get.Load())(req, stream)
}

// GetSmall implements CacheServiceServer.
func (n *node) GetSmall(stream smallStream) error {
	if n.small == nil {
		return n.UnimplementedCacheServiceServer.GetSmall(stream)
	}
	return n.small(stream)
}

func (n *node) answer(get getFunc) { n.get.Store(&get) }

// freeze stops the process, as SIGSTOP does: the kernel takes bytes for it, and it
// reads none.
func (n *node) freeze() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.thawed = make(chan struct{})
}

func (n *node) thaw() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.thawed)
}

// hangUp closes all connections.
func (n *node) hangUp() {
	n.mu.Lock()
	open := slices.Collect(maps.Keys(n.open))
	n.mu.Unlock()
	for _, c := range open {
		c.Close()
	}
}

func (n *node) conns() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.open)
}

func (n *node) running() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.thawed
}

// perConn returns how many calls run on each connection.
func (n *node) perConn() []int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	var counts []int64
	for _, c := range n.streams {
		counts = append(counts, c.Load())
	}
	return counts
}

// counter is the stats.Handler behind perConn.
type counter struct{ *node }

type connKey struct{}

func (c counter) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	streams := new(atomic.Int64)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streams = append(c.streams, streams)
	return context.WithValue(ctx, connKey{}, streams)
}

func (c counter) HandleConn(context.Context, stats.ConnStats) {}

func (c counter) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	if info.FullMethodName != ringmodv1.CacheService_Get_FullMethodName {
		c.checks.Add(1)
	}
	return ctx
}

func (c counter) HandleRPC(ctx context.Context, s stats.RPCStats) {
	streams := ctx.Value(connKey{}).(*atomic.Int64)
	switch s.(type) {
	case *stats.Begin:
		streams.Add(1)
	case *stats.End:
		streams.Add(-1)
	}
}

// serverConn is a connection of a node.
type serverConn struct {
	net.Conn

	node   *node
	closed chan struct{}
	once   sync.Once
}

func (c *serverConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	select {
	case <-c.node.running():
	case <-c.closed:
	}
	return n, err
}

func (c *serverConn) Write(p []byte) (int, error) {
	select {
	case <-c.node.running():
	case <-c.closed:
	}
	return c.Conn.Write(p)
}

func (c *serverConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.node.mu.Lock()
		defer c.node.mu.Unlock()
		delete(c.node.open, c)
	})
	return c.Conn.Close()
}

type listener struct {
	*bufconn.Listener

	node *node
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	sc := &serverConn{Conn: c, node: l.node, closed: make(chan struct{})}
	l.node.mu.Lock()
	defer l.node.mu.Unlock()
	l.node.open[sc] = true
	return sc, nil
}

// network is nodes by their addresses.
type network struct {
	mu        sync.Mutex
	listeners map[string]listener
	refusing  bool // new connections
	bare      bool // nodes have no health service
}

func (w *network) refuse(refusing bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refusing = refusing
}

var errRefused = errors.New("connection refused")

func (w *network) dial(ctx context.Context, addr string) (net.Conn, error) {
	w.mu.Lock()
	l, ok := w.listeners[addr]
	refusing := w.refusing
	w.mu.Unlock()
	if !ok || refusing {
		return nil, errRefused
	}
	l.node.dials.Add(1)
	return l.DialContext(ctx)
}

// newNode returns a node that is yet to be served.
func newNode(get getFunc, healthy bool) *node {
	n := &node{health: health.NewServer(), open: map[*serverConn]bool{}, thawed: make(chan struct{})}
	close(n.thawed)
	n.answer(get)
	n.server = grpc.NewServer(append(wire.ServerOptions(new(wire.Pool)), grpc.StatsHandler(counter{n}))...)
	ringmodv1.RegisterCacheServiceServer(n.server, n)
	if healthy {
		healthpb.RegisterHealthServer(n.server, n.health)
	}
	return n
}

// start runs a node at addr until the test ends.
func (w *network) start(t *testing.T, addr string, get getFunc) *node {
	t.Helper()
	n := newNode(get, !w.bare)
	l := listener{bufconn.Listen(1 << 20), n}
	w.mu.Lock()
	if w.listeners == nil {
		w.listeners = map[string]listener{}
	}
	w.listeners[addr] = l
	w.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = n.server.Serve(l)
	}()
	t.Cleanup(func() {
		n.server.Stop()
		<-done
	})
	return n
}
