package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/store"
)

func walk(t *testing.T, s store.Store, prefix string) []string {
	t.Helper()
	var names []string
	err := s.Walk(t.Context(), prefix, func(e store.Entry) bool {
		names = append(names, e.Name)
		return true
	})
	if err != nil {
		t.Errorf("Walk(%q): %v", prefix, err)
	}
	return names
}

func testWalk(t *testing.T, s store.Store) {
	var all []string
	var wg sync.WaitGroup
	for i := range 600 {
		name := fmt.Sprintf("example.com/m%d/@v/v1.0.%d.mod", i%7, i)
		all = append(all, name)
		if i%8 == 7 {
			wg.Wait()
		}
		wg.Go(func() { Put(t, s, name, name, "h1:"+name) })
	}
	wg.Wait()
	slices.Sort(all)
	for _, prefix := range []string{"", "example.com/m3/", "example.com/m3", "example.com/m6/@v/v1.0.6.mod", "x"} {
		var want []string
		for _, name := range all {
			if strings.HasPrefix(name, prefix) {
				want = append(want, name)
			}
		}
		if got := walk(t, s, prefix); !slices.Equal(got, want) {
			t.Errorf("Walk(%q) visits %d names, want %d", prefix, len(got), len(want))
		}
	}
}

func testWalkStops(t *testing.T, s store.Store) {
	for _, name := range []string{"a/1", "a/2", "a/3"} {
		Put(t, s, name, "", "")
	}
	visits := 0
	err := s.Walk(t.Context(), "", func(e store.Entry) bool {
		visits++
		if err := s.Remove(e.Name); err != nil { // visit may use the store
			t.Error(err)
		}
		return visits < 2
	})
	if visits != 2 || err != nil {
		t.Errorf("Walk: %d visits, %v, want 2", visits, err)
	}
}

func testCancelled(t *testing.T, s store.Store) {
	Put(t, s, "a/1", "", "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := s.Walk(ctx, "", func(store.Entry) bool { return true })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Walk: %v, want context.Canceled", err)
	}
}

// testConcurrent lets writers, removers and readers meet on a few names. What a
// reader gets must always be one of the values, whole, under its own entry.
func testConcurrent(t *testing.T, s store.Store) {
	const names, rounds = 4, 25
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range rounds {
				name := fmt.Sprintf("example.com/a/@v/v1.0.%d.zip", (g+i)%names)
				switch {
				case g < 3:
					Put(t, s, name, strings.Repeat(fmt.Sprint(g), 1000*(i+1)), "")
				case g == 3 && i%5 == 0:
					if err := s.Remove(name); err != nil {
						t.Error(err)
					}
				default:
					_, _, err := Get(t, s, name)
					var corrupt *store.CorruptError
					if err != nil && (!errors.Is(err, fs.ErrNotExist) || errors.As(err, &corrupt)) {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func testDocuments(t *testing.T, s store.Store, docs store.Documents) {
	const name = "example.com/a/@v/list"
	if _, err := docs.Document(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Document: %v, want fs.ErrNotExist", err)
	}
	if _, err := docs.Document("../a"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("Document: %v, want fs.ErrInvalid", err)
	}
	if err := docs.PutDocument("a/../../b", store.Document{}); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("PutDocument: %v, want fs.ErrInvalid", err)
	}
	long := strings.Repeat("v1.0.0\n", 50_000)
	for _, want := range []store.Document{
		{Body: []byte("v1.0.0\n"), Fetched: time.Now(), ETag: `"e"`, LastModified: "Mon", Source: "proxy.example"},
		{},
		{Body: []byte(long), Fetched: time.Unix(1, 999)},
	} {
		body := bytes.Clone(want.Body)
		if err := docs.PutDocument(name, want); err != nil {
			t.Fatal(err)
		}
		clear(want.Body) // the store has its own
		got, err := docs.Document(name)
		if err != nil || !bytes.Equal(got.Body, body) || !got.Fetched.Equal(want.Fetched) ||
			got.ETag != want.ETag || got.LastModified != want.LastModified || got.Source != want.Source {
			t.Errorf("Document = %.60q…, %v, want %.60q…", fmt.Sprint(got), err, fmt.Sprint(want))
		}
		clear(got.Body) // and so have we
		if again, _ := docs.Document(name); !bytes.Equal(again.Body, body) {
			t.Errorf("Body has changed with the one that was handed out")
		}
	}
	WantAbsent(t, s, name)
	if got := walk(t, s, ""); len(got) != 0 {
		t.Errorf("Walk visits %q, want no document", got)
	}
}
