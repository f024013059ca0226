package test

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// volumes are modules whose zips no gateway keeps in memory.
type volumes struct {
	fake  *upstreamtest.Server
	count int
}

const volumeSize = 1 << 20

func newVolumes(t *testing.T, count int) *volumes {
	t.Helper()
	v := &volumes{fake: upstreamtest.New(t), count: count}
	for i := range count {
		v.fake.Add(upstreamtest.Module{Path: v.path(i), Version: "v1.0.0", Pad: volumeSize})
	}
	return v
}

func (*volumes) path(i int) string { return fmt.Sprintf("example.com/m%02d", i) }

func (*volumes) file(i int, kind string) string {
	return fmt.Sprintf("example.com/m%02d/@v/v1.0.0.%s", i, kind)
}

// read reads version i in full; whatever is not right fails the test.
func (v *volumes) read(t *testing.T, p *harness.Process, i int) {
	t.Helper()
	for kind, want := range map[string][]byte{
		"info": v.fake.Info(v.path(i), "v1.0.0"), "mod": v.fake.Mod(v.path(i), "v1.0.0"), "zip": v.fake.Zip(v.path(i), "v1.0.0"),
	} {
		got, err := fetch(t, p.URL()+"/"+v.file(i, kind))
		if err != nil || got.status != http.StatusOK || got.body != string(want) {
			t.Errorf("%s: %d, %d bytes, %v, want %d bytes", v.file(i, kind), got.status, len(got.body), err, len(want))
		}
	}
}

func (v *volumes) readAll(t *testing.T, p *harness.Process) {
	t.Helper()
	var clients sync.WaitGroup
	for c := range 3 {
		clients.Go(func() {
			for i := range v.count {
				v.read(t, p, (i+c)%v.count)
			}
		})
	}
	clients.Wait()
}

// smallDisk mounts a file system of its own.
func smallDisk(t *testing.T, megabytes int) (dir string, resize func(megabytes int)) {
	t.Helper()
	dir = t.TempDir()
	set := mountSmall(t, dir, int64(megabytes)<<20)
	return dir, func(n int) {
		if err := set(int64(n) << 20); err != nil {
			t.Fatal(err)
		}
	}
}

// mountSmall mounts a file system of so many bytes. Without permission the test is skipped,
// and fails in CI. It cannot be made smaller than what is in it.
func mountSmall(t *testing.T, dir string, bytes int64) (resize func(bytes int64) error) {
	t.Helper()
	size := func(n int64) string { return fmt.Sprintf("size=%d", n) }
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, size(bytes)); err != nil {
		if os.Getenv("CI") != "true" {
			t.Skipf("mounting a tmpfs needs root: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return func(n int64) error { return syscall.Mount("", dir, "", syscall.MS_REMOUNT, size(n)) }
}

// TestDiskRunsFull gives a node a disk that is too small for what it is told to keep.
// Clients see nothing of it; people do, until there is space.
func TestDiskRunsFull(t *testing.T) {
	t.Parallel()
	v := newVolumes(t, 24)
	dir, resize := smallDisk(t, 16)
	p := harness.Serve(t, "--data-dir", dir, "--disk-limit", "1TiB", "--sumdb", "off", "--upstream", v.fake.URL)
	v.readAll(t, p)
	wantReadOnly(t, p, true)
	v.readAll(t, p)
	if got := p.Metric("ringmod_disk_reserved_bytes"); got != 0 {
		t.Errorf("%v bytes stay reserved", got)
	}
	if got := v.fake.Count(".zip"); got < v.count+1 || got > 6*v.count {
		t.Errorf("%d zips were fetched", got)
	}
	resize(100)
	wantReadOnly(t, p, false)
	v.readAll(t, p)
	v.fake.Reset()
	v.readAll(t, p)
	if got := v.fake.Count(".zip"); got != 0 {
		t.Errorf("%d zips were fetched again after there is space", got)
	}
}

func wantReadOnly(t *testing.T, p *harness.Process, want bool) {
	t.Helper()
	value := 0.0
	if want {
		value = 1
	}
	// It is tried every 15 s; then others have to hear of it.
	deadline := time.Now().Add(time.Minute)
	for {
		_, status, _ := harness.Run(t, nil, "status", "--addr", p.GRPC)
		shown := strings.Contains(status, "read-only") && strings.Contains(status, "stores nothing new")
		if shown == want && p.Metric("ringmod_disk_read_only") == value {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("read-only is not %v:\n%s", want, status)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// TestDiskLimit fills a node with twice as much as it may take while a tenth of it is
// read now and then.
func TestDiskLimit(t *testing.T) {
	t.Parallel()
	const limit, hot = 20 << 20, 4
	v := newVolumes(t, 40)
	dir := t.TempDir()
	p := harness.Serve(t, "--data-dir", dir, "--disk-limit", "20MiB", "--sumdb", "off", "--upstream", v.fake.URL)
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			if got := takenBelow(dir); got > limit+volumeSize {
				t.Errorf("the data folder takes %d bytes, limit %d", got, limit)
			}
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	reads, misses := 0, 0
	for i := range v.count {
		v.read(t, p, i)
		if i < hot || i%2 == 0 {
			continue
		}
		for j := range hot {
			before := v.fake.Count(v.file(j, "zip"))
			v.read(t, p, j)
			reads++
			misses += v.fake.Count(v.file(j, "zip")) - before
		}
	}
	close(done)
	watch.Wait()
	if misses*100 > reads*5 {
		t.Errorf("%d of %d reads of the hot tenth were misses, want at most 5 %%", misses, reads)
	}
	if got := p.Metric("ringmod_disk_evicted_bytes_total"); got < float64(v.count*volumeSize-limit) {
		t.Errorf("%v bytes were evicted", got)
	}
	if _, status, _ := harness.Run(t, nil, "status", "--addr", p.GRPC); strings.Contains(status, "read-only") {
		t.Errorf("a node at its limit is read-only:\n%s", status)
	}
}

// takenBelow returns what the files below dir take.
func takenBelow(dir string) (sum int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil //nolint:nilerr // it goes while we look
		}
		if info, err := e.Info(); err == nil {
			sum += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return sum
}
