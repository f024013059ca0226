package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// workload is what go mod download downloads: a module and all it requires.
type workload struct{ name, path, version string }

func findWorkload(name string) (workload, bool) {
	for _, w := range []workload{
		{"small", "sigs.k8s.io/controller-runtime", "v0.25.2"},
		{"prom", "github.com/prometheus/prometheus", "v0.315.0"},
	} {
		if w.name == name {
			return w, true
		}
	}
	return workload{}, false
}

// proxy is a GOPROXY list whose names stay secret.
type proxy struct{ list string }

// goProxy asks the go command for the list that holds here.
func goProxy(ctx context.Context) (proxy, error) {
	text, err := exec.CommandContext(ctx, "go", "env", "GOPROXY").Output()
	if err != nil {
		return proxy{}, fmt.Errorf("asking go env GOPROXY: %w", err)
	}
	return proxy{strings.TrimSpace(string(text))}, nil
}

// urls returns the http and https entries.
func (p proxy) urls() []*url.URL {
	var urls []*url.URL
	for entry := range strings.FieldsFuncSeq(p.list, func(r rune) bool { return r == ',' || r == '|' }) {
		u, err := url.Parse(entry)
		if err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" {
			urls = append(urls, u)
		}
	}
	return urls
}

// redact takes the names and passwords of the list out of a text.
func (p proxy) redact(text string) string {
	for _, u := range p.urls() {
		for _, secret := range []string{u.User.String(), u.Host, u.Hostname()} {
			if secret != "" {
				text = strings.ReplaceAll(text, secret, "UPSTREAM")
			}
		}
	}
	return text
}

// reach makes sure that the first http entry has w, and returns the checksum
// database that can be had through it, or "off".
func (p proxy) reach(ctx context.Context, w workload) (sumdb string, err error) {
	urls := p.urls()
	if len(urls) == 0 {
		return "", fmt.Errorf("%w: go env GOPROXY names no module proxy", errSkipped)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if status(ctx, urls[0].JoinPath(w.path, "@v", w.version+".info")) != http.StatusOK {
		return "", fmt.Errorf("%w: the module proxy of go env GOPROXY cannot be reached or lacks %s@%s", errSkipped, w.path, w.version)
	}
	if status(ctx, urls[0].JoinPath("sumdb", "sum.golang.org", "supported")) == http.StatusOK {
		return "sum.golang.org", nil
	}
	return "off", nil
}

// status returns the status of a GET, and 0 if there is no answer.
func status(ctx context.Context, u *url.URL) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// download runs go mod download into an empty module cache and returns the
// seconds that it took. What it downloaded is removed. It asks for all, for
// without arguments the go command takes direct requirements only.
func (b *bench) download(ctx context.Context, proxyList, sumdb string) (seconds float64, err error) {
	dir, err := os.MkdirTemp(b.cache, "go-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	mod := fmt.Sprintf("module bench.example/client\n\ngo 1.26\n\nrequire %s %s\n", b.workload.path, b.workload.version)
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(mod), 0o644); err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "all")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PWD="+dir, "GOENV=off", "GOWORK=off", "GOTOOLCHAIN=local", "GOFLAGS=-mod=mod -modcacherw",
		"GOPROXY="+proxyList, "GOSUMDB="+sumdb, "GOPRIVATE=", "GONOPROXY=", "GONOSUMDB=",
		"GOPATH="+filepath.Join(dir, "gopath"), "GOMODCACHE="+filepath.Join(dir, "gopath", "pkg", "mod"))
	start := time.Now()
	if text, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("running go mod download: %w: %.1000s", err, text)
	}
	return time.Since(start).Seconds(), nil
}

func downloadMetrics(name string, atMost float64) []metric {
	return []metric{
		{name: name, unit: "s", atMost: atMost},
		{name: "server CPU", unit: "s"},
		{name: "server peak RSS", unit: "MB"},
	}
}

// meteredDownload is one run of the rows download and cold.
func (b *bench) meteredDownload(ctx context.Context, p *process, proxyList, sumdb string) ([]float64, error) {
	var seconds float64
	u, err := metered(p, func() (err error) {
		seconds, err = b.download(ctx, proxyList, sumdb)
		return err
	})
	return []float64{seconds, u.cpu, u.rss}, err
}

// downloadRow fills a ringmod through the go command, and then lets nginx and
// an offline ringmod serve what was stored. The checksum database is off for
// both.
func downloadRow(ctx context.Context, b *bench) ([]contest, error) {
	if _, err := b.proxy.reach(ctx, b.workload); err != nil {
		return nil, err
	}
	data := filepath.Join(b.dir, "download")
	if err := b.fill(ctx, data); err != nil {
		return nil, fmt.Errorf("filling: %w", err)
	}
	ringmod, err := b.startRingmod(ctx, node{dataDir: data, sumdb: "off", offline: true})
	if err != nil {
		return nil, err
	}
	defer ringmod.stop()
	nginx, err := b.startNginx(ctx, filepath.Join(b.dir, "download-nginx"), staticSite(filepath.Join(data, "objects")))
	if err != nil {
		return nil, err
	}
	defer nginx.stop()
	once := func(s side, _ int) ([]float64, error) {
		return b.meteredDownload(ctx, s.proc, "http://"+s.proc.addr, "off")
	}
	base, ours := side{name: "nginx", proc: nginx}, side{name: "ringmod", proc: ringmod}
	for _, s := range []side{base, ours} {
		if _, err := once(s, 0); err != nil {
			return nil, fmt.Errorf("warming %s: %w", s.name, err)
		}
	}
	c := contest{metrics: downloadMetrics("warm go mod download, "+b.workload.name, 1.05)}
	err = c.play(b.rules(b.runs), base, ours, once)
	return []contest{c}, err
}

func (b *bench) fill(ctx context.Context, dataDir string) error {
	p, err := b.startRingmod(ctx, node{dataDir: dataDir, upstream: b.proxy.list, sumdb: "off"})
	if err != nil {
		return err
	}
	defer p.stop()
	_, err = b.meteredDownload(ctx, p, "http://"+p.addr, "off")
	return err
}

// coldRow uses the checksum database on both sides where the upstream proxy
// passes it on. One download that is not measured warms upstream.
func coldRow(ctx context.Context, b *bench) ([]contest, error) {
	sumdb, err := b.proxy.reach(ctx, b.workload)
	if err != nil {
		return nil, err
	}
	if _, err := b.download(ctx, b.proxy.list, sumdb); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("cold go mod download, %s, sumdb %s", b.workload.name, sumdb)
	c := contest{metrics: downloadMetrics(name, 1.15)}
	err = c.play(b.rules(b.runs), side{name: "direct", proc: nil}, side{name: "ringmod", proc: nil}, func(s side, _ int) ([]float64, error) {
		if s.name == "direct" {
			return b.meteredDownload(ctx, nil, b.proxy.list, sumdb)
		}
		return b.coldRun(ctx, sumdb)
	})
	return []contest{c}, err
}

// coldRun downloads through a new ringmod with nothing stored. What it stored
// stays until the end: an ext4 without a journal does not use inodes again for half a
// minute after their removal, and looks for others at a cost that makes folders and
// files in the next run ten times as expensive (ext4/ialloc.c, recently_deleted).
func (b *bench) coldRun(ctx context.Context, sumdb string) ([]float64, error) {
	data, err := os.MkdirTemp(b.dir, "cold-")
	if err != nil {
		return nil, err
	}
	p, err := b.startRingmod(ctx, node{dataDir: filepath.Join(data, "node"), upstream: b.proxy.list, sumdb: sumdb})
	if err != nil {
		return nil, err
	}
	defer p.stop()
	return b.meteredDownload(ctx, p, "http://"+p.addr, sumdb)
}
