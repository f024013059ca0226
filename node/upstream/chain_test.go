package upstream_test

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

// TestChain is the table of cmd/go's TryProxies. In a list, A, B and C stand for
// upstreams of which a status is given, F for a folder without the module.
func TestChain(t *testing.T) {
	t.Parallel()
	tests := []struct {
		list, statuses string // statuses of A, B, C
		asked          string
		reason         cache.Reason // of the error; ignored with text ""
		text           string
	}{
		{"A,B", "200 200", "A", 0, ""},
		{"A,B", "404 200", "AB", 0, ""},
		{"A,B", "410 200", "AB", 0, ""},
		{"A|B", "404 200", "AB", 0, ""},
		{"A,B", "500 200", "A", cache.Broken, "500"},
		{"A|B", "500 200", "AB", 0, ""},
		{"A|B", "403 200", "AB", 0, ""},
		{"A,B", "403 200", "A", cache.Denied, "403"},
		{"A,B", "404 404", "AB", cache.NotFound, "B says 404"},
		{"A,B", "410 404", "AB", cache.Gone, "A says 410"},
		{"A,B", "404 410", "AB", cache.Gone, "B says 410"},
		{"A,B", "404 500", "AB", cache.Broken, "500"},
		{"A|B", "500 404", "AB", cache.Broken, "A says 500"},
		{"A|B", "403 500", "AB", cache.Broken, "B says 500"},
		{"A|B", "500 403", "AB", cache.Denied, "B says 403"},
		{"A|B,C", "500 404 404", "ABC", cache.Broken, "A says 500"},
		{"A|B,C", "500 403 200", "AB", cache.Denied, "B says 403"},
		{"A|B,C", "500 404 200", "ABC", 0, ""},
		{"A,off", "404", "A", cache.NotFound, "A says 404"},
		{"A|off", "500", "A", cache.Broken, "A says 500"},
		{"off", "", "", cache.NotCached, "upstream is off"},
		{"", "", "", cache.NotCached, "upstream is off"},
		{"off,A", "200", "", cache.NotCached, "upstream is off"},
		{"direct", "", "", cache.Broken, "is for nodes"},
		{"direct,A", "200", "", cache.Broken, "is for nodes"},
		{"A,direct", "404", "A", cache.NotFound, "A says 404 (version control, \"direct\", was not asked)"},
		{"A,direct", "410", "A", cache.Gone, "was not asked"},
		{"A,direct", "500", "A", cache.Broken, "A says 500"},
		{"A|direct", "500", "A", cache.Broken, "A says 500"},
		{"F,A", "200", "A", 0, ""},
		{"F,A", "404", "A", cache.NotFound, "A says 404"},
		{"F", "", "", cache.NotFound, "not found: " + mod},
		{"M,A", "200", "", cache.Broken, "the folder is not there"},
		{"M|A", "200", "A", 0, ""},
		{" A , B ", "404 200", "AB", 0, ""},
		{"A,,B", "404 200", "AB", 0, ""},
	}
	folder := t.TempDir()
	for _, test := range tests {
		t.Run(test.list+" "+test.statuses, func(t *testing.T) {
			t.Parallel()
			var servers []*upstreamtest.Server
			replace := []string{"F", "file://" + folder, "M", "file:///nowhere/at/all"}
			for i, status := range strings.Fields(test.statuses) {
				name := "ABC"[i : i+1]
				s := upstreamtest.New(t, mods...)
				if code := map[string]int{"404": 404, "410": 410, "403": 403, "500": 500}[status]; code != 0 {
					s.Fault("", upstreamtest.Fault{Status: code, Body: name + " says " + status})
				}
				servers = append(servers, s)
				replace = append(replace, name, s.URL)
			}
			c := client(t, upstream.Config{List: strings.NewReplacer(replace...).Replace(test.list)})
			got, err := read(t, c, mod)
			if test.text != "" {
				checkError(t, err, test.reason, test.text)
			} else if err != nil || got != "module example.com/a\n" {
				t.Errorf("got %q, %v", got, err)
			}
			asked := ""
			for i, s := range servers {
				asked += strings.Repeat("ABC"[i:i+1], len(s.Requests()))
			}
			if asked != test.asked {
				t.Errorf("asked %q, want %q", asked, test.asked)
			}
		})
	}
}

func TestListsAreChecked(t *testing.T) {
	t.Parallel()
	tests := []struct{ list, want string }{
		{",", "upstream list is not empty, but contains no entries"},
		{" | ", "contains no entries"},
		{"https://ok.test,foo", "upstream entry 2 (foo): no scheme"},
		{"/srv/proxy", "no scheme"},
		{"ftp://host.test/x", "upstream entry 1 (ftp://host.test/…): scheme must be"},
		{"file://host/x", "only a path"},
		{"file:///x?y=secret", "only a path"},
		{"https://", "no host"},
		{"https:/host.test", "no host"},
		{"https://me:secret@ho st.test", "upstream entry 1 (https://ho st.test): not a valid URL"},
		{"https://me:secret%zz@host.test/a", "upstream entry 1 (https://host.test/…): not a valid URL"},
		{"https://me:se/cret@host.test/a", "upstream entry 1 (https://host.test/…): not a valid URL"},
		{"http://me:secret@host.test", "upstream entry 1 (http://host.test): credentials would be sent unencrypted: use https"},
	}
	for _, test := range tests {
		_, err := upstream.New(upstream.Config{List: test.list})
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "cret@") {
			t.Errorf("%q: %v, want %q", test.list, err, test.want)
		}
	}
}

func TestEntriesAreRedacted(t *testing.T) {
	t.Parallel()
	c := client(t, upstream.Config{List: "https://me:secret@a.test/secret/go | b.test:8443/?token=secret,http://me:secret@localhost/,file:///srv/go,direct,ignored"})
	got := strings.Join(c.Entries(), " ")
	want := "https://a.test/… https://b.test:8443/… http://localhost file:///srv/go direct"
	if got != want || c.Offline() {
		t.Errorf("got %s, want %s", got, want)
	}
	if c := client(t, upstream.Config{List: "off"}); !c.Offline() {
		t.Error("off is not offline")
	}
}

func TestPrivateModulesNeverLeave(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	folder := t.TempDir()
	tests := []struct {
		list   string
		target string
		reason cache.Reason
		text   string
	}{
		{"P", mod, cache.Broken, "fetching example.com/a from version control is for nodes"},
		{"P|P", zip, cache.Broken, "is for nodes"},
		{"P,direct", list, cache.Broken, "is for nodes"},
		{"P,off", mod, cache.NotCached, "upstream is off"},
		{"P,F", mod, cache.NotFound, "was not asked"},
		{"F,P", "example.com/a/@latest", cache.NotFound, "was not asked"},
		{"P", "sumdb/" + s.SumdbName() + "/lookup/example.com/a@v1.0.0", cache.Denied, "is private"},
	}
	for _, test := range tests {
		list := strings.NewReplacer("P", s.URL, "F", "file://"+folder).Replace(test.list)
		c := client(t, upstream.Config{List: list, Private: "other.test,example.com/a"})
		_, err := read(t, c, test.target)
		checkError(t, err, test.reason, test.text)
	}
	if got := s.Requests(); len(got) != 0 {
		t.Errorf("private modules left: %q", got)
	}
	c := client(t, upstream.Config{List: s.URL, Private: "example.com/a"})
	if _, err := read(t, c, "example.com/!big/@v/list"); err != nil {
		t.Errorf("a public module: %v", err)
	}
}

func TestFolder(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	folder := filepath.Join(t.TempDir(), "a folder")
	put := func(name string, data []byte) {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put(zip, s.Zip("example.com/a", "v1.0.0"))
	put("example.com/!big/@v/v1.0.0-!r!c1.mod", s.Mod("example.com/Big", "v1.0.0-RC1"))
	put("example.com/a/@v/v1.1.0.info", make([]byte, 1<<20+1))
	put("example.com/a/@v/list/not-a-file", nil)
	put("example.com/b", nil)
	c := client(t, upstream.Config{List: (&url.URL{Scheme: "file", Path: folder}).String(), Private: "example.com"})
	if got, err := read(t, c, zip); err != nil || got != string(s.Zip("example.com/a", "v1.0.0")) {
		t.Errorf("zip: %d bytes, %v", len(got), err)
	}
	if got, err := read(t, c, "example.com/!big/@v/v1.0.0-!r!c1.mod"); err != nil || got != "module example.com/Big\n" {
		t.Errorf("escaped: %q, %v", got, err)
	}
	for name, want := range map[string]cache.Reason{
		mod:                            cache.NotFound,
		"example.com/b/@v/list":        cache.NotFound,
		list:                           cache.Broken,
		"example.com/a/@v/v1.1.0.info": cache.Broken,
	} {
		_, err := read(t, c, name)
		e := checkError(t, err, want, "")
		if e.Source != "file://"+folder {
			t.Errorf("source %q", e.Source)
		}
	}
	resp, err := c.Fetch(t.Context(), parse(t, zip), upstream.Validators{})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	again, err := c.Fetch(t.Context(), parse(t, zip), resp.Validators)
	if err != nil || !again.NotModified {
		t.Errorf("with its validators: %+v, %v", again, err)
	}
}

func TestFileThatShrinks(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path := filepath.Join(folder, mod)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("module example.com/a\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := client(t, upstream.Config{List: "file://" + folder})
	resp, err := c.Fetch(t.Context(), parse(t, mod), upstream.Validators{})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := os.Truncate(path, 3); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := resp.Body.Read(buf)
	for err == nil {
		n, err = resp.Body.Read(buf)
	}
	checkError(t, err, cache.Broken, "became shorter")
	_ = n
}

func TestConditionalRequests(t *testing.T) {
	t.Parallel()
	a, b := upstreamtest.New(t, mods...), upstreamtest.New(t, mods...)
	only := client(t, upstream.Config{List: a.URL})
	first, err := only.Fetch(t.Context(), parse(t, list), upstream.Validators{})
	if err != nil {
		t.Fatal(err)
	}
	first.Body.Close()
	tests := []struct {
		name string
		list string
		v    upstream.Validators
		want bool
	}{
		{"both", a.URL, first.Validators, true},
		{"etag", a.URL, upstream.Validators{ETag: first.ETag}, true},
		{"another etag", a.URL, upstream.Validators{ETag: `"x"`, LastModified: first.LastModified}, false},
		{"time", a.URL, upstream.Validators{LastModified: first.LastModified}, true},
		{"etag, two entries", a.URL + "," + b.URL, first.Validators, true},
		{"time, two entries", a.URL + "," + b.URL, upstream.Validators{LastModified: first.LastModified}, false},
	}
	for _, test := range tests {
		c := client(t, upstream.Config{List: test.list, PerHost: 1})
		for range 3 { // a slot that is not given back would show
			resp, err := c.Fetch(t.Context(), parse(t, list), test.v)
			if err != nil || resp.NotModified != test.want {
				t.Fatalf("%s: %+v, %v, want NotModified %v", test.name, resp, err, test.want)
			}
			resp.Body.Close()
		}
	}
}

func TestFetchRefusesOtherTargets(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	c := client(t, upstream.Config{List: s.URL})
	_, err := c.Fetch(t.Context(), parse(t, "sumdb/x.test/latest"), upstream.Validators{})
	checkError(t, err, cache.Malformed, "not a file of a module")
	_, err = c.FetchSumdb(context.Background(), parse(t, mod), nil) //nolint:usetesting // nothing is sent
	checkError(t, err, cache.Malformed, "not a request to a checksum database")
}
