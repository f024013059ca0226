package member

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/ringmod/ringmod/internal/wire"
)

// ports are the gRPC services of a bubble, in memory.
type ports struct {
	t    *testing.T
	mu   sync.Mutex // guards what follows
	open map[string]*bufconn.Listener
}

func newPorts(t *testing.T) *ports {
	t.Helper()
	return &ports{t: t, open: make(map[string]*bufconn.Listener)}
}

// serve offers services at addr until the returned function is called.
func (p *ports) serve(addr string, register func(grpc.ServiceRegistrar), options ...grpc.ServerOption) (stop func()) {
	l := bufconn.Listen(1 << 16)
	p.mu.Lock()
	p.open[addr] = l
	p.mu.Unlock()
	server := grpc.NewServer(append(wire.ServerOptions(&wire.Pool{}), options...)...)
	register(server)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	stop = sync.OnceFunc(func() {
		p.mu.Lock()
		delete(p.open, addr)
		p.mu.Unlock()
		server.Stop()
		<-done
	})
	p.t.Cleanup(stop)
	return stop
}

// member offers a process's ClusterService at its address.
func (p *ports) member(m *proc) (stop func()) {
	return p.serve(m.Entry().Addr, func(r grpc.ServiceRegistrar) { Register(r, m.Membership) })
}

func (p *ports) dial(ctx context.Context, addr string) (net.Conn, error) {
	p.mu.Lock()
	l := p.open[addr]
	p.mu.Unlock()
	if l == nil {
		return nil, errors.New("connection refused")
	}
	return l.DialContext(ctx)
}

// follower is one that runs.
type follower struct {
	*Follower
	logs *logBuffer
}

func (p *ports) follow(edit func(*FollowerConfig), from ...string) *follower {
	p.t.Helper()
	f := &follower{logs: &logBuffer{}}
	cfg := FollowerConfig{Cluster: "test", From: from, Dial: p.dial, Logger: slog.New(slog.NewTextHandler(f.logs, nil))}
	if edit != nil {
		edit(&cfg)
	}
	var err error
	if f.Follower, err = NewFollower(cfg); err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(p.t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	p.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Error(err)
		}
		if p.t.Failed() {
			f.logs.mu.Lock()
			defer f.logs.mu.Unlock()
			p.t.Logf("log of the follower:\n%s", f.logs.b.String())
		}
	})
	return f
}

// up returns the ids that are up.
func (f *follower) up() string {
	var ids []string
	for _, s := range f.Members() {
		if s.Up {
			ids = append(ids, s.Entry.ID)
		}
	}
	return strings.Join(ids, " ")
}

func (f *follower) agrees(with *proc) bool { return f.View().Digest() == with.View().Digest() }

const firstAddr = "10.0.0.1:8082"
