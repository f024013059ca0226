package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
)

// unreadable is a store whose files cannot be opened: another user's, or the
// process has no descriptor left.
type unreadable struct{ *store.Mem }

func (unreadable) Open(ctx context.Context, _ string) (*store.Object, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, errors.New("permission denied")
}

func TestCopyThatCannotBeRead(t *testing.T) {
	t.Parallel()
	const name = "example.com/m/@v/v1.0.0.info"
	const info = `{"Version":"v1.0.0"}`
	tests := []struct {
		name    string
		offline bool
		peers   bool
		mode    cache.Mode
		want    string
		reason  cache.Reason
	}{
		{name: "is fetched while upstream has it", want: info},
		{name: "is no absence for who may not fetch", mode: cache.OnlyIfCached, reason: cache.Internal},
		{name: "is no absence offline", offline: true, reason: cache.Internal},
		{name: "is no absence offline in a cluster", offline: true, peers: true, reason: cache.Internal},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			script := newScripted(map[string]string{name: info})
			script.offline = test.offline
			mem := store.NewMem()
			cfg := node.Config{Store: unreadable{mem}, Documents: mem, Upstream: script}
			if test.peers {
				cfg.Peers = newPeers(t, "self")
			}
			n := node.New(cfg)
			t.Cleanup(func() { stopNode(n) })
			body, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, name), Mode: test.mode})
			if test.want == "" && (err == nil || cache.ReasonOf(err) != test.reason) || test.want != "" && err != nil || string(body) != test.want {
				t.Errorf("got %q, %v, want %q or %v", body, err, test.want, test.reason)
			}
		})
	}
}

// TestCallerThatLeavesIsNoTroubleOfTheDisk keeps what every impatient client
// does out of the lines that wake somebody up.
func TestCallerThatLeavesIsNoTroubleOfTheDisk(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	mem := store.NewMem()
	n := node.New(node.Config{
		Store: unreadable{mem}, Documents: mem, Upstream: newScripted(nil), Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	t.Cleanup(func() { stopNode(n) })
	left, leave := context.WithCancel(t.Context())
	leave()
	if _, err := n.Get(left, cache.Request{Target: mustParse(t, "example.com/m/@v/v1.0.0.zip")}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the end of the context", err)
	}
	if strings.Contains(log.String(), "ERROR") {
		t.Errorf("got %s, want no error logged", &log)
	}
}

// hanging is a store on a disk that hangs from the second look for an object on.
type hanging struct {
	*store.Mem

	looks atomic.Int32
	hangs chan struct{} // closed when somebody waits
	well  chan struct{} // closed when the disk is well again
}

func (h *hanging) Open(ctx context.Context, name string) (*store.Object, error) {
	if h.looks.Add(1) == 2 {
		close(h.hangs)
		<-h.well
	}
	return h.Mem.Open(ctx, name)
}

// hungDocuments keep nothing: the disk hangs, and is found dead after a minute.
type hungDocuments struct {
	*store.Mem

	dead atomic.Bool
	well chan struct{} // closed when the disk is well again
}

func (h *hungDocuments) Document(name string) (store.Document, error) {
	if h.dead.Load() {
		return store.Document{}, store.ErrDead
	}
	return h.Mem.Document(name)
}

func (h *hungDocuments) PutDocument(string, store.Document) error {
	<-h.well
	return store.ErrReadOnly
}

// TestRefreshOnADiskThatHangs has a refresh that waits for the disk. Who waits for it is sent
// to another node once the disk is found dead, or gets what was known before, and who asks
// then gets what upstream says.
func TestRefreshOnADiskThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const fresh, old = "example.com/fresh/@v/list", "example.com/old/@v/list"
		disk := &hungDocuments{Mem: store.NewMem(), well: make(chan struct{})}
		if err := disk.Mem.PutDocument(old, store.Document{Body: []byte("v1.0.0\n"), Fetched: time.Now()}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		n := node.New(node.Config{Store: disk, Documents: disk, Upstream: newScripted(map[string]string{fresh: "v1.1.0\n", old: "v1.1.0\n"})})
		t.Cleanup(func() { stopNode(n) })
		t.Cleanup(func() { close(disk.well) })
		ask := func(name string) string {
			body, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, name), Mode: cache.Coordinate})
			if errors.Is(err, store.ErrDead) {
				return "dead"
			}
			return fmt.Sprint(string(body), err)
		}
		got := map[string]string{}
		var mu sync.Mutex
		for _, name := range []string{fresh, old} {
			go func() {
				answer := ask(name)
				mu.Lock()
				defer mu.Unlock()
				got[name] = answer
			}()
		}
		time.Sleep(time.Minute)
		disk.dead.Store(true)
		n.Abandon()
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if want := map[string]string{fresh: "dead", old: "v1.0.0\n<nil>"}; !maps.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if got, want := ask(fresh), "v1.1.0\n<nil>"; got != want {
			t.Errorf("afterwards: got %q, want %q", got, want)
		}
	})
}

// TestFillOnADiskThatHangs has a fill that waits for the disk. Who waits for the fill, and
// would for as long as the disk hangs, is sent to another node once the disk is found dead.
func TestFillOnADiskThatHangs(t *testing.T) {
	t.Parallel()
	const name = "example.com/m/@v/v1.0.0.info"
	disk := &hanging{Mem: store.NewMem(), hangs: make(chan struct{}), well: make(chan struct{})}
	n := node.New(node.Config{Store: disk, Documents: disk, Upstream: newScripted(map[string]string{name: `{"Version":"v1.0.0"}`})})
	t.Cleanup(func() { stopNode(n) })
	t.Cleanup(func() { close(disk.well) })
	answers := make(chan error)
	ask := func() {
		_, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, name)})
		answers <- err
	}
	go ask()
	<-disk.hangs
	go ask()
	eventually(t, "two who wait", func() bool { return n.Following(name) == 2 })
	n.Abandon()
	wait := func(want error) {
		t.Helper()
		select {
		case err := <-answers:
			if !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("a caller waits for a disk that hangs")
		}
	}
	wait(store.ErrDead)
	wait(store.ErrDead)
	go ask() // the disk is well again, though the fill that was ended does not know yet
	wait(nil)
}
