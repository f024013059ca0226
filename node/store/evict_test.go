package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func openLimited(t testing.TB, dir string, limit int64) *Disk {
	t.Helper()
	d, err := OpenDisk(DiskConfig{Dir: dir, Inspect: inspectContent, Limit: Limit{Bytes: limit}, Class: func(name string) Class {
		if strings.HasPrefix(name, "corp.example/") {
			return Private
		}
		return Public
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// commitVersion commits .info, .mod and a .zip of about size bytes.
func commitVersion(t testing.TB, d *Disk, version string, size int) {
	t.Helper()
	for kind, n := range map[string]int{".info": 60, ".mod": 200, ".zip": size} {
		if err := commit(t, d, version+kind, strings.Repeat("x", n)); err != nil {
			t.Fatal(err)
		}
	}
}

// holds returns how many objects of a version are there, by the index.
func holds(t testing.TB, d *Disk, version string) int {
	t.Helper()
	n := 0
	for _, kind := range []string{".info", ".mod", ".zip"} {
		if _, err := d.Stat(version + kind); err == nil {
			n++
		}
	}
	return n
}

// settled waits until the worker has nothing left to do.
func settled(t testing.TB, d *Disk) {
	t.Helper()
	eventually(t, "room made", func() bool { return d.budget.excess() == 0 })
}

// bytesBelow returns what files take, as far as their sizes tell.
func bytesBelow(t testing.TB, dir string) (sum int64) {
	t.Helper()
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil //nolint:nilerr // it goes while we look
		}
		if info, err := e.Info(); err == nil {
			sum += allocated(info)
		}
		return nil
	})
	return sum
}

// TestNeverAboveTheLimit fills from many sides, with and without lengths, while
// somebody looks at the files.
func TestNeverAboveTheLimit(t *testing.T) {
	t.Parallel()
	const limit, largest = 6 << 20, 700_000
	dir := t.TempDir()
	d := openLimited(t, dir, limit)
	var fills, watch sync.WaitGroup
	done := make(chan struct{})
	watch.Go(func() {
		for {
			if got := bytesBelow(t, dir); got > limit+largest {
				t.Errorf("%d bytes on the disk, limit %d", got, limit)
			}
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	for g := range 4 {
		fills.Go(func() {
			for i := range 25 {
				fillRandom(t, d, fmt.Sprintf("example.com/m%d/@v/v1.0.%d.zip", g, i), largest)
			}
		})
	}
	fills.Wait()
	close(done)
	watch.Wait()
	settled(t, d)
	u := d.Usage()
	if u.Reserved != 0 || float64(u.Taken) > limit*highMark || u.Limit != limit || u.ReadOnly {
		t.Errorf("at the end %+v, want nothing reserved and at most 90 %% taken", u)
	}
	if u.Evicted[Public].Objects == 0 || u.Taken < limit/3 {
		t.Errorf("%+v evicted, %d bytes are left", u.Evicted, u.Taken)
	}
}

// fillRandom writes an object in pieces and commits or aborts it.
func fillRandom(t *testing.T, d *Disk, name string, largest int) {
	t.Helper()
	p, err := d.Create(name)
	if err != nil {
		t.Error(err)
		return
	}
	defer p.Abort()
	size := rand.IntN(largest)
	if size%2 == 0 {
		if err := p.Reserve(int64(size)); err != nil {
			t.Errorf("Reserve: %v", err)
			return
		}
	}
	for _, piece := range []int{size / 2, size - size/2} {
		if _, err := p.Write(make([]byte, piece)); err != nil {
			t.Errorf("Write: %v", err)
			return
		}
	}
	if size%7 == 0 {
		return
	}
	if _, err := p.Commit(Proof{}); err != nil {
		t.Errorf("Commit: %v", err)
	}
}

// TestHotTenthStays fills the disk with twice what it takes while a tenth is
// read now and then: a scan of what is cold must not push that out.
func TestHotTenthStays(t *testing.T) {
	t.Parallel()
	const versions, hot, size = 200, 20, 40_000
	d := openLimited(t, t.TempDir(), versions/2*(size+3*overhead))
	name := func(i int) string { return fmt.Sprintf("example.com/m%d/@v/v1.0.0", i) }
	reads, hits := 0, 0
	for i := range versions {
		commitVersion(t, d, name(i), size)
		if i < hot || i%10 != 0 {
			continue
		}
		for j := range hot {
			reads++
			if got, err := read(t, d, name(j)+".zip"); err == nil && len(got) == size {
				hits++
			}
		}
	}
	settled(t, d)
	if hits*100 < reads*95 {
		t.Errorf("%d of %d reads of the hot tenth were hits, want 95 %%", hits, reads)
	}
	left := 0
	for i := range versions {
		switch n := holds(t, d, name(i)); n {
		case 0:
		case 3:
			left++
		default:
			t.Errorf("%d objects of %s are left, want all or none", n, name(i))
		}
	}
	if left > versions/2 || left < versions/3 {
		t.Errorf("%d of %d versions are left in a disk for half of them", left, versions)
	}
}

func TestWhatGoesLast(t *testing.T) {
	t.Parallel()
	const size = 100_000
	d := openLimited(t, t.TempDir(), 3<<20)
	mustCommit(t, d, "sumdb/sum.golang.org/tile/8/0/001", "x")
	for i := range 5 {
		commitVersion(t, d, fmt.Sprintf("corp.example/m%d/@v/v1.0.0", i), size)
	}
	o, err := d.Open(t.Context(), "corp.example/m0/@v/v1.0.0.zip")
	if err != nil {
		t.Fatal(err)
	}
	defer o.File.Close()
	for i := range 60 {
		v := fmt.Sprintf("example.com/m%d/@v/v1.0.0", i)
		commitVersion(t, d, v, size)
		if _, err := read(t, d, v+".zip"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	settled(t, d)
	for i := range 5 {
		if n := holds(t, d, fmt.Sprintf("corp.example/m%d/@v/v1.0.0", i)); n != 3 {
			t.Errorf("%d objects of a private version are left while public ones are", n)
		}
	}
	for i := range 60 { // now private ones have to go, too
		commitVersion(t, d, fmt.Sprintf("corp.example/more%d/@v/v1.0.0", i), size)
	}
	settled(t, d)
	if n := holds(t, d, "corp.example/m1/@v/v1.0.0"); n != 0 {
		t.Errorf("%d objects of the coldest private version are left", n)
	}
	want(t, d, "sumdb/sum.golang.org/tile/8/0/001", "x")
	if b, err := io.ReadAll(o.File); len(b) != size || err != nil {
		t.Errorf("an open file yields %d bytes, %v, want %d", len(b), err, size)
	}
	u := d.Usage()
	if u.Evicted[Public].Objects == 0 || u.Evicted[Private].Objects == 0 || u.Evicted[Lasting].Objects != 0 {
		t.Errorf("evicted %+v", u.Evicted)
	}
}

// TestUsesOutliveTheProcess reads half of the versions, and sees the other half go
// in the next process.
func TestUsesOutliveTheProcess(t *testing.T) {
	t.Parallel()
	const size, versions = 100_000, 20
	dir := t.TempDir()
	d := openLimited(t, dir, 1<<30)
	name := func(i int) string { return fmt.Sprintf("example.com/m/@v/v1.%d.0", i) }
	for i := range versions {
		commitVersion(t, d, name(i), size)
	}
	for i := range versions / 2 { // the older half
		for range 2 {
			want(t, d, name(i)+".zip", strings.Repeat("x", size))
		}
	}
	before, _ := d.uses.look(versionOf(name(0) + ".zip"))
	d.Close()

	d = openLimited(t, dir, versions*60/100*(size+3*overhead)+(1<<18))
	settled(t, d)
	gone := 0
	for i := range versions {
		n := holds(t, d, name(i))
		if n == 0 {
			gone++
		}
		if i < versions/2 && n != 3 {
			t.Errorf("%d objects of version %d are left, which was used", n, i)
		}
	}
	if gone < versions/4 {
		t.Errorf("%d of %d versions are gone", gone, versions)
	}
	all, err := d.coldest(t.Context(), 1<<40)
	if err != nil || len(all) != versions-gone {
		t.Fatalf("%d versions, %v, want %d", len(all), err, versions-gone)
	}
	for _, v := range all[len(all)-versions/2:] {
		if v.heat < before.heat-0.5 {
			t.Errorf("%s has heat %v, want about %v", v.name, v.heat, before.heat)
		}
	}
}

func TestWritingKeepsAVersion(t *testing.T) {
	t.Parallel()
	const size = 300_000
	d := openLimited(t, t.TempDir(), 1<<20)
	if err := commit(t, d, "example.com/a/@v/v1.0.0.mod", "x"); err != nil {
		t.Fatal(err)
	}
	p, err := d.Create("example.com/a/@v/v1.0.0.zip")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Abort()
	for i := range 6 {
		mustCommit(t, d, fmt.Sprintf("example.com/b/@v/v1.0.%d.zip", i), strings.Repeat("x", size))
	}
	settled(t, d)
	want(t, d, "example.com/a/@v/v1.0.0.mod", "x")
}

// What can never fit is refused at once and costs nobody else their place.
func TestLargerThanTheLimit(t *testing.T) {
	t.Parallel()
	d := openLimited(t, t.TempDir(), 1<<20)
	commitVersion(t, d, "example.com/a/@v/v1.0.0", 1000)
	p, err := d.Create("example.com/b/@v/v1.0.0.zip")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Reserve(2 << 20); !errors.Is(err, ErrFull) {
		t.Errorf("Reserve: %v, want %v", err, ErrFull)
	}
	if _, err := p.Write([]byte("x")); !errors.Is(err, ErrFull) {
		t.Errorf("Write: %v, want %v", err, ErrFull)
	}
	if _, err := p.Commit(Proof{}); !errors.Is(err, ErrFull) {
		t.Errorf("Commit: %v, want %v", err, ErrFull)
	}
	if n := holds(t, d, "example.com/a/@v/v1.0.0"); n != 3 || d.ReadOnly() != nil || d.Usage().Reserved != 0 {
		t.Errorf("%d objects are left, %v, %+v", n, d.ReadOnly(), d.Usage())
	}
}

func TestVersionOf(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"a.b/c/@v/v1.0.0.zip":     "a.b/c/@v/v1.0.0.",
		"a.b/c/@v/v1.0.0-rc.mod":  "a.b/c/@v/v1.0.0-rc.",
		"a.b/c/@v/v1.0.0.info":    "a.b/c/@v/v1.0.0.",
		"a.b/c/@v/v1.0.0.txt":     "a.b/c/@v/v1.0.0.txt",
		"a.b/c.zip":               "a.b/c.zip",
		"sumdb/x/lookup/a@v1.zip": "sumdb/x/lookup/a@v1.zip",
	} {
		if got := versionOf(name); got != want {
			t.Errorf("versionOf(%q) = %q, want %q", name, got, want)
		}
	}
}

// Heat is a sum, whatever the order, and what is younger by a half-life counts
// twice.
func TestHeat(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_800_000_000, 0)
	one, later := usedAt(at), usedAt(at.Add(halfLife))
	if both := one.and(one); both.heat-later.heat > 1e-6 || later.heat-both.heat > 1e-6 {
		t.Errorf("two uses have heat %v, one a half-life later %v", both.heat, later.heat)
	}
	if a, b := unused().and(one).and(later), later.and(one); a != b || !a.last.Equal(later.last) {
		t.Errorf("got %v, %v in another order", a, b)
	}
	got, err := decodeUse(one.encode())
	if err != nil || got.heat != one.heat || !got.last.Equal(one.last) {
		t.Errorf("got %v, %v, want %v", got, err, one)
	}
	if n := unused().and(unused()); !n.last.IsZero() || n.heat > -1e300 {
		t.Errorf("nothing twice is %v", n)
	}
}
