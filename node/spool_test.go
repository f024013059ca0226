package node_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/upstream"
)

// brokenDisk fails at one step, writes after so many bytes; documents always.
type brokenDisk struct {
	*store.Mem

	step  string
	after int
	err   error
	open  atomic.Int64 // objects being written
}

func (d *brokenDisk) fails(step string) error {
	if step == d.step {
		return fmt.Errorf("%s: %w", step, d.err)
	}
	return nil
}

func (d *brokenDisk) Create(name string) (store.Pending, error) {
	if err := d.fails("create"); err != nil {
		return nil, err
	}
	p, err := d.Mem.Create(name)
	if err == nil {
		d.open.Add(1)
	}
	return &brokenPending{Pending: p, disk: d}, err
}

func (d *brokenDisk) PutDocument(string, store.Document) error { return d.err }

type brokenPending struct {
	store.Pending

	disk    *brokenDisk
	written int
	end     sync.Once
}

func (p *brokenPending) Reserve(size int64) error {
	if err := p.disk.fails("reserve"); err != nil {
		return err
	}
	return p.Pending.Reserve(size)
}

func (p *brokenPending) Write(b []byte) (int, error) {
	if p.disk.step == "write" && p.written+len(b) > p.disk.after {
		n, err := p.Pending.Write(b[:p.disk.after-p.written])
		p.written += n
		if err == nil {
			err = p.disk.err
		}
		return n, err
	}
	p.written += len(b)
	return p.Pending.Write(b)
}

func (p *brokenPending) Commit(proof store.Proof) (store.Entry, error) {
	if err := p.disk.fails("commit"); err != nil {
		p.Abort()
		return store.Entry{}, err
	}
	p.end.Do(func() { p.disk.open.Add(-1) })
	return p.Pending.Commit(proof)
}

func (p *brokenPending) Abort() {
	p.end.Do(func() { p.disk.open.Add(-1) })
	p.Pending.Abort()
}

// gated serves one zip and waits in the middle of it for a word.
type gated struct {
	zip     []byte
	unknown bool          // its length
	half    chan struct{} // closed to go on; nil: nobody waits
	fetched atomic.Int64
}

func (g *gated) Offline() bool { return false }

func (g *gated) Fetch(ctx context.Context, _ target.Target, _ upstream.Validators) (*upstream.Response, error) {
	g.fetched.Add(1)
	size := int64(len(g.zip))
	if g.unknown {
		size = -1
	}
	half := len(g.zip) / 2
	return &upstream.Response{Source: "gated", Size: size, Body: io.NopCloser(io.MultiReader(
		bytes.NewReader(g.zip[:half]), readerFunc(func([]byte) (int, error) {
			if g.half != nil {
				select {
				case <-g.half:
				case <-ctx.Done():
					return 0, ctx.Err()
				}
			}
			return 0, io.EOF
		}), bytes.NewReader(g.zip[half:]),
	))}, nil
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func newBroken(t *testing.T, disk *brokenDisk, up node.Upstream, spool int64) *node.Node {
	t.Helper()
	disk.Mem = store.NewMem()
	n := node.New(node.Config{Store: disk, Documents: disk, Upstream: up, Spool: spool})
	t.Cleanup(func() {
		stopNode(n)
		if open := disk.open.Load(); open != 0 {
			t.Errorf("%d objects are still being written", open)
		}
	})
	return n
}

// TestZipPassesBesideTheDisk lets the disk fail before, in the middle and at the end of
// a zip: those who read along and those who wait for all of it get it. Memory has room
// for one, so that none of it may be lost from one round to the next.
func TestZipPassesBesideTheDisk(t *testing.T) {
	t.Parallel()
	zip, _ := zipOf(t, 700_000)
	for _, test := range []struct {
		step    string
		after   int
		err     error
		unknown bool
	}{
		{step: "create", err: store.ErrReadOnly},
		{step: "create", err: syscall.ENOSPC, unknown: true},
		{step: "reserve", err: store.ErrFull},
		{step: "write", err: syscall.EIO},
		{step: "write", after: 1000, err: syscall.ENOSPC},
		{step: "write", after: 300_000, err: syscall.ENOSPC, unknown: true},
		{step: "write", after: len(zip) - 1, err: syscall.EIO},
	} {
		t.Run(fmt.Sprintf("%s %d %v", test.step, test.after, test.err), func(t *testing.T) {
			t.Parallel()
			up := &gated{zip: zip, unknown: test.unknown}
			n := newBroken(t, &brokenDisk{step: test.step, after: test.after, err: test.err}, up, int64(len(zip)))
			for round := range 4 {
				up.half = make(chan struct{})
				readAlong(t, n, zip, up.half)
				if got := up.fetched.Load(); got != int64(round)+1 {
					t.Errorf("%d fetches in %d rounds", got, round+1)
				}
			}
		})
	}
}

// readAlong reads zip in all ways at once; half is closed when the first have begun.
func readAlong(t *testing.T, n *node.Node, zip []byte, half chan struct{}) {
	t.Helper()
	req := cache.Request{Target: mustParse(t, zipName)}
	first, err := n.Get(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	begun := make([]byte, 1000)
	if _, err := io.ReadFull(first.Body, begun); err != nil {
		t.Fatal(err)
	}
	var callers, opened sync.WaitGroup
	check := func(what string, got []byte, err error) {
		if err != nil || !bytes.Equal(got, zip) {
			t.Errorf("%s: %d bytes, %v, want %d", what, len(got), err, len(zip))
		}
	}
	along := func(what string, copyAll func(to io.Writer, from io.Reader) error) {
		opened.Add(1)
		callers.Go(func() {
			obj, err := n.Get(t.Context(), req)
			opened.Done()
			if err != nil {
				t.Error(err)
				return
			}
			defer obj.Body.Close()
			var got bytes.Buffer
			err = copyAll(&got, obj.Body)
			check(what, got.Bytes(), err)
		})
	}
	for range 2 {
		along("reading along", func(to io.Writer, from io.Reader) error {
			_, err := io.Copy(to, struct{ io.Reader }{from})
			return err
		})
		along("copying along", func(to io.Writer, from io.Reader) error {
			_, err := from.(io.WriterTo).WriteTo(to)
			return err
		})
		callers.Go(func() {
			got, obj, err := read(t.Context(), n, cache.Request{Target: req.Target, Whole: true})
			check("waiting for all", got, err)
			if err == nil && (obj.Size != int64(len(zip)) || obj.SHA256 != sha256.Sum256(zip) || obj.H1 == "") {
				t.Errorf("waiting for all: %d bytes with digest %x and %q", obj.Size, obj.SHA256, obj.H1)
			}
		})
	}
	opened.Wait()
	eventually(t, "followers", func() bool { return n.Following(zipName) >= 7 })
	close(half)
	rest, err := io.ReadAll(first.Body)
	check("from the beginning", slices.Concat(begun, rest), err)
	callers.Wait()
	if err := first.Body.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "the fill over", func() bool { return n.Fills() == 0 })
}

// A commit that fails costs those who wait for all of it another fetch.
func TestZipThatIsNotCommitted(t *testing.T) {
	t.Parallel()
	zip, _ := zipOf(t, 100_000)
	disk := &brokenDisk{step: "commit", err: syscall.ENOSPC}
	n := newBroken(t, disk, &gated{zip: zip}, 1<<20)
	got, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, zipName)})
	if err != nil || !bytes.Equal(got, zip) {
		t.Errorf("reading along: %d bytes, %v", len(got), err)
	}
	eventually(t, "the fill over", func() bool { return n.Fills() == 0 })
	disk.step, disk.err = "create", store.ErrReadOnly // as Disk does
	got, _, err = read(t.Context(), n, cache.Request{Target: mustParse(t, zipName), Whole: true})
	if err != nil || !bytes.Equal(got, zip) {
		t.Errorf("waiting for all: %d bytes, %v", len(got), err)
	}
}

// crowded is a store that evicts whatever it stores at once.
type crowded struct{ *store.Mem }

func (crowded) Open(_ context.Context, name string) (*store.Object, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// TestZipThatIsEvictedAtOnce has callers who wait for all of a zip, each of whom gets it
// though it is not there any more when the fill is over.
func TestZipThatIsEvictedAtOnce(t *testing.T) {
	t.Parallel()
	zip, _ := zipOf(t, 100_000)
	disk := crowded{store.NewMem()}
	from := newScripted(map[string]string{zipName: string(zip)})
	from.delay = 50 * time.Millisecond
	n := node.New(node.Config{Store: disk, Documents: disk, Upstream: from})
	t.Cleanup(func() { stopNode(n) })
	var callers sync.WaitGroup
	for range 3 {
		callers.Go(func() {
			got, obj, err := read(t.Context(), n, cache.Request{Target: mustParse(t, zipName), Whole: true})
			if err != nil || !bytes.Equal(got, zip) || obj.SHA256 != sha256.Sum256(zip) || obj.H1 == "" {
				t.Errorf("%d bytes, %v, want all", len(got), err)
			}
		})
	}
	callers.Wait()
	if got := from.count(zipName); got > 3 {
		t.Errorf("%d fetches", got)
	}
	eventually(t, "the fill over", func() bool { return n.Fills() == 0 })
}

func TestZipTooLargeForMemory(t *testing.T) {
	t.Parallel()
	zip, _ := zipOf(t, 300_000)
	for _, unknown := range []bool{false, true} {
		n := newBroken(t, &brokenDisk{step: "create", err: syscall.ENOSPC}, &gated{zip: zip, unknown: unknown}, 200_000)
		_, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, zipName)})
		if cache.ReasonOf(err) != cache.Busy || !strings.Contains(err.Error(), "too large to be passed on") {
			t.Errorf("unknown length %v: %v, want %v that says why", unknown, err, cache.Busy)
		}
	}
}

// What other nodes bring is for the disk alone.
func TestNothingIsTakenIntoMemory(t *testing.T) {
	t.Parallel()
	zip, h1 := zipOf(t, 0)
	n := newBroken(t, &brokenDisk{step: "create", err: syscall.ENOSPC}, &gated{zip: zip}, 1<<20)
	obj := &cache.Object{Size: int64(len(zip)), SHA256: sha256.Sum256(zip), H1: h1, Body: io.NopCloser(bytes.NewReader(zip))}
	if err := n.Take(t.Context(), mustParse(t, zipName), obj); err == nil {
		t.Error("taken without a disk")
	}
}

// Everything but zips is answered from memory in any case.
func TestSmallBesideTheDisk(t *testing.T) {
	t.Parallel()
	const list = "v1.0.0\n"
	bodies := map[string]string{infoName: `{"Version":"v1.0.0"}`, modName: modBody, someList: list}
	for _, step := range []string{"create", "reserve", "write", "commit"} {
		script := newScripted(bodies)
		n := newBroken(t, &brokenDisk{step: step, err: syscall.EIO}, script, 0)
		for name, want := range bodies {
			for range 3 {
				got, _, err := read(t.Context(), n, cache.Request{Target: mustParse(t, name)})
				if err != nil || string(got) != want {
					t.Errorf("%s fails: %s is %q, %v, want %q", step, name, got, err, want)
				}
			}
		}
	}
}
