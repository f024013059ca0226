package main

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/mod/module"
)

// stage is a ringmod and an nginx that serve the same tree.
type stage struct{ nginx, ringmod *process }

func (s stage) stop() {
	for _, p := range []*process{s.nginx, s.ringmod} {
		if p != nil {
			p.stop()
		}
	}
}

// setStage lets ringmod fetch paths from upstream, lets nginx serve what
// ringmod has stored then, and makes sure that both answer alike. The caller
// stops the stage, also after an error.
func (b *bench) setStage(ctx context.Context, name string, u *fakeUpstream, paths []string) (s stage, err error) {
	data := filepath.Join(b.dir, name)
	s.ringmod, err = b.startRingmod(ctx, node{dataDir: data, upstream: u.URL, sumdb: "off"})
	if err != nil {
		return s, err
	}
	bodies := map[string][]byte{}
	for _, path := range paths {
		if bodies[path], err = fetch(ctx, s.ringmod.addr, path); err != nil {
			return s, fmt.Errorf("%w\n%s", err, s.ringmod.lastWords())
		}
	}
	objects := filepath.Join(data, "objects")
	if err := awaitFiles(ctx, objects, paths...); err != nil {
		return s, err
	}
	if s.nginx, err = b.startNginx(ctx, filepath.Join(b.dir, name+"-nginx"), staticSite(objects)); err != nil {
		return s, err
	}
	for _, path := range paths {
		body, err := fetch(ctx, s.nginx.addr, path)
		if err != nil {
			return s, err
		}
		if !bytes.Equal(body, bodies[path]) {
			return s, fmt.Errorf("nginx and ringmod differ on %s", path)
		}
	}
	return s, nil
}

// warmUp is how long a server is under load before its first measured run.
const warmUp = 500 * time.Millisecond

func warmRow(ctx context.Context, b *bench) ([]contest, error) {
	u := newFakeUpstream(0)
	defer u.Close()
	const path, base = "bench.example/hot", "/bench.example/hot/@v/"
	for i := range 240 { // a list of 1.9 KB, a common size
		if err := u.add(module.Version{Path: path, Version: fmt.Sprintf("v1.%d.0", i)}, 1000); err != nil {
			return nil, err
		}
	}
	files := []string{base + "v1.5.0.info", base + "v1.5.0.mod", base + "list"}
	s, err := b.setStage(ctx, "warm", u, files)
	defer s.stop()
	if err != nil {
		return nil, err
	}
	var done []contest
	for i, name := range []string{".info", ".mod", "@v/list"} {
		c, err := b.warmContest(ctx, s, name, files[i])
		if err != nil {
			return done, err
		}
		done = append(done, c)
	}
	return done, nil
}

func (b *bench) warmContest(ctx context.Context, s stage, name, path string) (contest, error) {
	c := contest{metrics: []metric{
		{name: name, unit: "req/s", atLeast: 0.70},
		{name: name + " p99", unit: "ms"},
		{name: name + " server CPU", unit: "µs/req"},
		{name: name + " server peak RSS", unit: "MB"},
	}}
	t := newTour(path)
	for _, p := range []*process{s.nginx, s.ringmod} {
		if _, err := ownLoad(ctx, p.addr, t, warmUp); err != nil {
			return c, err
		}
	}
	err := c.play(b.rules(b.runs), side{name: "nginx", proc: s.nginx}, side{name: "ringmod", proc: s.ringmod}, func(s side, _ int) ([]float64, error) {
		var l load
		start := time.Now()
		u, err := metered(s.proc, func() (err error) {
			l, err = b.load(ctx, s.proc.addr, t, b.time)
			return err
		})
		requests := l.rate * time.Since(start).Seconds()
		return []float64{l.rate, l.p99, u.cpu / requests * 1e6, u.rss}, err
	})
	return c, err
}

func zipRow(ctx context.Context, b *bench) ([]contest, error) {
	u := newFakeUpstream(0)
	defer u.Close()
	const path, zip = "bench.example/large", "/bench.example/large/@v/v1.0.0.zip"
	if err := u.add(module.Version{Path: path, Version: "v1.0.0"}, 69e6); err != nil {
		return nil, err
	}
	s, err := b.setStage(ctx, "zip", u, []string{zip})
	defer s.stop()
	if err != nil {
		return nil, err
	}
	var done []contest
	for _, clients := range []int{1, 8} {
		c, err := b.zipContest(ctx, s, zip, clients)
		if err != nil {
			return done, err
		}
		done = append(done, c)
	}
	return done, nil
}

func (b *bench) zipContest(ctx context.Context, s stage, path string, clients int) (contest, error) {
	name := fmt.Sprintf("69 MB zip, %d at once", clients)
	c := contest{metrics: []metric{
		{name: name, unit: "GB/s", atLeast: 0.90},
		{name: name + ", server CPU", unit: "s/GB"},
		{name: name + ", server peak RSS", unit: "MB"},
	}}
	t := newTour(path)
	for _, p := range []*process{s.nginx, s.ringmod} {
		if _, err := stream(ctx, p.addr, t, clients, warmUp); err != nil {
			return c, err
		}
	}
	err := c.play(b.rules(b.runs), side{name: "nginx", proc: s.nginx}, side{name: "ringmod", proc: s.ringmod}, func(s side, _ int) ([]float64, error) {
		var rate float64
		start := time.Now()
		u, err := metered(s.proc, func() (err error) {
			rate, err = stream(ctx, s.proc.addr, t, clients, b.time)
			return err
		})
		gigabytes := rate * time.Since(start).Seconds() / 1e9
		return []float64{rate / 1e9, u.cpu / gigabytes, u.rss}, err
	})
	return c, err
}

// herdSize is how many clients a herd has.
const herdSize = 200

// herdRow gives each run a version of its own, so that it is cold; the first
// one is not measured.
func herdRow(ctx context.Context, b *bench) ([]contest, error) {
	u := newFakeUpstream(20 * time.Millisecond)
	defer u.Close()
	rules := b.rules(b.runs + 2) // they are short
	for i := range rules.attempts + 1 {
		if err := u.add(module.Version{Path: "bench.example/herd", Version: herdVersion(i)}, 7e6); err != nil {
			return nil, err
		}
	}
	nginx, err := b.startNginx(ctx, filepath.Join(b.dir, "herd-nginx"), cachingSite(u.Listener.Addr().String()))
	if err != nil {
		return nil, err
	}
	defer nginx.stop()
	ringmod, err := b.startRingmod(ctx, node{dataDir: filepath.Join(b.dir, "herd"), upstream: u.URL, sumdb: "off"})
	if err != nil {
		return nil, err
	}
	defer ringmod.stop()
	for _, p := range []*process{nginx, ringmod} {
		if _, err := herdRun(ctx, u, p, 0); err != nil {
			return nil, err
		}
	}
	c := contest{metrics: []metric{
		{name: "200 cold zips of 7 MB", unit: "s", atMost: 2},
		{name: "first byte, p50", unit: "s"},
		{name: "upstream zip requests", unit: "", atMost: 1, strict: true},
		{name: "server CPU", unit: "s"},
		{name: "server peak RSS", unit: "MB"},
	}}
	err = c.play(rules, side{name: "nginx cache", proc: nginx}, side{name: "ringmod", proc: ringmod}, func(s side, run int) ([]float64, error) {
		return herdRun(ctx, u, s.proc, run+1)
	})
	return []contest{c}, err
}

func herdVersion(run int) string { return fmt.Sprintf("v1.%d.0", run) }

func herdRun(ctx context.Context, u *fakeUpstream, p *process, run int) ([]float64, error) {
	path := "/bench.example/herd/@v/" + herdVersion(run) + ".zip"
	want := u.files[path]
	before := u.zips.Load()
	var h herd
	took, err := metered(p, func() (err error) {
		h, err = stampede(ctx, p.addr, path, herdSize, int64(len(want)))
		return err
	})
	if err != nil {
		return nil, err
	}
	asked := u.zips.Load() - before
	got, err := fetch(ctx, p.addr, path)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("the stored %s differs from upstream's", path)
	}
	return []float64{h.wall.Seconds(), spreadOf(h.firsts).median, float64(asked), took.cpu, took.rss}, err
}
