package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func noPace(int, time.Duration) error { return nil }

// TestCheckFindsEachFlippedByte flips a byte anywhere in an object that counts as checked,
// and lets its SHA-256 be another one.
func TestCheckFindsEachFlippedByte(t *testing.T) {
	t.Parallel()
	const name = "example.com/a/@v/v1.0.0.zip"
	data := content(name, 2*chunkSize+5)
	d := openTest(t, t.TempDir())
	for _, off := range []int{0, 1, chunkSize - 1, chunkSize, len(data) - 1} {
		mustCommit(t, d, name, data)
		entry, err := d.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Check(t.Context(), name, noPace); err != nil {
			t.Fatalf("a good copy: %v", err)
		}
		flip(t, file(d, name), int64(off), 0x40)
		if _, ok := errors.AsType[*CorruptError](d.Check(t.Context(), name, noPace)); !ok {
			t.Errorf("offset %d: not found", off)
		}
		wantAbsent(t, d, name)
		if l, err := d.Lost(name); err != nil || l.Entry != entry || time.Since(l.Found) > time.Minute {
			t.Errorf("offset %d: lost is %+v, %v, want %+v", off, l, err, entry)
		}
		select {
		case <-d.LossNews():
		default:
			t.Errorf("offset %d: nobody is told", off)
		}
	}
	mustCommit(t, d, name, data)
	if _, err := d.Lost(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lost though it is back: %v", err)
	}
	r, err := d.record(name)
	if err != nil {
		t.Fatal(err)
	}
	r.SHA256[0]++
	if err := d.index.submit(r.write()); err != nil {
		t.Fatal(err)
	}
	if err := d.Check(t.Context(), name, noPace); !errors.As(err, new(*CorruptError)) {
		t.Errorf("another SHA-256: %v", err)
	}
}

// TestCheckStandsInNobodysWay reads, replaces and removes an object while it is checked.
func TestCheckStandsInNobodysWay(t *testing.T) {
	t.Parallel()
	const name = "example.com/a/@v/v1.0.0.zip"
	d := openTest(t, t.TempDir())
	mustCommit(t, d, name, content(name, 3*chunkSize))
	other := content("other", 3*chunkSize)
	calls := 0
	err := d.Check(t.Context(), name, func(int, time.Duration) error {
		if calls++; calls == 2 {
			d.verified.forget(name)
			want(t, d, name, content(name, 3*chunkSize))
			mustCommit(t, d, name, other)
		}
		return nil
	})
	if err != nil || calls < 3 {
		t.Errorf("%v after %d chunks", err, calls)
	}
	want(t, d, name, other)
	err = d.Check(t.Context(), name, func(int, time.Duration) error { return d.Remove(name) })
	if err != nil {
		t.Errorf("removed while it was checked: %v", err)
	}
	if err := d.Check(t.Context(), name, noPace); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent one: %v", err)
	}
	if got := d.Usage().Quarantined; got != 1 { // the replaced one
		t.Errorf("%d copies in quarantine, want 1", got)
	}
}

func TestCheckEndsWhenToldTo(t *testing.T) {
	t.Parallel()
	const name = "example.com/a/@v/v1.0.0.zip"
	d := openTest(t, t.TempDir())
	mustCommit(t, d, name, content(name, 3*chunkSize))
	stop := errors.New("stop")
	if err := d.Check(t.Context(), name, func(int, time.Duration) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v, want %v", err, stop)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Check(ctx, name, noPace); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want the end of the context", err)
	}
}

// TestUncheckedIsOldestFirst checks objects in pages and asks what is left, also after a
// restart, and forgets what is gone.
func TestUncheckedIsOldestFirst(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	for i := range 10 {
		mustCommit(t, d, fmt.Sprintf("a/%d", i), "x")
	}
	day := func(n int) time.Time { return time.Now().AddDate(0, 0, n).Truncate(time.Second) }
	for i := range 10 {
		if err := d.Checked(day(10-i), fmt.Sprintf("a/%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Checked(day(-5), "a/0"); err != nil { // older than the object
		t.Fatal(err)
	}
	d.Close()
	d = openTest(t, d.dir)
	b, err := d.Unchecked(t.Context(), day(8), 4)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, o := range b.Oldest {
		names = append(names, o.Name)
	}
	if want := []string{"a/0", "a/9", "a/8", "a/7"}; !slices.Equal(names, want) || b.Objects != 8 || b.Bytes != 8 {
		t.Errorf("got %q of %d objects, %d bytes, want %q of 8", names, b.Objects, b.Bytes, want)
	}
	if err := d.Remove("a/9"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if b, err = d.Unchecked(t.Context(), day(100), 100); err != nil || b.Objects != 9 {
			t.Errorf("%d objects, %v, want 9", b.Objects, err)
		}
	}
	if err := d.index.get(bucketChecks, "a/9", func([]byte) error { return nil }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the check of a removed object is kept: %v", err)
	}
}

// TestLostTakesBackItsOwnBytes wants nothing else in place of a copy that was bad, until
// told to.
func TestLostTakesBackItsOwnBytes(t *testing.T) {
	t.Parallel()
	const name, record = "example.com/a/@v/v1.0.0.zip", "sumdb/sum.example.com/lookup/example.com/a@v1.0.0"
	d := openTest(t, t.TempDir())
	for _, each := range []string{name, record} {
		mustCommit(t, d, each, "good")
		flip(t, file(d, each), 0, 1)
		wantCorrupt(t, d, each)
	}
	mustCommit(t, d, record, "with another tree head")
	d.Close()
	d = openTest(t, d.dir)
	if err := commit(t, d, name, "other"); !errors.Is(err, ErrDiffers) {
		t.Errorf("Commit: %v, want %v", err, ErrDiffers)
	}
	wantAbsent(t, d, name)
	if all, next, err := d.Losses("", 10); err != nil || next != "" || len(all) != 1 || all[0].Name != name {
		t.Errorf("lost are %+v, %v, want %s", all, err, name)
	}
	if err := d.Forget(name); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, d, name, "other")
	if all, next, err := d.Losses("", 10); err != nil || next != "" || len(all) != 0 {
		t.Errorf("lost are %+v, %v, want none", all, err)
	}
}

// TestPurgeForgetsWhatWasLost takes any bytes once an operator has removed the old ones.
func TestPurgeForgetsWhatWasLost(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	for _, name := range []string{"example.com/a/@v/v1.0.0.zip", "example.com/b/@v/v1.0.0.zip"} {
		mustCommit(t, d, name, "good")
		flip(t, file(d, name), 0, 1)
		wantCorrupt(t, d, name)
	}
	if _, err := d.Purge(t.Context(), "example.com/a/", func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if _, err := d.PurgeObject(t.Context(), "example.com/b/@v/v1.0.0.zip"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"example.com/a/@v/v1.0.0.zip", "example.com/b/@v/v1.0.0.zip"} {
		mustCommit(t, d, name, "other")
	}
}

// TestReplacedIsKept wants the older of two copies in quarantine.
func TestReplacedIsKept(t *testing.T) {
	t.Parallel()
	const name = "example.com/a/@v/v1.0.0.zip"
	d := openTest(t, t.TempDir())
	mustCommit(t, d, name, "older")
	mustCommit(t, d, name, "older")
	if got := files(t, d.quarantine.dir); len(got) != 0 {
		t.Errorf("the same bytes again: quarantine holds %q", got)
	}
	mustCommit(t, d, name, "newer")
	want(t, d, name, "newer")
	got := files(t, d.quarantine.dir)
	if len(got) != 1 {
		t.Fatalf("quarantine holds %q, want the older one", got)
	}
	if data, err := os.ReadFile(filepath.Join(d.quarantine.dir, got[0])); err != nil || string(data) != "older" {
		t.Errorf("quarantine holds %q, %v", data, err)
	}
}

func FuzzLoss(f *testing.F) {
	l := Loss{Entry: Entry{Name: "a", Size: 5, Proof: Proof{H1: "h1:x", Verified: true}, Stored: time.Unix(1, 2).UTC()}, Found: time.Unix(3, 4).UTC()}
	f.Add(l.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeLoss("a", b)
		if err != nil {
			return
		}
		if again, err := decodeLoss("a", l.encode()); err != nil || again != l {
			t.Errorf("%+v becomes %+v, %v", l, again, err)
		}
	})
}
