package node_test

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

// scriptedUpstream answers from memory, so that it works in a synctest bubble.
// What has no answer is 404; an error in fail wins over everything.
type scriptedUpstream struct {
	offline bool

	mu      sync.Mutex
	bodies  map[string][]byte
	etags   map[string]string
	fail    error
	delay   time.Duration
	fetched map[string]int
}

func newScripted(bodies map[string]string) *scriptedUpstream {
	s := &scriptedUpstream{bodies: map[string][]byte{}, etags: map[string]string{}, fetched: map[string]int{}}
	for name, body := range bodies {
		s.bodies[name] = []byte(body)
	}
	return s
}

func (s *scriptedUpstream) Offline() bool { return s.offline }

func (s *scriptedUpstream) Fetch(ctx context.Context, t target.Target, v upstream.Validators) (*upstream.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetched[t.String()]++
	if s.delay > 0 {
		s.mu.Unlock()
		select {
		case <-time.After(s.delay):
		case <-ctx.Done():
		}
		s.mu.Lock()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	if s.fail != nil {
		return nil, s.fail
	}
	body, ok := s.bodies[t.String()]
	if !ok {
		return nil, &cache.Error{Reason: cache.NotFound, Source: "scripted", Text: "404"}
	}
	resp := &upstream.Response{Source: "scripted", Size: int64(len(body)), Validators: upstream.Validators{ETag: s.etags[t.String()]}}
	if v.ETag != "" && v.ETag == resp.ETag {
		resp.NotModified = true
		resp.Body = io.NopCloser(bytes.NewReader(nil))
		return resp, nil
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

func (s *scriptedUpstream) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *scriptedUpstream) count(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fetched[name]
}

// newNode returns a node over a store in memory; the test stops it.
func newNode(t *testing.T, cfg node.Config) (*node.Node, *store.Mem) {
	t.Helper()
	mem := store.NewMem()
	cfg.Store, cfg.Documents = mem, mem
	n := node.New(cfg)
	t.Cleanup(func() { stopNode(n) })
	return n, mem
}

// stopNode ends a node and waits until what it verified is stored.
func stopNode(n *node.Node) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = n.Run(ctx, 0)
}

// loopbackClient is a real client that can reach nothing but loopback.
func loopbackClient(t *testing.T, list string) *upstream.Client {
	t.Helper()
	c, err := upstream.New(upstream.Config{List: list, Dial: upstreamtest.Dial})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustParse(t *testing.T, name string) target.Target {
	t.Helper()
	parsed, err := target.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func fileOf(t *testing.T, path, version string, kind target.Kind) target.Target {
	t.Helper()
	parsed, err := target.ForVersion(module.Version{Path: path, Version: version}, kind)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// read asks for name and returns the whole body with the object that carried it.
func read(ctx context.Context, n *node.Node, req cache.Request) ([]byte, *cache.Object, error) {
	obj, err := n.Get(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	defer obj.Body.Close()
	body, err := io.ReadAll(obj.Body)
	return body, obj, err
}

// isStored reports whether name is in the store.
func isStored(t *testing.T, mem *store.Mem, name string) bool {
	t.Helper()
	obj, err := mem.Open(t.Context(), name)
	if err != nil {
		return false
	}
	obj.File.Close()
	return true
}
