package main

import (
	"maps"
	"math"
	"os"
	"strings"
	"testing"
)

const wrkGood = `Running 3s test @ http://127.0.0.1:40001/bench.example/hot/@v/v1.5.0.info
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.03ms    1.05ms  20.02ms   90.15%
    Req/Sec    75.90k     3.60k   80.00k    70.00%
  Latency Distribution
     50%  620.00us
     75%    1.10ms
     90%    2.30ms
     99%    4.60ms
  225000 requests in 3.00s, 80.00MB read
Requests/sec:  75012.34
Transfer/sec:     26.00MB
`

func TestParseWrk(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text string
		want       load
		wantErr    bool
	}{
		{"milliseconds", wrkGood, load{requests: 225000, rate: 75012.34, p99: 4.6}, false},
		{"microseconds", strings.Replace(wrkGood, "4.60ms", "460.00us", 1), load{requests: 225000, rate: 75012.34, p99: 0.46}, false},
		{"seconds, which wrk pads", strings.Replace(wrkGood, "4.60ms", "1.50s ", 1), load{requests: 225000, rate: 75012.34, p99: 1500}, false},
		{"wrong statuses", strings.Replace(wrkGood, "Requests/sec", "  Non-2xx or 3xx responses: 5\nRequests/sec", 1), load{}, true},
		{"socket errors", strings.Replace(wrkGood, "Requests/sec", "  Socket errors: connect 0, read 7, write 0, timeout 0\nRequests/sec", 1), load{}, true},
		{"no rate", strings.Replace(wrkGood, "Requests/sec", "Requests", 1), load{}, true},
		{"no count", strings.Replace(wrkGood, "requests in", "answers in", 1), load{}, true},
		{"no latency", strings.Replace(wrkGood, "99%", "98%", 1), load{}, true},
		{"empty", "", load{}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseWrk(tt.text)
			if (err != nil) != tt.wantErr {
				t.Fatalf("got error %v, want one: %v", err, tt.wantErr)
			}
			if math.Abs(got.rate-tt.want.rate) > 1e-6 || math.Abs(got.p99-tt.want.p99) > 1e-6 || got.requests != tt.want.requests {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	const rest = " 10 11 5 0 -1 4194560 1 2 3 4 150 50 20 30 20 0 4 0 100 1000 200 18446744073709551615"
	tests := []struct {
		name, line string
		want       stat
		wantErr    bool
	}{
		{"plain", "42 (nginx) S" + rest, stat{parent: 10, cpu: 2.5}, false},
		{"name with blanks and parentheses", "42 (a) b (c) S" + rest, stat{parent: 10, cpu: 2.5}, false},
		{"cut", "42 (nginx) S 10 11", stat{}, true},
		{"no name", "42 nginx", stat{}, true},
		{"parent not a number", "42 (nginx) S x" + rest[3:], stat{}, true},
		{"time not a number", "42 (nginx) S" + strings.Replace(rest, "150", "x", 1), stat{}, true},
		{"empty", "", stat{}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseStat(tt.line)
			if got != tt.want || (err != nil) != tt.wantErr {
				t.Errorf("got %+v, %v; want %+v, error: %v", got, err, tt.want, tt.wantErr)
			}
		})
	}
}

func TestParsePeak(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, status string
		want         float64
		wantErr      bool
	}{
		{"present", "Name:\tnginx\nVmPeak:\t   99 kB\nVmHWM:\t   10000 kB\nVmRSS:\t    8000 kB\n", 10.24, false},
		{"zombie", "Name:\tnginx\nState:\tZ (zombie)\n", 0, false},
		{"not a number", "VmHWM:\tmuch\n", 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parsePeak(tt.status)
			if got != tt.want || (err != nil) != tt.wantErr {
				t.Errorf("got %v, %v; want %v, error: %v", got, err, tt.want, tt.wantErr)
			}
		})
	}
}

func TestParseMachine(t *testing.T) {
	t.Parallel()
	const text = `cpu  1000 200 300 99999 88888 40 60 77777 5 6
cpu0 500 100 150 50000 44444 20 30 0 0 0
cpu1 500 100 150 49999 44444 20 30 0 0 0
intr 12345 0 0
ctxt 678
`
	got, err := parseMachine(text)
	if want := (machine{busy: 16, cpus: 2}); got != want || err != nil {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "intr 1\n", strings.Replace(text, "1000", "x", 1)} {
		if got, err := parseMachine(bad); err == nil {
			t.Errorf("parsing %q: got %+v, want an error", bad, got)
		}
	}
}

func TestReadTreeSeesItself(t *testing.T) {
	t.Parallel()
	got, err := readTree(os.Getpid())
	if err != nil || got.rss < 1 {
		t.Errorf("got %+v, %v; want more than 1 MB of memory", got, err)
	}
	// Beyond the largest process id of Linux.
	if got, err := readTree(1 << 23); err == nil {
		t.Errorf("for a process that is gone: got %+v, want an error", got)
	}
}

func TestParseReady(t *testing.T) {
	t.Parallel()
	tests := []struct {
		line string
		want map[string]string
	}{
		{"ready http=127.0.0.1:8080 admin=127.0.0.1:8081", map[string]string{"http": "127.0.0.1:8080", "admin": "127.0.0.1:8081"}},
		{"ready grpc=[::1]:8082", map[string]string{"grpc": "[::1]:8082"}},
		{"not ready http=127.0.0.1:8080", nil},
		{"ready to serve", nil},
		{"ready", nil},
		{"", nil},
	}
	for _, tt := range tests {
		if got := parseReady(tt.line); !maps.Equal(got, tt.want) {
			t.Errorf("%q: got %v, want %v", tt.line, got, tt.want)
		}
	}
}

func TestTailFindsReadyInPieces(t *testing.T) {
	t.Parallel()
	log := newTail()
	for _, piece := range []string{"level=INFO msg=starting\nrea", "dy http=127.0.0.1:1 adm", "in=x\nready http=127.0.0.1:2\n"} {
		if _, err := log.Write([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := log.readyAddrs()["http"], "127.0.0.1:1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := log.Write([]byte(strings.Repeat("x", 2*tailSize) + "end")); err != nil {
		t.Fatal(err)
	}
	if got := log.String(); len(got) != tailSize || !strings.HasSuffix(got, "end") {
		t.Errorf("got %d bytes, want the last %d", len(got), tailSize)
	}
}

func TestRedact(t *testing.T) {
	t.Parallel()
	p := proxy{"https://user:secret@one.test:8443/mod,http://two.test|direct,off"}
	const text = "reading https://user:secret@one.test:8443/mod/x: dial one.test: proxy two.test, direct"
	const want = "reading https://UPSTREAM@UPSTREAM/mod/x: dial UPSTREAM: proxy UPSTREAM, direct"
	if got := p.redact(text); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := (proxy{}).redact("direct"); got != "direct" {
		t.Errorf("without a list: got %q", got)
	}
}

func TestParseFlags(t *testing.T) {
	t.Parallel()
	o, err := parse(nil, t.Output())
	if err != nil || len(o.rows) != 6 || o.runs != 3 || o.workload.name != "small" || o.check {
		t.Errorf("defaults: got %+v, %v", o, err)
	}
	for _, bad := range []string{"-rows=warm,tepid", "-rows=", "-runs=0", "-time=10ms", "-workload=huge", "-nonsense"} {
		if o, err := parse([]string{bad}, t.Output()); err == nil {
			t.Errorf("%s: got %+v, want an error", bad, o)
		}
	}
}
