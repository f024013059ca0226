package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"
)

// startNaive runs one half of the naive pair in this process and returns its
// address.
func startNaive(t *testing.T, args ...string) string {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background()) //nolint:usetesting // ends in Cleanup, whichever half is first
	log := newTail()
	ended := make(chan error, 1)
	go func() {
		_, err := naive(ctx, args, log)
		ended <- err
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", args[0], err)
		}
	})
	deadline := time.Now().Add(10 * time.Second)
	for log.readyAddrs() == nil {
		if time.Now().After(deadline) {
			t.Fatalf("%s is not ready", args[0])
		}
		time.Sleep(time.Millisecond)
	}
	for _, addr := range log.readyAddrs() {
		return addr
	}
	return ""
}

func TestNaivePair(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := map[string][]byte{
		"empty": {}, "small": []byte("v1.0.0\n"), "even": bytes.Repeat([]byte("ab"), naiveChunk), "odd": bytes.Repeat([]byte("x"), 5*naiveChunk+7),
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	addr := startNaive(t, naiveGatewayName, startNaive(t, naiveNodeName, dir))
	for name, want := range files {
		if got, err := fetch(t.Context(), addr, "/"+name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %d bytes, %v; want %d", name, len(got), err, len(want))
		}
	}
	for _, name := range []string{"/none", "/../none", "/"} {
		if got, err := fetch(t.Context(), addr, name); err == nil {
			t.Errorf("%s: got %d bytes, want an error", name, len(got))
		}
	}
	if rate, err := stream(t.Context(), addr, newTour("/odd", "/even"), 2, 100*time.Millisecond); err != nil || rate <= 0 {
		t.Errorf("got %v bytes a second, %v", rate, err)
	}
}

func TestNaiveCommands(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {naiveNodeName}, {"-rows", "warm"}, {naiveGatewayName, "a", "b"}} {
		if ok, err := naive(t.Context(), args, t.Output()); ok || err != nil {
			t.Errorf("%q: got %v, %v; want what is for the benchmark", args, ok, err)
		}
	}
	if status := run(t.Context(), []string{naiveNodeName, filepath.Join(t.TempDir(), "none")}, t.Output(), t.Output()); status != 1 {
		t.Errorf("a folder that is not there: got status %d, want 1", status)
	}
}

func TestTour(t *testing.T) {
	t.Parallel()
	over, once := newTour("/a", "/b", "/c"), newLap("/a", "/b", "/c")
	for i, want := range []string{"/a", "/b", "/c", "/a", "/b"} {
		if got, ok := over.next(); got != want || !ok {
			t.Errorf("over and over, %d: got %q, %v; want %q", i, got, ok, want)
		}
		if got, ok := once.next(); ok != (i < 3) || ok && got != want {
			t.Errorf("once, %d: got %q, %v; want %q up to the third", i, got, ok, want)
		}
	}
	if over.skip(5); over.start() != 1 {
		t.Errorf("after 10 of 3: got %d as the next, want 1", over.start())
	}
	if got := once.at.Load(); got != 3 {
		t.Errorf("got %d asked for, want 3", got)
	}
}

// pathLog is a server that notes what it is asked for.
type pathLog struct {
	*httptest.Server

	mu    sync.Mutex
	paths []string
}

func newPathLog(t *testing.T) *pathLog {
	t.Helper()
	l := &pathLog{}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.paths = append(l.paths, r.URL.Path)
		w.Write([]byte("ok"))
	}))
	t.Cleanup(l.Close)
	return l
}

func (l *pathLog) asked() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.paths)
}

func TestVisitAsksForEachOnce(t *testing.T) {
	t.Parallel()
	l := newPathLog(t)
	want := []string{"/a", "/b", "/c", "/d", "/e"}
	if err := visit(t.Context(), l.Listener.Addr().String(), want, 3); err != nil {
		t.Fatal(err)
	}
	if got := l.asked(); !slices.Equal(slices.Sorted(slices.Values(got)), want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The tour of wrk goes on where the one before has ended.
func TestWrkFollowsATour(t *testing.T) {
	t.Parallel()
	wrk, err := exec.LookPath("wrk")
	if err != nil {
		t.Skip("wrk is not installed")
	}
	l := newPathLog(t)
	b := &bench{dir: t.TempDir(), wrk: wrk}
	var paths []string
	for i := range 200_000 {
		paths = append(paths, fmt.Sprintf("/%06d", i))
	}
	tour := newTour(paths...)
	const start = 199_990 // so that it comes round
	tour.skip(start)
	got, err := b.load(t.Context(), l.Listener.Addr().String(), tour, time.Second)
	if err != nil || got.requests == 0 {
		t.Fatalf("got %+v, %v; want a load", got, err)
	}
	if at := tour.at.Load(); at != int64(start+got.requests) {
		t.Errorf("%d requests after %d: the tour is at %d", got.requests, start, at)
	}
	seen := map[string]bool{}
	for _, path := range l.asked() {
		seen[path] = true
	}
	for i := range got.requests - loadConns { // these may still be on their way when it ends
		if path := paths[(start+i)%len(paths)]; !seen[path] {
			t.Fatalf("of %d requests none was for %s, the %d. of them", got.requests, path, i)
		}
	}
	if most := got.requests + loadConns; len(seen) > most {
		t.Errorf("got %d different paths, want at most %d", len(seen), most)
	}
}

func TestTrickleKeepsItsPace(t *testing.T) {
	t.Parallel()
	s := serveBodies(t, 64<<20)
	const limit, clients = 1 << 20, 3
	rate, err := trickle(t.Context(), s.Listener.Addr().String(), newTour("/plain"), clients, limit, 500*time.Millisecond)
	// What is received at once, up to 1 MB, may go beyond.
	if most := float64(clients * (limit + 2<<20)); err != nil || rate <= 0 || rate > most {
		t.Errorf("got %v bytes a second, %v; want at most %v", rate, err, most)
	}
}

func TestSumMetric(t *testing.T) {
	t.Parallel()
	const text = `# HELP ringmod_peer_requests_total Objects asked of peers
# TYPE ringmod_peer_requests_total counter
ringmod_peer_requests_total{result="ok"} 1.5e+03
ringmod_peer_requests_total{result="not cached"} 7
ringmod_peer_requests_total_created{result="ok"} 1e9
other_ringmod_peer_requests_total 5
plain 3
bad{a="b"} x
`
	tests := []struct {
		name string
		want float64
		ok   bool
	}{{"ringmod_peer_requests_total", 1507, true}, {"plain", 3, true}, {"none", 0, true}, {"bad", 0, false}}
	for _, tt := range tests {
		if got, err := sumMetric(text, tt.name); got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%s: got %v, %v; want %v", tt.name, got, err, tt.want)
		}
	}
}

func TestTrafficCheck(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name                    string
		way                     traffic
		asked, requests, atOnce int
		ok                      bool
	}{
		{"all from the node", fromNode, 1000, 1000, 8, true},
		{"but for those that run", fromNode, 992, 1000, 8, true},
		{"a tenth was kept", fromNode, 900, 1000, 8, false},
		{"none from the node", kept, 0, 1000, 8, true},
		{"a tenth from the node", kept, 100, 1000, 8, false},
		{"it does not matter", anyway, 0, 1000, 8, true},
	}
	for _, tt := range tests {
		if err := tt.way.check(tt.asked, tt.requests, tt.atOnce); (err == nil) != tt.ok {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}
}

func TestMeteredCatchesOtherTraffic(t *testing.T) {
	t.Parallel()
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("ringmod_peer_requests_total 5\n")) // it never asks
	}))
	t.Cleanup(admin.Close)
	p, err := spawn(t.Context(), "sleep", "60")
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	p.ready = map[string]string{"admin": admin.Listener.Addr().String()}
	tour := newTour("/a")
	f := func() error { tour.skip(1000); return nil }
	for way, ok := range map[traffic]bool{fromNode: false, kept: true} {
		if _, err := (side{name: clusterPair, proc: p}).metered(t.Context(), tour, way, 1, f); (err == nil) != ok {
			t.Errorf("traffic %d: got %v", way, err)
		}
	}
	want := errors.New("broken")
	if _, err := (side{name: naivePair, proc: p}).metered(t.Context(), tour, fromNode, 1, func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

// The node adopts only what is right, so that a mistake here would end the row.
func TestStock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	zips, err := stockZipsOf(dir, 3, 2<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i, path := range zips {
		m := module.Version{Path: "bench.example/large", Version: stockVersion(i)}
		if _, err := modzip.CheckZip(m, filepath.Join(dir, path)); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if err := modzip.Unzip(t.TempDir(), m, filepath.Join(dir, path)); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	infos, err := stockInfosOf(dir, 2)
	if err != nil || len(infos) != 2 {
		t.Fatalf("got %q, %v", infos, err)
	}
	var info struct{ Version string }
	text, err := os.ReadFile(filepath.Join(dir, infos[1]))
	if err == nil {
		err = json.Unmarshal(text, &info)
	}
	if want := stockVersion(1); err != nil || info.Version != want || !strings.HasSuffix(infos[1], "/"+want+".info") {
		t.Errorf("got %s with %q, %v; want version %s", infos[1], text, err, want)
	}
}

func TestGatewayThatNeverKnowsANode(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tr := &troupe{bench: &bench{options: options{ringmod: "/bin/false"}}}
	tr.ours.node = &process{ready: map[string]string{"gossip": l.Addr().String()}}
	if p, err := tr.newGateway(t.Context()); err == nil {
		p.stop()
		t.Error("got no error")
	}
}
