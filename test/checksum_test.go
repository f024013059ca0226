package test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

const (
	csName = "sum.upstream.test"
	csBase = "example.com/m/@v/v1.0.0"
)

// verifying starts ringmod in front of fake and its checksum database.
func verifying(t *testing.T, fake *upstreamtest.Server, dir string, flags ...string) *harness.Process {
	t.Helper()
	return harness.Serve(t, append([]string{
		"--data-dir", dir, "--upstream", fake.URL, "--sumdb", fake.SumdbKey(), "--log-level", "error",
	}, flags...)...)
}

// distrust is a way in which content is not what it should be.
type distrust struct {
	name    string
	prepare func(*upstreamtest.Server)
	heal    func(*upstreamtest.Server) // nil: it cannot be mended
	target  string
	status  int
	text    []string
	cut     bool // the answer may have begun: then it must not end cleanly
}

// TestContentThatDoesNotVerify checks that such content is told from absence,
// says whom not to trust, and leaves nothing behind.
func TestContentThatDoesNotVerify(t *testing.T) {
	t.Parallel()
	fault := func(match string, f upstreamtest.Fault) func(*upstreamtest.Server) {
		return func(s *upstreamtest.Server) { s.Fault(match, f) }
	}
	// The body of another module under our name.
	swap := func(ext string) func(s *upstreamtest.Server) {
		return func(s *upstreamtest.Server) {
			other := map[string][]byte{".zip": s.Zip("example.com/other", "v1.0.0"), ".mod": s.Mod("example.com/other", "v1.0.0")}[ext]
			s.Fault(csBase+ext, upstreamtest.Fault{Corrupt: func([]byte) []byte { return other }})
		}
	}
	lie := func(s *upstreamtest.Server) { s.Lie("example.com/m", "v1.0.0") }
	lieZip := func(s *upstreamtest.Server) { s.LieZip("example.com/m", "v1.0.0") }
	heal := (*upstreamtest.Server).Heal
	oops := upstreamtest.Fault{Status: http.StatusInternalServerError, Body: "database is down"}
	tests := []distrust{
		{name: "zip", prepare: lie, target: ".zip", status: 502, text: []string{"example.com/m@v1.0.0", csName, "mismatch"}},
		{name: "zip only", prepare: lieZip, target: ".zip", status: 502, text: []string{"example.com/m@v1.0.0", csName, "mismatch"}},
		{name: "go.mod", prepare: lie, target: ".mod", status: 502, text: []string{"example.com/m@v1.0.0", csName, "mismatch"}},
		{name: "zip of another module", prepare: swap(".zip"), heal: heal, target: ".zip", status: 502, text: []string{"example.com/m@v1.0.0", "example.com/other"}},
		{name: "go.mod of another module", prepare: swap(".mod"), heal: heal, target: ".mod", status: 502, text: []string{"example.com/m@v1.0.0"}},
		{name: "database fails", prepare: fault("/lookup/", oops), heal: heal, target: ".zip", status: 502, text: []string{"example.com/m@v1.0.0", csName}},
		{name: "database fails for a go.mod", prepare: fault("/lookup/", oops), heal: heal, target: ".mod", status: 502, text: []string{"example.com/m@v1.0.0", csName}},
		{name: "no tiles", prepare: fault("/tile/", oops), heal: heal, target: ".mod", status: 502, text: []string{"example.com/m@v1.0.0", csName}},
		{name: "database denies", prepare: fault("/lookup/", upstreamtest.Fault{Status: 403}), heal: heal, target: ".mod", status: 403, text: []string{"example.com/m@v1.0.0", csName}},
		{name: "database busy", prepare: fault("/lookup/", upstreamtest.Fault{Status: 503, Header: http.Header{"Retry-After": {"600"}}}), target: ".mod", status: 503, text: []string{"example.com/m@v1.0.0"}},
		{name: "version unknown to the database", prepare: fault("/lookup/", upstreamtest.Fault{Status: 404, Body: "not found"}), target: ".mod", status: 502, text: []string{"example.com/m@v1.0.0", csName, "--private"}},
	}
	for _, test := range tests {
		for _, size := range []int64{0, 1 << 20} {
			if size > 0 && test.target != ".zip" {
				continue
			}
			name := test.name
			if size > 0 {
				name, test.cut = name+", large", true
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test.run(t, size)
			})
		}
	}
}

func (d distrust) run(t *testing.T, size int64) {
	t.Helper()
	fake := upstreamtest.New(t,
		upstreamtest.Module{Path: "example.com/m", Version: "v1.0.0", Pad: size},
		upstreamtest.Module{Path: "example.com/other", Version: "v1.0.0", Pad: size})
	d.prepare(fake)
	dir := t.TempDir()
	p := verifying(t, fake, dir)
	url := p.URL() + "/" + csBase + d.target
	for range 2 {
		d.check(t, fake, url)
	}
	for _, file := range filesBelow(t, filepath.Join(dir, "objects")) {
		if strings.Contains(file, "@v") && !strings.Contains(file, "/sumdb/") {
			t.Errorf("stored though it did not verify: %s", file)
		}
	}
	asked := fake.Count(csBase + d.target)
	if asked == 0 {
		t.Error("upstream was not asked; the test shows nothing")
	}
	if d.heal == nil {
		return
	}
	d.heal(fake)
	want := map[string][]byte{".zip": fake.Zip("example.com/m", "v1.0.0"), ".mod": fake.Mod("example.com/m", "v1.0.0")}[d.target]
	got, err := fetch(t, url)
	if err != nil || got.status != http.StatusOK || got.body != string(want) {
		t.Errorf("after healing: %d %.200q, %v, want the file", got.status, got.body, err)
	}
}

func (d distrust) check(t *testing.T, fake *upstreamtest.Server, url string) {
	t.Helper()
	got, err := fetch(t, url)
	if d.cut && err != nil {
		if whole := string(fake.Zip("example.com/m", "v1.0.0")); len(got.body) >= len(whole) {
			t.Errorf("the cut answer holds all %d bytes", len(got.body))
		}
		return
	}
	if err != nil || got.status != d.status {
		t.Fatalf("got %d %.200q, %v, want status %d", got.status, got.body, err, d.status)
	}
	for _, want := range d.text {
		if !strings.Contains(got.body, want) {
			t.Errorf("the text %q does not have %q", got.body, want)
		}
	}
	if strings.Count(got.body, "\n") != 1 || len(got.body) > 648 {
		t.Errorf("the text is not one line that the go command shows: %q", got.body)
	}
	if got, want := got.header.Get("Cache-Control"), "no-store"; got != want {
		t.Errorf("Cache-Control %q, want %q", got, want)
	}
	if got, want := got.header.Get("Content-Type"), "text/plain; charset=utf-8"; got != want {
		t.Errorf("Content-Type %q, want %q", got, want)
	}
}

// TestPrivateModules checks that nobody outside hears of a private module: no
// http upstream, no checksum database, whatever is asked for.
func TestPrivateModules(t *testing.T) {
	t.Parallel()
	m := upstreamtest.Module{Path: "corp.example.com/secret", Version: "v1.0.0"}
	fake := upstreamtest.New(t, m, upstreamtest.Module{Path: "example.com/m", Version: "v1.0.0"})
	folder := t.TempDir()
	files := map[string][]byte{
		"v1.0.0.info": fake.Info(m.Path, m.Version), "v1.0.0.mod": fake.Mod(m.Path, m.Version), "v1.0.0.zip": fake.Zip(m.Path, m.Version), "list": fake.List(m.Path),
	}
	base := filepath.Join(folder, filepath.FromSlash(m.Path), "@v")
	if err := os.MkdirAll(base, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(base, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	p := verifying(t, fake, dir, "--private", "*.example.com", "--upstream", fake.URL+",file://"+folder)

	for range 2 { // from upstream, then from the cache
		for name, want := range files {
			got, err := fetch(t, p.URL()+"/"+m.Path+"/@v/"+name)
			if err != nil || got.status != http.StatusOK || got.body != string(want) {
				t.Errorf("%s: %d %.80q, %v, want the file of the folder", name, got.status, got.body, err)
			}
			if cc := got.header.Get("Cache-Control"); !strings.HasPrefix(cc, "private, max-age=") {
				t.Errorf("%s: Cache-Control %q, want private", name, cc)
			}
		}
	}
	for _, test := range []struct {
		target string
		status int
	}{
		{m.Path + "/@v/v1.9.0.zip", http.StatusNotFound},
		{m.Path + "/@v/v1.9.0.info", http.StatusNotFound},
		{m.Path + "/@v/main.info", http.StatusNotFound},
		{m.Path + "/v2/@v/list", http.StatusNotFound},
		{m.Path + "/@latest", http.StatusNotFound}, // a folder has none
		{"sumdb/" + csName + "/lookup/" + m.Path + "@v1.0.0", http.StatusForbidden},
	} {
		got, err := fetch(t, p.URL()+"/"+test.target)
		if err != nil {
			t.Fatal(err)
		}
		if got.status != test.status {
			t.Errorf("%s: %d %q, want %d", test.target, got.status, got.body, test.status)
		}
		if cc := got.header.Get("Cache-Control"); strings.Contains(cc, "public") {
			t.Errorf("%s: Cache-Control %q lets others keep what is said of a private module", test.target, cc)
		}
	}
	for _, request := range fake.Requests() {
		if strings.Contains(request, "corp") || strings.Contains(request, "secret") {
			t.Errorf("the http upstream was asked: %s", request)
		}
	}
	if got, err := fetch(t, p.URL()+"/example.com/m/@v/v1.0.0.zip"); err != nil || got.status != http.StatusOK ||
		!strings.HasPrefix(got.header.Get("Cache-Control"), "public") || fake.Count("/lookup/example.com/m@v1.0.0") != 1 {
		t.Errorf("public module beside it: %d %v, Cache-Control %q, upstream %q, want it verified and public",
			got.status, err, got.header.Get("Cache-Control"), fake.Requests())
	}
}

// TestToolchainModule fetches a toolchain as the go command does.
func TestToolchainModule(t *testing.T) {
	t.Parallel()
	const version = "v0.0.1-go1.99.9.linux-amd64"
	fake := upstreamtest.New(t, upstreamtest.Module{Path: "golang.org/toolchain", Version: version})
	p := verifying(t, fake, t.TempDir())
	got, err := fetch(t, p.URL()+"/golang.org/toolchain/@v/"+version+".zip")
	if err != nil || got.status != http.StatusOK || got.body != string(fake.Zip("golang.org/toolchain", version)) {
		t.Errorf("got %d %.80q, %v, want the zip", got.status, got.body, err)
	}
	if fake.Count("/lookup/golang.org/toolchain@"+version) != 1 || fake.Count(".mod") != 0 {
		t.Errorf("upstream requests %q, want the zip and its checksum", fake.Requests())
	}
}

// TestChecksumDatabasesServed asks for databases by name: only those of --sumdb
// are answered, and no other name reaches anybody.
func TestChecksumDatabasesServed(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t, upstreamtest.Module{Path: "example.com/m", Version: "v1.0.0"})
	host := strings.TrimPrefix(fake.URL, "http://")
	p := verifying(t, fake, t.TempDir())
	for _, name := range []string{"sum.golang.org", "sum.other.test", host, host + "/direct/" + csName, csName + ".evil.test", csName + "/sub", "SUM.UPSTREAM.TEST", ".", "127.0.0.1"} {
		for _, rest := range []string{"supported", "latest", "lookup/example.com/m@v1.0.0", "tile/8/0/000.p/1"} {
			got, err := fetch(t, p.URL()+"/sumdb/"+name+"/"+rest)
			if err != nil || got.status != http.StatusNotFound && got.status != http.StatusBadRequest {
				t.Errorf("database %s, %s: %d %q, %v, want 404", name, rest, got.status, got.body, err)
			}
		}
	}
	if got := fake.Requests(); len(got) != 0 {
		t.Errorf("unknown databases reached upstream: %q", got)
	}
	if got, err := fetch(t, p.URL()+"/sumdb/"+csName+"/supported"); err != nil || got.status != http.StatusOK {
		t.Errorf("supported: %d %q, %v, want 200", got.status, got.body, err)
	}
	got, err := fetch(t, p.URL()+"/sumdb/"+csName+"/lookup/example.com/m@v1.0.0")
	if err != nil || got.status != http.StatusOK || !strings.HasPrefix(got.body, "0\nexample.com/m v1.0.0 h1:") {
		t.Errorf("lookup: %d %q, %v, want the record", got.status, got.body, err)
	}
}

// TestChecksumDatabaseByURL gives the address of the database, which is then
// asked itself and not through a proxy, as the go command does.
func TestChecksumDatabaseByURL(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t, upstreamtest.Module{Path: "example.com/m", Version: "v1.0.0"})
	p := harness.Serve(t, "--data-dir", t.TempDir(), "--upstream", fake.URL, "--sumdb", fake.SumdbKey()+" "+fake.SumdbURL())
	got, err := fetch(t, p.URL()+"/"+csBase+".zip")
	if err != nil || got.status != http.StatusOK {
		t.Errorf("got %d %q, %v, want the zip", got.status, got.body, err)
	}
	if direct := fake.Count("/direct/" + csName + "/lookup/example.com/m@v1.0.0"); direct != 1 {
		t.Errorf("lookups at the database's own address: %d, want 1; all requests: %q", direct, fake.Requests())
	}
}
