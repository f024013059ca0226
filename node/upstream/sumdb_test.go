package upstream_test

import (
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

const (
	supported = "sumdb/sum.upstream.test/supported"
	lookup    = "sumdb/sum.upstream.test/lookup/example.com/!big@v1.0.0-!r!c1"
)

// TestWayToSumdb is the table of cmd/go's initBase: A and B are entries whose
// answer to "supported" is given, D is the database itself.
func TestWayToSumdb(t *testing.T) {
	t.Parallel()
	tests := []struct {
		list, statuses string
		asked          string // of two lookups: A, B for supported, a, b, d for the lookup
		reason         cache.Reason
		text           string
	}{
		{"A,B", "200 200", "Aaa", 0, ""},
		{"A,B", "404 200", "ABbb", 0, ""},
		{"A,B", "410 404", "ABdd", 0, ""},
		{"A,direct", "404", "Add", 0, ""},
		{"A,off", "404", "Add", 0, ""},
		{"direct", "", "dd", 0, ""},
		{"A,B", "500 200", "AA", cache.Broken, "A says 500"},
		{"A|B", "500 200", "ABbABb", 0, ""},
		{"A|B", "500 404", "ABAB", cache.Broken, "A says 500"},
		{"A|direct", "500", "AdAd", 0, ""},
		{"A|off", "500", "AA", cache.Broken, "A says 500"},
		{"off", "", "", cache.NotCached, "upstream is off"},
		{"F,A", "200", "Aaa", 0, ""},
	}
	for _, test := range tests {
		t.Run(test.list+" "+test.statuses, func(t *testing.T) {
			t.Parallel()
			var trace syncBuffer
			db := upstreamtest.New(t, mods...)
			named := func(name string, s *upstreamtest.Server) string {
				return serve(t, func(w http.ResponseWriter, r *http.Request) {
					if strings.HasSuffix(r.URL.Path, "/supported") {
						name = strings.ToUpper(name)
					} else {
						name = strings.ToLower(name)
					}
					_, _ = trace.Write([]byte(name))
					s.ServeHTTP(w, r)
				})
			}
			replace := []string{"F", "file://" + t.TempDir()[:4]}
			for i, status := range strings.Fields(test.statuses) {
				name := "AB"[i : i+1]
				s := upstreamtest.New(t, mods...)
				if code := map[string]int{"404": 404, "410": 410, "500": 500}[status]; code != 0 {
					s.Fault(supported, upstreamtest.Fault{Status: code, Body: name + " says " + status})
				}
				replace = append(replace, name, named(name, s))
			}
			direct, err := url.Parse(named("d", db) + "/direct/" + db.SumdbName())
			if err != nil {
				t.Fatal(err)
			}
			c := client(t, upstream.Config{List: strings.NewReplacer(replace...).Replace(test.list)})
			for range 2 {
				resp, err := c.FetchSumdb(t.Context(), parse(t, lookup), direct)
				if test.text != "" {
					checkError(t, err, test.reason, test.text)
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				data := readAll(t, resp.Body)
				if !strings.Contains(data, "example.com/Big v1.0.0-RC1/go.mod h1:") {
					t.Errorf("lookup answered %q", data)
				}
			}
			if got := trace.String(); got != test.asked {
				t.Errorf("asked %q, want %q", got, test.asked)
			}
		})
	}
}

func TestSumdbOperations(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	c := client(t, upstream.Config{List: s.URL})
	for name, want := range map[string]string{
		supported:                        "",
		"sumdb/sum.upstream.test/latest": "go.sum database tree\n",
		lookup:                           "example.com/Big v1.0.0-RC1 h1:",
	} {
		if got, err := read(t, c, name); err != nil || !strings.Contains(got, want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got, err := read(t, c, "sumdb/sum.upstream.test/tile/8/0/000.p/1"); err != nil || len(got) != 32 {
		t.Errorf("tile: %d bytes, %v", len(got), err)
	}
	_, err := read(t, c, "sumdb/sum.upstream.test/lookup/example.com/none@v1.0.0")
	checkError(t, err, cache.NotFound, "")
	if got := s.Count("/supported"); got != 1 {
		t.Errorf("asked for the way %d times, want 1", got)
	}
}

// TestSumdbIsHTTPSByDefault has no server: the error tells where it went.
func TestSumdbIsHTTPSByDefault(t *testing.T) {
	t.Parallel()
	c := client(t, upstream.Config{List: "direct", Timeouts: upstream.Timeouts{Retry: time.Millisecond}})
	_, err := read(t, c, "sumdb/sum.upstream.test/latest")
	checkError(t, err, cache.Broken, "refusing to connect to sum.upstream.test:443")
}

func TestWayIsLookedForOnce(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	c := client(t, upstream.Config{List: s.URL})
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			if _, err := read(t, c, lookup); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := s.Count("/supported"); got != 1 {
		t.Errorf("asked for the way %d times, want 1", got)
	}
}
