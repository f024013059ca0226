package verify

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
)

var aheadModule = module.Version{Path: "example.com/m", Version: "v1.2.3"}

// file writes data where CheckZip and HashZip can find it.
func file(t testing.TB, data []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "m.zip"))
	if err == nil {
		_, err = f.Write(data)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// plain is what Zip says without anything having been hashed ahead.
func plain(ctx context.Context, v *Verifier, f io.ReaderAt, size int64) (string, error) {
	d := v.Follow(ctx, f)
	defer d.Close()
	return d.Zip(aheadModule, size)
}

// sequential returns a Download that has hashed ahead, on this goroutine, all that
// it can of a file that is there.
func sequential(ctx context.Context, v *Verifier, f io.ReaderAt, size int64) *Download {
	d := v.Follow(ctx, f)
	d.started = true
	d.there.Store(size)
	d.whole.Store(true)
	d.run()
	return d
}

// arriving is what Zip says of a file that has come in steps, and how many
// entries were hashed ahead.
func arriving(ctx context.Context, v *Verifier, f io.ReaderAt, size int64, step func() int64) (h1 string, ahead int, err error) {
	d := v.Follow(ctx, f)
	defer d.Close()
	for at := int64(0); at < size; at = min(size, at+step()) {
		d.Advance(at)
		d.rouse()
	}
	h1, err = d.Zip(aheadModule, size)
	d.Close()
	return h1, len(d.entries), err
}

// same wants the hash and the error to be the same whether a zip comes in steps
// or is there at once, and those of the go command where it passes.
func same(t *testing.T, what string, data []byte, seed uint64) (ahead int, err error) {
	t.Helper()
	f := file(t, data)
	rnd := rand.New(rand.NewPCG(seed, 1))
	v := New(1)
	want, wantErr := plain(t.Context(), v, f, int64(len(data)))
	got, ahead, err := arriving(t.Context(), v, f, int64(len(data)), func() int64 { return 1 + rnd.Int64N(int64(len(data))) })
	if got != want || fmt.Sprint(err) != fmt.Sprint(wantErr) {
		t.Errorf("%s: coming in steps: %q, %v, at once: %q, %v", what, got, err, want, wantErr)
	}
	if err != nil {
		return ahead, err
	}
	if want, err := dirhash.HashZip(f.Name(), dirhash.Hash1); got != want || err != nil {
		t.Errorf("%s: %q, HashZip = %q, %v", what, got, want, err)
	}
	return ahead, nil
}

func text(n int) string { return strings.Repeat("package verify // ", n) }

func TestDownloadIsZip(t *testing.T) {
	t.Parallel()
	keep := func([][]byte) {}
	deflated := func(descriptor string) []part {
		p := part{content: text(500), method: zip.Deflate, descriptor: descriptor}
		empty := part{method: zip.Deflate, descriptor: descriptor}
		return []part{p, empty, p, p}
	}
	first := deflated("")
	tests := []struct {
		name    string
		data    []byte
		ahead   int // entries that can be hashed while they come
		refused bool
	}{
		{"nothing", assemble(nil, keep, "", ""), 0, false},
		{"lengths known", assemble(first, keep, "", ""), 4, false},
		{"signed descriptors", assemble(deflated("signed"), keep, "", ""), 4, false},
		{"bare descriptors", assemble(deflated("bare"), keep, "", ""), 4, false},
		{"signed descriptors of zip64", assemble(deflated("signed64"), keep, "", ""), 4, false},
		{"bare descriptors of zip64", assemble(deflated("bare64"), keep, "", ""), 4, false},
		{"lengths of zip64", assemble([]part{{content: text(9), method: zip.Deflate, wide: true}, {content: "b", wide: true}}, keep, "", ""), 2, false},
		{"stored", assemble([]part{{content: text(9)}, {}, {content: "c"}}, keep, "", ""), 3, false},
		{"stored, lengths unknown", assemble([]part{{content: text(9), descriptor: "signed"}, {content: "b"}}, keep, "", ""), 0, false},
		{"stored and empty, lengths unknown", assemble([]part{{descriptor: "signed"}, {content: "b"}}, keep, "", ""), 2, false},
		{"directory in another order", assemble(first, func(d [][]byte) { slices.Reverse(d) }, "", ""), 4, false},
		{"the same place twice", assemble(first, func(d [][]byte) { copy(d[2][42:46], d[0][42:46]) }, "", ""), 4, false},
		{"entries that the directory hides", assemble([]part{first[0], {content: "x", hidden: true}, first[0]}, keep, "", ""), 3, false},
		{"a gap", assemble([]part{first[0], {content: "b", before: "PK\x03"}}, keep, "", ""), 1, false},
		{"a gap at the start", assemble([]part{{content: "b", before: "#!/bin/sh"}}, keep, "", ""), 0, false},
		{"something before", assemble(first, keep, "#!/bin/sh\n", ""), 0, false},
		{"something behind", assemble(first, keep, "", "comment"), 4, false},
		{"slack behind the data", assemble([]part{first[0], {content: text(9), method: zip.Deflate, slack: "??"}, first[0]}, keep, "", ""), 2, false},
		{"larger than a window", assemble([]part{first[0], {content: noise(2 * windowSize), method: zip.Deflate}, first[0]}, keep, "", ""), 3, false},
		{"lengths beyond the end", assemble(first, func(d [][]byte) { copy(d[1][20:24], "\xfe\xff\xff\xff") }, "", ""), 4, false},
		{"unknown method", assemble([]part{first[0], {content: "b", method: 99}}, keep, "", ""), 1, true},
		{"wrong CRC in the directory", assemble(first, func(d [][]byte) { d[2][16] ^= 1 }, "", ""), 4, true},
		{"wrong length in the directory", assemble(first, func(d [][]byte) { d[2][24] ^= 1 }, "", ""), 4, true},
		{"descriptor only in the directory", assemble(first, func(d [][]byte) { d[2][8] |= described }, "", ""), 4, true},
		{"descriptor only in the entry", assemble(deflated("signed"), func(d [][]byte) { d[2][8] = 0 }, "", ""), 4, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ahead := 0
			for seed := range uint64(8) {
				got, err := same(t, test.name, test.data, seed)
				if ahead = max(ahead, got); (err != nil) != test.refused {
					t.Fatalf("Zip: %v", err)
				}
			}
			if ahead > test.ahead {
				t.Errorf("%d entries hashed ahead, want %d", ahead, test.ahead)
			}
			d := sequential(t.Context(), New(1), bytes.NewReader(test.data), int64(len(test.data)))
			if got := len(d.entries); got != test.ahead {
				t.Errorf("%d entries read in sequence, want %d", got, test.ahead)
			}
		})
	}
}

// TestDownloadOfAnything mixes all that may be mixed.
func TestDownloadOfAnything(t *testing.T) {
	t.Parallel()
	descriptors := []string{"", "", "signed", "bare", "signed64", "bare64"}
	for seed := range uint64(80) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		parts := make([]part, rnd.IntN(40))
		for i := range parts {
			p := part{content: text(rnd.IntN(1 << rnd.IntN(13))), descriptor: descriptors[rnd.IntN(len(descriptors))]}
			if rnd.IntN(4) > 0 {
				p.method = zip.Deflate
			}
			p.wide = p.descriptor == "" && rnd.IntN(4) == 0
			p.hidden = rnd.IntN(20) == 0
			if rnd.IntN(60) == 0 {
				p.before = "gap"
			}
			parts[i] = p
		}
		data := assemble(parts, func(d [][]byte) {
			rnd.Shuffle(len(d), func(i, k int) { d[i], d[k] = d[k], d[i] })
		}, "", "")
		if _, err := same(t, fmt.Sprintf("seed %d", seed), data, seed); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		if len(data) > 0 { // and one wrong bit
			data[rnd.IntN(len(data))] ^= 1 << rnd.IntN(8)
			_, _ = same(t, fmt.Sprintf("seed %d, flipped", seed), data, seed)
		}
	}
}

// TestDownloadOfRealZips takes what the module cache of this machine has.
func TestDownloadOfRealZips(t *testing.T) {
	t.Parallel()
	home, _ := os.UserHomeDir()
	names, _ := filepath.Glob(filepath.Join(home, "go/pkg/mod/cache/download/golang.org/x/*/@v/*.zip"))
	v := New(2)
	for _, name := range names[:min(len(names), 8)] {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		size, _ := f.Seek(0, io.SeekEnd)
		d := v.Follow(t.Context(), f)
		for at := int64(0); at < size; at += 16 << 10 {
			d.Advance(at)
		}
		version, _ := module.UnescapeVersion(strings.TrimSuffix(filepath.Base(name), ".zip"))
		m := module.Version{Path: "golang.org/x/" + filepath.Base(filepath.Dir(filepath.Dir(name))), Version: version}
		got, err := d.Zip(m, size)
		d.Close()
		want, wantErr := dirhash.HashZip(name, dirhash.Hash1)
		if got != want || err != nil || wantErr != nil {
			t.Errorf("%v: %q, %v, HashZip = %q, %v", m, got, err, want, wantErr)
		}
	}
}

// noise returns n bytes that do not compress.
func noise(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return string(b)
}

// large is a zip that begins to be hashed before it is whole.
func large() []byte {
	var parts []part
	for range 40 {
		parts = append(parts, part{content: noise(8 << 10), method: zip.Deflate, descriptor: "signed"})
	}
	return assemble(parts, func([][]byte) {}, "", "")
}

// hashedAhead waits until d has hashed all that has come, but for a part.
func hashedAhead(t *testing.T, d *Download, n int64) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		d.mu.Lock()
		front := d.front
		d.mu.Unlock()
		if front > n-16<<10 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("at %d of %d bytes after 30 s", front, n)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestDownloadsWaitWithoutSlots wants zips that do not go on to keep nobody from
// computing, and to end when they are closed or cancelled.
func TestDownloadsWaitWithoutSlots(t *testing.T) {
	t.Parallel()
	data := large()
	f := file(t, data)
	v := New(1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var waiting []*Download
	for i := range 64 {
		d := v.Follow(ctx, f)
		defer d.Close()
		d.Advance(batch + int64(i)*1000)
		waiting = append(waiting, d)
	}
	for i, d := range waiting {
		hashedAhead(t, d, batch+int64(i)*1000)
	}
	allFree(t, v, "a slot is held by who waits for bytes")
	want, err := dirhash.HashZip(f.Name(), dirhash.Hash1)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := v.Zip(t.Context(), aheadModule, f, int64(len(data))); got != want || err != nil {
		t.Errorf("Zip beside 64 slow downloads = %q, %v, want %q", got, err, want)
	}
	waiting[0].Close()
	if got, err := waiting[1].Zip(aheadModule, int64(len(data))); got != want || err != nil {
		t.Errorf("Zip of a slow download = %q, %v, want %q", got, err, want)
	}
	cancel()
	for _, d := range waiting[2:] {
		<-d.over
	}
	if _, err := waiting[2].Zip(aheadModule, int64(len(data))); !errors.Is(err, context.Canceled) {
		t.Errorf("Zip of a cancelled download: %v, want %v", err, context.Canceled)
	}
	allFree(t, v, "a slot is lost")
}

// allFree waits until all slots are free: who has just hashed may not have given his back.
func allFree(t *testing.T, v *Verifier, otherwise string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); len(v.slots) != cap(v.slots); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(otherwise)
		}
	}
}

// TestDownloadsTogether wants the meeting of who hashes ahead and who comes from
// the end to miss nothing.
func TestDownloadsTogether(t *testing.T) {
	t.Parallel()
	data := large()
	f := file(t, data)
	want, err := dirhash.HashZip(f.Name(), dirhash.Hash1)
	if err != nil {
		t.Fatal(err)
	}
	v := New(3)
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			got, _, err := arriving(t.Context(), v, f, int64(len(data)), func() int64 { return int64(1000 * (i + 1)) })
			if got != want || err != nil {
				t.Errorf("in steps of %d: %q, %v, want %q", 1000*(i+1), got, err, want)
			}
		})
	}
	group.Wait()
}

// TestDownloadBounds wants what unpacks to too much, or holds too many entries, to
// be left alone.
func TestDownloadBounds(t *testing.T) {
	t.Parallel()
	many := assemble(make([]part, maxAhead+10), func([][]byte) {}, "", "")
	d := sequential(t.Context(), New(1), bytes.NewReader(many), int64(len(many)))
	if got := len(d.entries); got > maxAhead {
		t.Errorf("%d entries kept, the limit is %d", got, maxAhead)
	}
	d = New(1).Follow(t.Context(), bytes.NewReader(nil))
	defer d.Close()
	s := &sequence{d: d, tools: New(1).tools(), left: 1000}
	if err := s.sum(strings.NewReader(text(100)), &ahead{described: true}); !errors.Is(err, errLonger) {
		t.Errorf("beyond the limit: %v, want %v", err, errLonger)
	}
}

// TestDownloadPanics wants a panic of the reader ahead where the caller can meet it.
func TestDownloadPanics(t *testing.T) {
	t.Parallel()
	data := large()
	f := &bomb{ReaderAt: bytes.NewReader(data)}
	d := New(1).Follow(t.Context(), f)
	defer d.Close()
	f.armed = true
	d.Advance(int64(len(data)) - 1)
	<-d.over
	f.armed = false
	defer func() {
		if got := recover(); got != "bomb" {
			t.Errorf("recovered %v, want the reader's panic", got)
		}
	}()
	_, err := d.Zip(aheadModule, int64(len(data)))
	t.Errorf("Zip ended with %v, want a panic", err)
}

type bomb struct {
	io.ReaderAt
	armed bool
}

func (b *bomb) ReadAt(p []byte, off int64) (int, error) {
	if b.armed {
		panic("bomb")
	}
	return b.ReaderAt.ReadAt(p, off)
}

// FuzzDownload wants no panic, and the same answer whether entries are read in
// sequence or by the directory. It runs on one goroutine at a time, because the
// fuzzer minimizes for ever what covers other lines each time.
func FuzzDownload(f *testing.F) {
	keep := func([][]byte) {}
	f.Add(assemble([]part{{content: text(50), method: zip.Deflate, descriptor: "signed"}, {content: "b"}}, keep, "", ""))
	f.Add(assemble([]part{{content: "a", wide: true}, {descriptor: "bare64"}, {content: text(5), method: zip.Deflate}}, keep, "", "!"))
	f.Add(assemble([]part{{content: "a", before: "#"}, {content: "b", hidden: true}}, keep, "#!", ""))
	v := New(1)
	f.Fuzz(func(t *testing.T, data []byte) {
		d := sequential(t.Context(), v, bytes.NewReader(data), int64(len(data)))
		defer d.Close()
		got, err := d.Zip(aheadModule, int64(len(data)))
		want, wantErr := plain(t.Context(), v, bytes.NewReader(data), int64(len(data)))
		if got != want || fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Errorf("in sequence: %q, %v, by the directory: %q, %v", got, err, want, wantErr)
		}
	})
}
