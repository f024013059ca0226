package scrub_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/scrub"
	"github.com/ringmod/ringmod/node/store"
)

// world is everything around a scrubber: its disk, a node that stores there, other
// nodes, an upstream, a checksum database.
type world struct {
	t    *testing.T
	disk *disk

	mu        sync.Mutex
	peers     map[string]map[string][]byte // by node, by name
	upstream  map[string][]byte            // nil: none
	confirmed map[string]bool              // hashes; others are wrong
	database  error                        // why it cannot be asked
	fetched   []string                     // from upstream
	announced []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{t: t, disk: newDisk(t), peers: map[string]map[string][]byte{}}
}

// hash is the h1 of some bytes: those that begin alike have the same.
func hash(data []byte) string { return fmt.Sprintf("h1:%.4s", data) }

func (w *world) hold(node, name string, data []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.peers[node] == nil {
		w.peers[node] = map[string][]byte{}
	}
	w.peers[node][name] = data
}

func object(data []byte) *cache.Object {
	return &cache.Object{
		Size: int64(len(data)), SHA256: sha256.Sum256(data), H1: hash(data), Verified: true, Body: io.NopCloser(bytes.NewReader(data)),
	}
}

// peek is what other nodes give.
func (w *world) peek(t target.Target, wanted func([]byte) bool) (*cache.Object, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, node := range []string{"n2", "n3"} {
		if data, ok := w.peers[node][t.String()]; ok && wanted(data) {
			return object(data), nil
		}
	}
	return nil, &cache.Error{Reason: cache.NotCached}
}

func (w *world) Peek(_ context.Context, t target.Target) (*cache.Object, error) {
	return w.peek(t, func([]byte) bool { return true })
}

func (w *world) PeekSame(_ context.Context, t target.Target, sum [32]byte) (*cache.Object, error) {
	return w.peek(t, func(data []byte) bool { return sha256.Sum256(data) == sum })
}

// Take stores, as a node does. What is held stays.
func (w *world) Take(_ context.Context, t target.Target, obj *cache.Object) error {
	data, err := io.ReadAll(obj.Body)
	if _, held := w.disk.Stat(t.String()); held == nil || err != nil {
		return err
	}
	return w.disk.put(t.String(), data, store.Proof{H1: obj.H1, Verified: obj.Verified})
}

func (w *world) Replace(ctx context.Context, t target.Target, obj *cache.Object) error {
	confirmed, err := w.Vet(ctx, t, obj.H1)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(obj.Body)
	if err != nil {
		return err
	}
	return w.disk.put(t.String(), data, store.Proof{H1: obj.H1, Verified: confirmed})
}

func (w *world) Vet(_ context.Context, _ target.Target, h1 string) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.database != nil:
		return false, w.database
	case w.confirmed == nil || h1 == "":
		return false, nil
	case w.confirmed[h1]:
		return true, nil
	default:
		return false, &cache.Error{Reason: cache.Mismatch, Text: "the checksum database says otherwise"}
	}
}

// nodes are the others by their ids.
type nodes struct{ *world }

func (n nodes) Get(_ context.Context, id string, req cache.Request, _ wire.Options) (*cache.Object, error) {
	if req.Mode != cache.Peek {
		n.t.Errorf("%s is asked to do more than to look", id)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if data, ok := n.peers[id][req.Target.String()]; ok {
		return object(data), nil
	}
	return nil, &cache.Error{Reason: cache.NotCached}
}

// Get is a fill: from upstream, though a node has it, is what must not be.
func (w *world) Get(ctx context.Context, req cache.Request) (*cache.Object, error) {
	name := req.Target.String()
	if obj, err := w.Peek(ctx, req.Target); err == nil {
		if l, err := w.disk.Lost(name); err == nil && l.SHA256 == obj.SHA256 {
			w.t.Errorf("%s is fetched though another node has it", name)
		}
	}
	w.mu.Lock()
	data, ok := w.upstream[name]
	w.fetched = append(w.fetched, name)
	w.mu.Unlock()
	if !ok {
		return nil, &cache.Error{Reason: cache.NotCached, Text: "offline"}
	}
	_ = w.disk.put(name, data, store.Proof{H1: hash(data)}) // the caller has its bytes all the same
	return object(data), nil
}

// requests returns what was fetched from upstream.
func (w *world) requests() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.fetched)
}

func (w *world) announce(member, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.announced = append(w.announced, member+" "+name)
}

// run starts a scrubber, until the test of a bubble ends.
func (w *world) run(reg prometheus.Registerer) *scrub.Scrubber {
	s := scrub.New(scrub.Config{
		Disk: w.disk, Node: w, Copies: w, Nodes: nodes{w}, Announce: w.announce, Metrics: reg, Logger: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
	})
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			w.t.Error(err)
		}
	}()
	w.t.Cleanup(func() {
		cancel()
		<-done
	})
	return s
}

func (w *world) wantHeld(name string, want []byte) {
	w.t.Helper()
	w.disk.mu.Lock()
	defer w.disk.mu.Unlock()
	if got := w.disk.bytes[name]; !bytes.Equal(got, want) {
		w.t.Errorf("%s: %.20q, want %.20q", name, got, want)
	}
}

// soon waits for what has begun, but not for what is due in days.
func soon() {
	time.Sleep(time.Minute)
	synctest.Wait()
}
