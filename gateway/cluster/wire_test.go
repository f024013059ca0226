package cluster_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/ringmod/ringmod/gateway"
	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/peers"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// wireNode is a node at the end of a connection. It holds one zip, or fills it.
type wireNode struct {
	ringmodv1.UnimplementedCacheServiceServer

	pool   *wire.Pool
	server *grpc.Server
	data   []byte

	mu     sync.Mutex
	fills  bool         // the digest is not known before the end
	killAt int64        // the process dies when that many bytes of the object are out; 0 = never
	killed *atomic.Bool // of those that share it one dies
	from   []int64
}

func (n *wireNode) Get(req *ringmodv1.GetRequest, stream grpc.ServerStreamingServer[ringmodv1.GetResponse]) error {
	n.mu.Lock()
	fills, killAt := n.fills && !req.GetWhole(), n.killAt
	away := req.GetMode() != ringmodv1.Mode_MODE_ALLOW_FILL && fills
	if !away {
		n.from = append(n.from, int64(req.GetOffset()))
	}
	n.mu.Unlock()
	if away {
		return wire.Status(&cache.Error{Reason: cache.NotCached})
	}
	sum := sha256.Sum256(n.data)
	header := &ringmodv1.Header{Size: new(uint64(len(n.data))), Source: ringmodv1.Source_SOURCE_UPSTREAM}
	if !fills {
		header.Sha256, header.Source = sum[:], ringmodv1.Source_SOURCE_DISK
		if want := req.GetWantSha256(); len(want) > 0 && !bytes.Equal(want, sum[:]) {
			return wire.Status(&cache.Error{Reason: cache.NotCached})
		}
	}
	if err := stream.Send(&ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Header{Header: header}}); err != nil {
		return err
	}
	for at := int64(req.GetOffset()); at < int64(len(n.data)); {
		end := min(at+wire.ChunkSize, int64(len(n.data)))
		if killAt > 0 && end > killAt && (n.killed == nil || !n.killed.Swap(true)) {
			go n.server.Stop()
			<-stream.Context().Done()
			return stream.Context().Err()
		}
		buf := n.pool.Get(int(end - at))
		copy(*buf, n.data[at:end])
		if err := wire.SendChunk(stream, n.pool, uint64(at), buf); err != nil {
			return err
		}
		at = end
	}
	trailer := &ringmodv1.Trailer{Size: uint64(len(n.data)), Sha256: sum[:]}
	return stream.Send(&ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Trailer{Trailer: trailer}})
}

// wireNodes are nodes that are asked as in production, but for the network.
type wireNodes struct {
	v         *ring.View
	nodes     map[string]*wireNode
	listeners map[string]*bufconn.Listener
}

func (w *wireNodes) View() *ring.View { return w.v }
func (w *wireNodes) Up(string) bool   { return true }

func (w *wireNodes) Member(id string) (ring.Member, bool) {
	i, ok := w.v.Find(id)
	if !ok {
		return ring.Member{}, false
	}
	return w.v.Member(i), true
}

func startNodes(t testing.TB, data []byte, ids ...string) (*wireNodes, *peers.Set) {
	t.Helper()
	var members []ring.Member
	for _, id := range ids {
		members = append(members, ring.Member{ID: id, Region: "eu", State: ring.Active, Role: ring.Node, Weight: 1, Addr: id + ":1"})
	}
	w := &wireNodes{v: viewOf(t, members...), nodes: map[string]*wireNode{}, listeners: map[string]*bufconn.Listener{}}
	for _, id := range ids {
		pool := new(wire.Pool)
		n := &wireNode{pool: pool, data: data, server: grpc.NewServer(wire.ServerOptions(pool)...)}
		ringmodv1.RegisterCacheServiceServer(n.server, n)
		l := bufconn.Listen(1 << 20)
		w.nodes[id], w.listeners[id+":1"] = n, l
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = n.server.Serve(l)
		}()
		t.Cleanup(func() {
			n.server.Stop()
			<-done
		})
	}
	set := peers.New(peers.Config{Region: "eu", View: w, Dial: func(ctx context.Context, addr string) (net.Conn, error) {
		l, ok := w.listeners[addr]
		if !ok {
			return nil, errors.New("no such address")
		}
		return l.DialContext(ctx)
	}})
	ctx, cancel := context.WithCancel(context.Background()) //nolint:usetesting // it has to outlive the test's own
	ended := make(chan error, 1)
	go func() { ended <- set.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return w, set
}

// TestKilledNode kills whoever sends a zip, at random points of it.
func TestKilledNode(t *testing.T) {
	t.Parallel()
	data := pattern(1<<20 + 12345)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 20 {
		at := 1 + random.Int64N(int64(len(data)))
		fills, limit := i%4 < 2, int64(i%2)-1
		t.Run(fmt.Sprintf("at %d, filling %t, spooled %t", at, fills, limit == 0), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w, set := startNodes(t, data, "n1", "n2", "n3")
				c := cluster.New(cluster.Config{Cluster: "test", Region: "eu", Peers: set, View: w, SpoolDir: t.TempDir(), SpoolLimit: limit})
				once := new(atomic.Bool)
				for _, n := range w.nodes {
					n.fills, n.killAt, n.killed = fills, at, once
				}
				got, _, err := get(t, c, request(t, zipName))
				if err != nil || !bytes.Equal(got, data) {
					t.Fatalf("got %d bytes, %v", len(got), err)
				}
				var from []int64
				for _, n := range w.nodes {
					from = append(from, n.from...)
				}
				slices.Sort(from)
				// What was on its way is lost. Where the digest is not known the second
				// begins anew.
				most := at
				if fills {
					most = 0
				}
				if len(from) != 2 || from[0] != 0 || from[1] > most || from[1]%wire.ChunkSize != 0 {
					t.Errorf("asked from %v, want 0 and a chunk up to %d", from, most)
				}
			})
		})
	}
}

// TestThroughGateway asks by HTTP, once with nothing spooled and once with
// everything.
func TestThroughGateway(t *testing.T) {
	t.Parallel()
	large, small := pattern(2<<20+1), pattern(100<<10)
	for name, data := range map[string][]byte{"large": large, "small": small} {
		etag := fmt.Sprintf(`"%x"`, sha256.Sum256(data))
		tests := []struct {
			name, method string
			header       []string
			status       int
			want         []byte // nil: not compared
		}{
			{"HEAD", "HEAD", nil, 200, []byte{}},
			{"known", "GET", []string{"If-None-Match", etag}, 304, []byte{}},
			{"unknown", "GET", []string{"If-None-Match", `"x"`}, 200, data},
			{"range", "GET", []string{"Range", "bytes=1000-70000"}, 206, data[1000:70001]},
			{"end", "GET", []string{"Range", "bytes=-77"}, 206, data[len(data)-77:]},
			{"two ranges", "GET", []string{"Range", "bytes=0-9,50000-50009"}, 206, nil},
			{"no such range", "GET", []string{"Range", "bytes=99999999-"}, 416, nil},
			{"all", "GET", nil, 200, data},
		}
		for _, spooled := range []bool{false, true} {
			w, set := startNodes(t, data, "n1")
			c := cluster.New(cluster.Config{Cluster: "test", Region: "eu", Peers: set, View: w, SpoolDir: t.TempDir()})
			g, err := gateway.New(gateway.Config{Cache: c, Memory: -1, Ready: c.Ready})
			if err != nil {
				t.Fatal(err)
			}
			server := httptest.NewServer(g)
			t.Cleanup(server.Close)
			if spooled {
				checkGet(t, c, request(t, zipName), data) // passed through
				checkGet(t, c, request(t, zipName), data)
			}
			for _, test := range tests {
				r, err := http.NewRequestWithContext(t.Context(), test.method, server.URL+"/"+zipName, nil)
				if err != nil {
					t.Fatal(err)
				}
				for i := 0; i < len(test.header); i += 2 {
					r.Header.Set(test.header[i], test.header[i+1])
				}
				resp, err := server.Client().Do(r)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != test.status || test.want != nil && !bytes.Equal(got, test.want) {
					t.Errorf("%s, spooled %t, %s: %d, %d bytes, %v, want %d and %d bytes", name, spooled, test.name, resp.StatusCode, len(got), err, test.status, len(test.want))
				}
				if test.status == 200 && (resp.Header.Get("Etag") != etag || resp.ContentLength != int64(len(data))) {
					t.Errorf("%s, spooled %t, %s: %v", name, spooled, test.name, resp.Header)
				}
				if test.name == "two ranges" && (!bytes.Contains(got, data[50000:50010]) || !strings.HasPrefix(resp.Header.Get("Content-Type"), "multipart/byteranges")) {
					t.Errorf("%s, spooled %t: got %q", name, spooled, got)
				}
			}
			if calls := len(w.nodes["n1"].from); spooled && name == "large" && calls != 2 {
				t.Errorf("the node was asked %d times beside the first two", calls-2)
			}
		}
	}
}

// A client sees a cut connection and not a short file where nobody is left to go
// on.
func TestCutThroughGateway(t *testing.T) {
	t.Parallel()
	data := pattern(4 << 20)
	w, set := startNodes(t, data, "n1")
	w.nodes["n1"].killAt = 3 << 20
	c := cluster.New(cluster.Config{Cluster: "test", Region: "eu", Peers: set, View: w, SpoolDir: t.TempDir()})
	g, err := gateway.New(gateway.Config{Cache: c})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	start := time.Now()
	resp, err := server.Client().Get(server.URL + "/" + zipName)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err == nil || !bytes.Equal(got, data[:len(got)]) || len(got) > 3<<20 {
		t.Errorf("got %d bytes, %v after %v", len(got), err, time.Since(start))
	}
	resp, err = server.Client().Get(server.URL + "/" + zipName)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || !strings.Contains(string(text), "no node of cluster test can") {
		t.Errorf("then: %d, %q, %v", resp.StatusCode, text, err)
	}
}
