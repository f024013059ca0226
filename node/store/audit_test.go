package store

import (
	"errors"
	"io/fs"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestFindings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openTest(t, dir)
	at := time.Now().UTC().Truncate(time.Second)
	a := Finding{Name: "a/@v/v1.0.0.info", Old: "1", New: "2", Repository: "r", Ref: "f", Source: "s", Text: "t", First: at.Add(-time.Hour), Looked: at}
	b := Finding{Name: "b/@v/v1.0.0.info", Old: strings.Repeat("x", 10_000), First: at, Looked: at, Closed: at}
	for _, f := range []Finding{a, b} {
		if err := d.PutFinding(f); err != nil {
			t.Fatal(err)
		}
	}
	d.Close()
	d = openTest(t, dir)
	b.Old = b.Old[:maxFindingText]
	var got []Finding
	for from, first := "", true; first || from != ""; first = false {
		some, next, err := d.Findings(from, 1)
		if err != nil {
			t.Fatal(err)
		}
		got, from = append(got, some...), next
	}
	if want := []Finding{a, b}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if !got[0].IsOpen() || got[1].IsOpen() {
		t.Error("the closed finding is open, or the other way round")
	}
	if err := d.DropFinding(a.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Finding(a.Name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after it was dropped: %v", err)
	}
	if _, err := d.Purge(t.Context(), "b/", func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Finding(b.Name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after a purge: %v", err)
	}
}

func TestUnaudited(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	for _, name := range []string{"a/@v/v1.0.0.info", "a/@v/v1.0.0.mod", "b/@v/v1.0.0.info"} {
		if err := commit(t, d, name, content(name, 10)); err != nil {
			t.Fatal(err)
		}
	}
	later := time.Now().Add(time.Hour).Truncate(time.Second)
	names := func() (got []string) {
		b, err := d.Unaudited(t.Context(), later, 10, func(name string) bool { return strings.HasSuffix(name, ".info") })
		if err != nil {
			t.Fatal(err)
		}
		for _, each := range b.Oldest {
			got = append(got, each.Name)
		}
		return got
	}
	if got, want := names(), []string{"a/@v/v1.0.0.info", "b/@v/v1.0.0.info"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := d.Audited(later, "a/@v/v1.0.0.info"); err != nil {
		t.Fatal(err)
	}
	if got, want := names(), []string{"b/@v/v1.0.0.info"}; !reflect.DeepEqual(got, want) {
		t.Errorf("after an audit: got %q, want %q", got, want)
	}
	if b, err := d.Unchecked(t.Context(), later, 10); err != nil || b.Objects != 3 {
		t.Errorf("an audit counts as a check: %v, %v", b, err)
	}
}

func TestUsed(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	const name = "a/@v/v1.0.0.info"
	if err := commit(t, d, name, content(name, 10)); err != nil {
		t.Fatal(err)
	}
	if last, recent := d.Used(name); !last.IsZero() || recent != 0 {
		t.Errorf("before it was used: %v, %v", last, recent)
	}
	for i := range 4 {
		o, err := d.Open(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		o.File.Close()
		if i == 1 {
			if err := d.flushUses(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if last, recent := d.Used("a/@v/v1.0.0.zip"); time.Since(last) > time.Minute || recent < 3.9 || recent > 4.1 {
		t.Errorf("its version was used 4 times: %v, %v", last, recent)
	}
}

func FuzzFinding(f *testing.F) {
	f.Add((&Finding{Old: "1", New: "2", First: time.Now(), Looked: time.Now(), Closed: time.Now()}).encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		first, err := decodeFinding("n", data)
		if err != nil {
			return
		}
		for _, s := range first.strings() {
			*s = (*s)[:min(len(*s), maxFindingText)]
		}
		again, err := decodeFinding("n", first.encode())
		if err != nil || !reflect.DeepEqual(first, again) {
			t.Errorf("%+v became %+v, %v", first, again, err)
		}
	})
}
