package node_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

const (
	modPath = "example.com/m"
	modVers = "v1.0.0"
)

func oneModule(pad int64) upstreamtest.Module {
	return upstreamtest.Module{Path: modPath, Version: modVers, Pad: pad}
}

// eventually polls until ok or fails the test after a deadline that only a
// broken program reaches.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestOneFetchForManyCallers(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t, oneModule(1<<20))
	n, mem := newNode(t, node.Config{Upstream: loopbackClient(t, fake.URL)})
	zip := fileOf(t, modPath, modVers, target.Zip)
	want := fake.Zip(modPath, modVers)
	var callers sync.WaitGroup
	for range 200 {
		callers.Go(func() {
			got, _, err := read(t.Context(), n, cache.Request{Target: zip})
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("read %d bytes, %v, want the %d of upstream", len(got), err, len(want))
			}
		})
	}
	callers.Wait()
	if got := fake.Count(".zip"); got != 1 {
		t.Errorf("upstream zip requests = %d, want 1", got)
	}
	stopNode(n)
	if !isStored(t, mem, zip.String()) {
		t.Error("the zip is not stored")
	}
}

func TestModNeverFetchesZip(t *testing.T) {
	t.Parallel()
	var mods []upstreamtest.Module
	for i := range 300 {
		mods = append(mods, upstreamtest.Module{Path: fmt.Sprintf("example.com/m%d", i), Version: modVers})
	}
	fake := upstreamtest.New(t, mods...)
	n, _ := newNode(t, node.Config{Upstream: loopbackClient(t, fake.URL)})
	for _, m := range mods {
		for _, kind := range []target.Kind{target.Mod, target.Info} {
			if _, _, err := read(t.Context(), n, cache.Request{Target: fileOf(t, m.Path, m.Version, kind)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := fake.Count(".zip"); got != 0 {
		t.Errorf("upstream zip requests = %d, want 0", got)
	}
	if got := fake.Count(".mod"); got != len(mods) {
		t.Errorf("upstream .mod requests = %d, want %d", got, len(mods))
	}
}

func TestFirstCallerLeaves(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t, oneModule(0))
	release := make(chan struct{})
	fake.Fault(".zip", upstreamtest.Fault{Block: release})
	n, _ := newNode(t, node.Config{Upstream: loopbackClient(t, fake.URL)})
	req := cache.Request{Target: fileOf(t, modPath, modVers, target.Zip)}

	first, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, _, err := read(first, n, req)
		left <- err
	}()
	eventually(t, "the upstream is asked", func() bool { return fake.Count(".zip") == 1 })
	second := make(chan []byte, 1)
	go func() {
		body, _, _ := read(t.Context(), n, req)
		second <- body
	}()
	leave()
	if err := <-left; err == nil {
		t.Error("the caller that left got an answer")
	}
	close(release)
	if got, want := <-second, fake.Zip(modPath, modVers); !bytes.Equal(got, want) {
		t.Errorf("the second caller got %d bytes, want %d", len(got), len(want))
	}
	if got := fake.Count(".zip"); got != 1 {
		t.Errorf("upstream zip requests = %d, want 1", got)
	}
}

// TestWaitersFollowTheFile checks that bytes reach a caller while upstream is
// still sending, that the last 64 KiB do not, and that a fill that fails then is
// an error to the reader and leaves nothing behind.
func TestWaitersFollowTheFile(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t, oneModule(1<<20))
	full := fake.Zip(modPath, modVers)
	stall := int64(len(full) - 1000)
	fake.Fault(".zip", upstreamtest.Fault{StallAfter: stall, CutAfter: -1})
	n, mem := newNode(t, node.Config{Upstream: loopbackClient(t, fake.URL)})
	zip := fileOf(t, modPath, modVers, target.Zip)
	obj, err := n.Get(t.Context(), cache.Request{Target: zip})
	if err != nil {
		t.Fatal(err)
	}
	defer obj.Body.Close()
	early := make([]byte, stall-64<<10)
	if _, err := io.ReadFull(obj.Body, early); err != nil {
		t.Fatalf("reading what has arrived: %v", err)
	}
	if !bytes.Equal(early, full[:len(early)]) {
		t.Error("the bytes that arrived differ from upstream's")
	}
	go stopNode(n) // ends the fill
	rest, err := io.ReadAll(obj.Body)
	if err == nil {
		t.Errorf("the fill was ended, and the reader got %d more bytes and a clean end", len(rest))
	}
	if isStored(t, mem, zip.String()) {
		t.Error("a zip that never arrived is stored")
	}
}

func TestBadContentIsNeverFinished(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		pad  int64
		kind target.Kind
		bad  func([]byte) []byte
	}{
		{"small zip is garbage", 0, target.Zip, func([]byte) []byte { return []byte("not a zip") }},
		{"large zip has a flipped byte", 1 << 20, target.Zip, func(b []byte) []byte {
			b = bytes.Clone(b)
			b[len(b)/2] ^= 1
			return b
		}},
		{"zip of another module", 0, target.Zip, func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte(modPath), []byte("example.org/m"))
		}},
		{"mod is a page", 0, target.Mod, func([]byte) []byte { return []byte("<html>sign in</html>") }},
		{"info is a page", 0, target.Info, func([]byte) []byte { return []byte("<html>sign in</html>") }},
		{"info of another version", 0, target.Info, func([]byte) []byte { return []byte(`{"Version":"v1.0.1"}`) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			fake := upstreamtest.New(t, oneModule(test.pad))
			fake.Fault("v1.0.0", upstreamtest.Fault{Corrupt: test.bad, CutAfter: -1, StallAfter: -1})
			n, mem := newNode(t, node.Config{Upstream: loopbackClient(t, fake.URL)})
			file := fileOf(t, modPath, modVers, test.kind)
			got, _, err := read(t.Context(), n, cache.Request{Target: file})
			if reason := cache.ReasonOf(err); err == nil || reason != cache.Broken {
				t.Errorf("got %d bytes and %v, want an error with reason %v", len(got), err, cache.Broken)
			}
			stopNode(n)
			if isStored(t, mem, file.String()) {
				t.Error("bad content is stored")
			}
		})
	}
}

func TestHitsDoNotWaitForFills(t *testing.T) {
	t.Parallel()
	var mods []upstreamtest.Module
	for i := range 200 {
		mods = append(mods, upstreamtest.Module{Path: fmt.Sprintf("example.com/hang%d", i), Version: modVers})
	}
	fake := upstreamtest.New(t, append(mods, oneModule(0))...)
	n, _ := newNode(t, node.Config{Upstream: loopbackClient(t, fake.URL)})
	mod := cache.Request{Target: fileOf(t, modPath, modVers, target.Mod)}
	if _, _, err := read(t.Context(), n, mod); err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	fake.Fault("example.com/hang", upstreamtest.Fault{Block: release})
	ctx, leave := context.WithCancel(t.Context())
	var hanging sync.WaitGroup
	for _, m := range mods {
		hanging.Go(func() { _, _, _ = read(ctx, n, cache.Request{Target: fileOf(t, m.Path, m.Version, target.Zip)}) })
	}
	eventually(t, "fetches hang", func() bool { return strings.Count(strings.Join(fake.Requests(), " "), "/hang") >= 20 })
	for range 1000 {
		if _, obj, err := read(t.Context(), n, mod); err != nil || obj.Source != cache.Disk {
			t.Fatalf("a hit while fetches hang: %v", err)
		}
	}
	leave()
	close(release)
	hanging.Wait()
}

func TestModesThatMustNotFill(t *testing.T) {
	t.Parallel()
	script := newScripted(map[string]string{"example.com/m/@v/v1.0.0.info": `{"Version":"v1.0.0"}`, "example.com/m/@v/list": "v1.0.0\n"})
	n, _ := newNode(t, node.Config{Upstream: script})
	for _, mode := range []cache.Mode{cache.OnlyIfCached, cache.Peek} {
		for _, name := range []string{"example.com/m/@v/v1.0.0.info", "example.com/m/@v/list", "example.com/m/@v/main.info"} {
			_, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, name), Mode: mode})
			if got, want := cache.ReasonOf(err), cache.NotCached; err == nil || got != want {
				t.Errorf("mode %d, %s: %v, want reason %v", mode, name, err, want)
			}
			if got := script.count(name); got != 0 {
				t.Errorf("mode %d, %s: upstream was asked %d times", mode, name, got)
			}
		}
	}
}

// TestSmallFillsDoNotWaitForZips lets more zips hang than there are places.
func TestSmallFillsDoNotWaitForZips(t *testing.T) {
	t.Parallel()
	var mods []upstreamtest.Module
	for i := range 8 {
		mods = append(mods, upstreamtest.Module{Path: fmt.Sprintf("example.com/hang%d", i), Version: modVers})
	}
	fake := upstreamtest.New(t, append(mods, oneModule(0))...)
	release := make(chan struct{})
	fake.Fault(".zip", upstreamtest.Fault{Block: release})
	n, _ := newNode(t, node.Config{Upstream: loopbackClient(t, fake.URL), Fills: 4})
	ctx, leave := context.WithCancel(t.Context())
	var hanging sync.WaitGroup
	for _, m := range mods {
		hanging.Go(func() { _, _, _ = read(ctx, n, cache.Request{Target: fileOf(t, m.Path, m.Version, target.Zip)}) })
	}
	eventually(t, "zips take their places", func() bool { return fake.Count(".zip") == 3 })
	for _, name := range []string{fileOf(t, modPath, modVers, target.Mod).String(), modPath + "/@v/list"} {
		if _, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, name)}); err != nil {
			t.Errorf("%s beside hanging zips: %v", name, err)
		}
	}
	leave()
	close(release)
	hanging.Wait()
}
