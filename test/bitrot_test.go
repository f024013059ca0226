package test

import (
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// rotting is a data folder that was filled from an upstream with a checksum
// database, and what its objects are.
type rotting struct {
	fake   *upstreamtest.Server
	dir    string
	want   map[string]string // by target
	random *rand.Rand
}

const (
	brBase   = "example.com/m/@v/v1.0.0"
	brLookup = "sumdb/sum.upstream.test/lookup/example.com/m@v1.0.0"
	brTile   = "sumdb/sum.upstream.test/tile/8/0/000.p/1"
	brLatest = "sumdb/sum.upstream.test/latest"
	brList   = "example.com/m/@v/list"
)

// newRotting fills a folder. The zip is larger than what a gateway keeps in
// memory, so that each answer comes from the disk.
func newRotting(t *testing.T) *rotting {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := &rotting{
		fake:   upstreamtest.New(t, upstreamtest.Module{Path: "example.com/m", Version: "v1.0.0", Pad: 512 << 10}),
		dir:    t.TempDir(),
		want:   map[string]string{},
		random: rand.New(rand.NewPCG(seed, 0)),
	}
	p := r.serve(t, r.dir, false)
	for _, name := range []string{brBase + ".zip", brBase + ".mod", brBase + ".info", brList, brLookup, brTile, brLatest} {
		got, err := fetch(t, p.URL()+"/"+name)
		if err != nil || got.status != http.StatusOK {
			t.Fatalf("filling %s: %d %q, %v", name, got.status, got.body, err)
		}
		r.want[name] = got.body
	}
	p.Stop()
	for _, ext := range []string{".zip", ".mod", ".info"} {
		if got := r.onDisk(brBase + ext); got != r.want[brBase+ext] {
			t.Fatalf("the folder has %d bytes of %s, want the %d that were served", len(got), ext, len(r.want[brBase+ext]))
		}
	}
	return r
}

// serve starts ringmod over dir with an empty memory.
func (r *rotting) serve(t *testing.T, dir string, offline bool) *harness.Process {
	t.Helper()
	flags := []string{"--data-dir", dir, "--sumdb", r.fake.SumdbKey(), "--log-level", "warn", "--upstream", r.fake.URL}
	if offline {
		flags = append(flags, "--offline")
	}
	return harness.Serve(t, flags...)
}

func (r *rotting) file(name string) string {
	return filepath.Join(r.dir, "objects", filepath.FromSlash(name))
}

func (r *rotting) onDisk(name string) string {
	data, _ := os.ReadFile(r.file(name))
	return string(data)
}

// flip changes one bit of a file.
func (r *rotting) flip(t *testing.T, path string) (bad string) {
	t.Helper()
	return r.flipWhere(t, path, func(byte) bool { return true })
}

// flipWhere changes one bit of a byte that suits, in place, and keeps the time
// of the file's last change as a failing disk does. It returns what the file now holds.
func (r *rotting) flipWhere(t *testing.T, path string, suits func(byte) bool) (bad string) {
	t.Helper()
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	at := r.random.IntN(len(data))
	for !suits(data[at]) {
		at = r.random.IntN(len(data))
	}
	data[at] ^= 1 << r.random.IntN(8)
	if _, err := f.WriteAt(data[at:at+1], int64(at)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, before.ModTime()); err != nil {
		t.Fatal(err)
	}
	t.Logf("flipped a bit at %d of %d in %s", at, len(data), filepath.Base(path))
	return string(data)
}

// wantRight asks for name and takes nothing but the right bytes.
func (r *rotting) wantRight(t *testing.T, p *harness.Process, name string) {
	t.Helper()
	got, err := fetch(t, p.URL()+"/"+name)
	if err != nil || got.status != http.StatusOK || got.body != r.want[name] {
		t.Errorf("%s: %d, %d bytes %.80q, %v, want the %d right bytes", name, got.status, len(got.body), got.body, err, len(r.want[name]))
	}
}

// wantRightOrNone asks for name of a process that has nowhere to get it from.
func (r *rotting) wantRightOrNone(t *testing.T, p *harness.Process, name string) (status int) {
	t.Helper()
	got, err := fetch(t, p.URL()+"/"+name)
	none := got.status == http.StatusNotFound || got.status == http.StatusServiceUnavailable
	if err != nil || !none && (got.status != http.StatusOK || got.body != r.want[name]) {
		t.Errorf("%s offline: %d, %d bytes %.80q, %v, want 404, 503 or the right bytes", name, got.status, len(got.body), got.body, err)
	}
	return got.status
}

// wantQuarantined checks that the bad copy of name lies in the quarantine.
func (r *rotting) wantQuarantined(t *testing.T, name, bad string) {
	t.Helper()
	suffix := strings.ReplaceAll(name, "/", "%2f")
	for _, file := range filesBelow(t, filepath.Join(r.dir, "quarantine")) {
		if data, err := os.ReadFile(file); err == nil && string(data) == bad && strings.HasSuffix(file, suffix) {
			return
		}
	}
	t.Errorf("the bad copy of %s is not in the quarantine: %v", name, filesBelow(t, filepath.Join(r.dir, "quarantine")))
}

// wantHealed checks that name was fetched once and is right on the disk.
func (r *rotting) wantHealed(t *testing.T, name string) {
	t.Helper()
	if got := r.fake.Count(name); got != 1 {
		t.Errorf("upstream requests for %s after its copy was found bad: %d, want 1", name, got)
	}
	eventually(t, "the right bytes of "+name+" on the disk", func() bool { return r.onDisk(name) == r.want[name] })
}

// TestBitrotAtRest flips a bit of each kind of stored file between two lives of
// the process: in one without upstream, then in one that can fetch it again.
func TestBitrotAtRest(t *testing.T) {
	t.Parallel()
	rounds := 20
	if testing.Short() {
		rounds = 2
	}
	for _, name := range []string{brBase + ".zip", brBase + ".mod", brBase + ".info", brLookup, brTile} {
		t.Run(strings.ReplaceAll(name, "/", "_"), func(t *testing.T) {
			t.Parallel()
			r := newRotting(t)
			for round := range rounds {
				bad := r.flip(t, r.file(name))
				if round%2 == 0 {
					p := r.serve(t, r.dir, true)
					if status := r.wantRightOrNone(t, p, name); status == http.StatusOK {
						t.Errorf("%s offline: 200 from a folder that has only a bad copy", name)
					}
					p.Stop()
				}
				r.fake.Reset()
				p := r.serve(t, r.dir, false)
				r.wantRight(t, p, name)
				r.wantQuarantined(t, name, bad)
				r.wantHealed(t, name)
				p.Stop()
				p = r.serve(t, r.dir, true)
				r.wantRight(t, p, name)
				p.Stop()
			}
		})
	}
}

// TestBitrotAfterServing flips a bit of a zip that the process has sent a moment
// ago and knows to be good.
func TestBitrotAfterServing(t *testing.T) {
	t.Parallel()
	rounds := 100
	if testing.Short() {
		rounds = 10
	}
	const name = brBase + ".zip"
	r := newRotting(t)
	p := r.serve(t, r.dir, false)
	for range rounds {
		r.wantRight(t, p, name)
		r.wantRight(t, p, name)
		bad := r.flip(t, r.file(name))
		r.fake.Reset()
		r.wantRight(t, p, name)
		r.wantQuarantined(t, name, bad)
		r.wantHealed(t, name)
	}
	p.Stop()
	p = r.serve(t, r.dir, true)
	r.wantRight(t, p, name)
	r.flip(t, r.file(name))
	if status := r.wantRightOrNone(t, p, name); status == http.StatusOK {
		t.Error("offline: 200 from a folder that has only a bad copy")
	}
}

// TestBitrotOfIndex flips a bit of index.db, at rest or under a running
// process, and reads everything.
func TestBitrotOfIndex(t *testing.T) {
	t.Parallel()
	rounds := 120
	if testing.Short() {
		rounds = 12
	}
	r := newRotting(t)
	for round := range rounds {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(r.dir)); err != nil {
			t.Fatal(err)
		}
		offline, running := round%2 == 0, round%4 < 2
		index := filepath.Join(dir, "index.db")
		var p *harness.Process
		if running {
			p = r.serve(t, dir, offline)
		}
		r.flipWhere(t, index, func(b byte) bool { return b != 0 || round%3 == 0 }) // most of the file is not in use
		if !running {
			p = r.serve(t, dir, offline)
		}
		r.readAll(t, p, offline)
		p.Stop()
		p = r.serve(t, dir, offline) // what the first made of it
		r.readAll(t, p, offline)
		p.Stop()
	}
}

// readAll reads everything. Without upstream only what is a file of its own has
// to outlast the index.
func (r *rotting) readAll(t *testing.T, p *harness.Process, offline bool) {
	t.Helper()
	for name := range r.want {
		if offline && !strings.HasPrefix(name, brBase) {
			r.wantRightOrNone(t, p, name)
		} else {
			r.wantRight(t, p, name)
		}
	}
}
