package test

import (
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

var updateStates = flag.Bool("update-states", false, "write what developers see into testdata/states")

// state is how the upstream does.
type state struct {
	name   string
	fault  upstreamtest.Fault
	broken string // or which of upstreamtest.Broken it is
	works  bool
	absent bool // it says that there is no such thing: the next entry of a list may have it
}

var states = []state{ //nolint:gochecknoglobals // a table
	{name: "up", works: true},
	{name: "slow", fault: upstreamtest.Fault{DelayHeader: 300 * time.Millisecond}, works: true},
	{name: "404", fault: upstreamtest.Fault{Status: 404, Body: "not found: no such module"}, absent: true},
	{name: "410", fault: upstreamtest.Fault{Status: 410, Body: "withdrawn"}, absent: true},
	{name: "403", fault: upstreamtest.Fault{Status: 403, Body: "license not approved"}},
	{name: "429", fault: upstreamtest.Fault{Status: 429, Body: "slow down", Header: http.Header{"Retry-After": {"90"}}}},
	{name: "500", fault: upstreamtest.Fault{Status: 500, Body: "out of disk"}},
	{name: "503", fault: upstreamtest.Fault{Status: 503, Body: "maintenance"}},
	{name: "refused", broken: "refused"},
	{name: "no such host", broken: "no such host"},
	{name: "unknown CA", broken: "unknown CA"},
	{name: "no TLS", broken: "plain http behind https"},
	{name: "silent", fault: upstreamtest.Fault{Block: make(chan struct{})}},
	{name: "stalled", fault: upstreamtest.Fault{StallAfter: 1}},
}

// kinds are what a go command begins with. (Looking for the module of a package asks for modules that do not
// exist anywhere, whatever the state.)
var kinds = []struct { //nolint:gochecknoglobals // a table
	name string
	args []string
}{
	{"list", []string{"list", "-m", "-versions", "example.com/m"}},
	{"query", []string{"list", "-m", "example.com/m@main"}},
	{"download", []string{"mod", "download", "example.com/m@v1.0.0"}},
}

// origin is the host of the module, behind the proxy of a go command that trusts it without TLS. It
// has all of it, and notes whether it was asked.
type origin struct {
	url string

	mu    sync.Mutex
	asked []string
}

func newOrigin(t *testing.T) *origin {
	t.Helper()
	has, o := newGoModules(t), &origin{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		o.asked = append(o.asked, r.Method+" "+r.URL.Host+r.URL.Path)
		o.mu.Unlock()
		switch path, files := strings.CutPrefix(r.URL.Path, "/mod/"); {
		case r.Method == http.MethodConnect:
			http.Error(w, "no TLS here", http.StatusBadGateway)
		case files:
			r.URL.Path = "/" + path
			has.ServeHTTP(w, r)
		default:
			fmt.Fprint(w, `<meta name="go-import" content="example.com/m mod http://example.com/mod">`)
		}
	}))
	t.Cleanup(srv.Close)
	o.url = srv.URL
	return o
}

func (o *origin) requests() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked
}

// cell is one go command.
type cell struct {
	state state
	kind  string
	args  []string
	list  string // of which US stands for us
}

// TestUpstreamStates is a table: how the upstream does, what the go command wants, where else it may look. What developers see
// is in testdata/states; a module's origin is asked only where the upstream says that there is no such
// module, or the developer wants it asked whatever is wrong.
func TestUpstreamStates(t *testing.T) {
	t.Parallel()
	for _, s := range states {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			var seen strings.Builder
			for _, k := range kinds {
				for _, list := range []string{"US", "US,direct", "US|direct"} {
					if testing.Short() && (k.name != "download" || list == "US|direct") {
						continue
					}
					text := cell{s, k.name, k.args, list}.run(t)
					if list == "US" {
						fmt.Fprintf(&seen, "$ go %s\n%s\n", strings.Join(k.args, " "), text)
					}
				}
			}
			s.compare(t, seen.String())
		})
	}
}

// compare holds what was seen against the golden file.
func (s state) compare(t *testing.T, seen string) {
	t.Helper()
	name := filepath.Join("testdata", "states", strings.ReplaceAll(s.name, " ", "-")+".txt")
	if *updateStates {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(seen), 0o600)); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if seen != string(want) && !testing.Short() || !strings.Contains(string(want), seen) {
		t.Errorf("developers see:\n%s\nwant (go test -run UpstreamStates -update-states ./test writes it):\n%s", seen, want)
	}
}

// run starts everything anew, runs the command and returns what it printed.
func (c cell) run(t *testing.T) string {
	t.Helper()
	at := surround(t, c)
	stack := harness.NewStack(t, t.TempDir(), at.upstream)
	g := developer(t, at.fake, strings.ReplaceAll(c.list, "US", stack.URL), "GOSUMDB=off", "GOINSECURE=example.com",
		"HTTP_PROXY="+at.origin.url, "HTTPS_PROXY="+at.origin.url)
	out, err := g.Run(c.args...)
	direct := strings.HasSuffix(c.list, "|direct") && !c.state.works || strings.HasSuffix(c.list, ",direct") && c.state.absent
	if worked := err == nil; worked != (c.state.works || direct) {
		t.Errorf("go %s with %s: %v, printed %q, want it to work: %v", c.kind, c.list, err, out, !worked)
	}
	if asked := at.origin.requests(); (len(asked) > 0) != direct {
		t.Errorf("go %s with %s: the module's origin was asked %q, want that: %v", c.kind, c.list, asked, direct)
	}
	out = strings.NewReplacer(stack.URL, "http://US", strings.TrimPrefix(at.upstream.List, "http://"), "UPSTREAM",
		strings.TrimPrefix(at.upstream.List, "https://"), "UPSTREAM").Replace(out)
	return changing.ReplaceAllString(out, "$1 N $2")
}

// changing is what differs from run to run.
var changing = regexp.MustCompile(`\b(in|after) \d+ (s|of)\b`)

// around is what surrounds us.
type around struct {
	fake     *upstreamtest.Server
	upstream upstream.Config
	origin   *origin
}

func surround(t *testing.T, c cell) around {
	t.Helper()
	times := quick
	times.Header, times.Stall, times.Retry = 2*time.Second, time.Second, 200*time.Millisecond
	a := around{fake: newGoModules(t), origin: newOrigin(t)}
	a.upstream = upstream.Config{List: a.fake.URL, Timeouts: times}
	for _, broken := range upstreamtest.Broken(t) {
		if broken.Name == c.state.broken {
			a.upstream.List, a.upstream.Dial = broken.URL, broken.Dial
		}
	}
	if c.state.fault.Status != 0 || c.state.fault.DelayHeader != 0 || c.state.fault.Block != nil || c.state.fault.StallAfter != 0 {
		a.fake.Fault("", c.state.fault)
	}
	return a
}
