package storetest

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/ringmod/ringmod/node/store"
)

func testStat(t *testing.T, s store.Store) {
	const name = "example.com/a/@v/v1.0.0.mod"
	want := Put(t, s, name, "module a", "h1:x")
	got, err := s.Stat(name)
	if err != nil || got.Name != want.Name || got.Size != want.Size || got.SHA256 != want.SHA256 || got.H1 != want.H1 || !got.Stored.Equal(want.Stored) {
		t.Errorf("Stat = %+v, %v, want %+v", got, err, want)
	}
	for _, absent := range []string{"example.com/b/@v/v1.0.0.mod", "example.com/a/@v", name + "/x"} {
		if _, err := s.Stat(absent); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat(%q): %v, want fs.ErrNotExist", absent, err)
		}
	}
	if err := s.Remove(name); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat after Remove: %v, want fs.ErrNotExist", err)
	}
}
