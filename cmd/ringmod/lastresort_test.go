package main

import (
	"io"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

// What an upstream says to browsers is no file of a module.
func TestLastResortChecksForm(t *testing.T) {
	t.Parallel()
	server := upstreamtest.New(t, upstreamtest.Module{Path: "example.com/m", Version: "v1.0.0"})
	client, err := upstream.New(upstream.Config{List: server.URL, Dial: upstreamtest.Dial})
	if err != nil {
		t.Fatal(err)
	}
	resort := lastResort{outside: client, heard: func() bool { return true }, private: func() string { return "corp.example.com" }}
	names := []string{"/@v/list", "/@latest", "/@v/v1.0.0.info", "/@v/v1.0.0.mod"}
	for _, name := range append(names, "/@v/v1.0.0.zip") {
		if data, err := getLast(t, resort, "example.com/m"+name); err != nil || len(data) == 0 {
			t.Errorf("%s: got %q, %v", name, data, err)
		}
	}
	for _, name := range []string{"corp.example.com/m/@v/v1.0.0.zip", "sumdb/sum.golang.org/lookup/corp.example.com/m@v1.0.0"} {
		if _, err := getLast(t, resort, name); cache.ReasonOf(err) != cache.Busy || strings.Contains(strings.Join(server.Requests(), " "), "corp.") {
			t.Errorf("%s: got %v, want that it waits for a node", name, err)
		}
	}
	server.Fault("", upstreamtest.Fault{Body: "please sign in to the wireless network"})
	for _, name := range names {
		if data, err := getLast(t, resort, "example.com/m"+name); cache.ReasonOf(err) != cache.Broken {
			t.Errorf("%s: got %q, %v, want a broken upstream", name, data, err)
		}
	}
}

func getLast(t *testing.T, resort lastResort, name string) ([]byte, error) {
	t.Helper()
	parsed, err := target.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	obj, err := resort.Get(t.Context(), cache.Request{Target: parsed})
	if err != nil {
		return nil, err
	}
	defer obj.Body.Close()
	return io.ReadAll(obj.Body)
}
