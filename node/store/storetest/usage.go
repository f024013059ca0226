package storetest

import (
	"testing"

	"github.com/ringmod/ringmod/node/store"
)

func testUsage(t *testing.T, s store.Store) {
	used, ok := s.(interface{ Usage() store.Usage })
	if !ok {
		t.Fatal("no method Usage")
	}
	const a, b = "example.com/a/@v/v1.0.0.mod", "example.com/b/@v/v1.0.0.mod"
	steps := []struct {
		name           string
		do             func()
		objects, bytes int64
	}{
		{"empty", func() {}, 0, 0},
		{"one", func() { Put(t, s, a, "12345", "") }, 1, 5},
		{"two", func() { Put(t, s, b, "", "") }, 2, 5},
		{"replaced", func() { Put(t, s, a, "123", "") }, 2, 3},
		{"aborted", func() {
			if p, err := s.Create("example.com/c/@v/v1.0.0.mod"); err == nil {
				p.Abort()
			}
		}, 2, 3},
		{"removed", func() { _ = s.Remove(a) }, 1, 0},
		{"removed again", func() { _ = s.Remove(a) }, 1, 0},
	}
	for _, step := range steps {
		step.do()
		if got := used.Usage(); got.Objects != step.objects || got.Bytes != step.bytes {
			t.Errorf("%s: got %d objects with %d bytes, want %d with %d", step.name, got.Objects, got.Bytes, step.objects, step.bytes)
		}
	}
}
