package harness

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/node/verify"
)

// Stack is a gateway and a node in the test's own process, for tests that want
// the race detector, a dialer of their own or short timeouts.
type Stack struct {
	URL     string // base URL of the gateway
	Objects string // folder of the objects
	Node    *node.Node
	Disk    *store.Disk

	stop func()
}

// NewStack starts a gateway in front of a node with a disk store in dir, whose
// upstream client is made of cfg. The network is sealed unless cfg.Dial says
// otherwise.
func NewStack(t testing.TB, dir string, cfg upstream.Config) *Stack {
	t.Helper()
	if cfg.Dial == nil {
		cfg.Dial = upstreamtest.Dial
	}
	client, err := upstream.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	disk, err := store.OpenDisk(store.DiskConfig{Dir: dir, Inspect: node.NewInspector(verify.New(0)).Inspect, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	n := node.New(node.Config{Store: disk, Documents: disk, Upstream: client, Private: cfg.Private, Logger: log})
	front, err := gateway.New(gateway.Config{Cache: n, Via: "1.1 ringmod-test", Logger: log, Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewUnstartedServer(front)
	web.Config = gateway.Server(front, log)
	web.Start()
	s := &Stack{URL: web.URL, Objects: filepath.Join(dir, "objects"), Node: n, Disk: disk}
	s.stop = func() {
		web.Close()
		done, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		cancel()
		_ = n.Run(done, time.Second)
		_ = disk.Close()
	}
	t.Cleanup(s.Stop)
	return s
}

// Stop ends the stack; what was verified is stored when it returns.
func (s *Stack) Stop() {
	if s.stop != nil {
		s.stop()
		s.stop = nil
	}
}
