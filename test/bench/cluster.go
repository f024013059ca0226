package main

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

const (
	crowd     = 64  // connections that read zips at once
	slowRate  = 2e6 // bytes a second that a slow one reads
	slowTime  = 5 * time.Second
	gatewayMB = 120 // peak RSS of a gateway meanwhile
)

// Names of sides.
const (
	naivePair   = "default codec"
	clusterPair = "gateway+node"
)

// troupe is what the row cluster compares: a gateway and a node as two processes,
// the naive pair of them, and nginx, all on the same files.
type troupe struct {
	*bench

	ours, naive, nginx side

	zips, infos []string // paths
}

func (t *troupe) stop() {
	for _, s := range []side{t.ours, t.naive, t.nginx} {
		for _, p := range []*process{s.proc, s.node} {
			if p != nil {
				p.stop()
			}
		}
	}
}

// clusterRow measures what crosses gRPC by zips that a new gateway has never seen
// and by more .info than its memory takes, and makes sure of it by the gateway's
// own count.
func clusterRow(ctx context.Context, b *bench) (done []contest, err error) {
	t, err := b.setTroupe(ctx)
	defer t.stop()
	if err != nil {
		return nil, err
	}
	for _, play := range []func(context.Context) (contest, error){
		func(ctx context.Context) (contest, error) { return t.freshZips(ctx, 1) },
		func(ctx context.Context) (contest, error) { return t.freshZips(ctx, 8) },
		func(ctx context.Context) (contest, error) { return t.sameZip(ctx, 1) },
		func(ctx context.Context) (contest, error) { return t.sameZip(ctx, 8) },
		func(ctx context.Context) (contest, error) { return t.crowd(ctx, "one zip", t.zips[:1], math.MaxInt64) },
		func(ctx context.Context) (contest, error) { return t.crowd(ctx, "many zips", t.zips, math.MaxInt64) },
		func(ctx context.Context) (contest, error) {
			return t.crowd(ctx, "one zip, slowly", t.zips[:1], slowRate)
		},
		func(ctx context.Context) (contest, error) { return t.crowd(ctx, "many zips, slowly", t.zips, slowRate) },
		t.manyInfos,
		t.sameInfo,
	} {
		c, err := play(ctx)
		if err != nil {
			return done, err
		}
		done = append(done, c)
	}
	return done, t.mergeProfiles(ctx)
}

// setTroupe starts everybody and lets the node look once at the zips that lie in
// its folder. The caller stops them, also after an error.
func (b *bench) setTroupe(ctx context.Context) (t *troupe, err error) {
	data := filepath.Join(b.dir, "cluster")
	objects := filepath.Join(data, "objects")
	t = &troupe{bench: b, ours: side{name: clusterPair}, naive: side{name: naivePair}, nginx: side{name: "nginx"}}
	if err := os.MkdirAll(t.profiles(), 0o755); err != nil {
		return t, err
	}
	if t.ours.node, err = b.startMember(ctx, "node", "--grpc-addr", anyPort, "--data-dir", data); err != nil {
		return t, err
	}
	if t.ours.proc, err = t.newGateway(ctx); err != nil {
		return t, err
	}
	if t.zips, t.infos, err = stock(objects); err != nil {
		return t, fmt.Errorf("making files for the cluster: %w", err)
	}
	if t.naive.node, err = spawnReady(ctx, b.self, naiveNodeName, objects); err != nil {
		return t, err
	}
	if t.naive.proc, err = spawnReady(ctx, b.self, naiveGatewayName, t.naive.node.ready["grpc"]); err != nil {
		return t, err
	}
	if t.nginx.proc, err = b.startNginx(ctx, filepath.Join(b.dir, "cluster-nginx"), staticSite(objects)); err != nil {
		return t, err
	}
	return t, t.show(ctx, t.zips, 2)
}

const anyPort = "127.0.0.1:0"

// startMember starts one process of a cluster, which asks no upstream.
func (b *bench) startMember(ctx context.Context, command string, args ...string) (*process, error) {
	args = append([]string{
		command, "--gossip-addr", anyPort, "--admin-addr", anyPort, "--offline", "--sumdb", "off", "--log-level", b.logLevel,
	}, args...)
	return spawnReady(ctx, b.ringmod, args...)
}

// newGateway starts a gateway and waits until it knows the node.
func (t *troupe) newGateway(ctx context.Context) (*process, error) {
	p, err := t.startMember(ctx, "gateway", "--http-addr", anyPort, "--join", t.ours.node.ready["gossip"])
	if err != nil {
		return nil, err
	}
	ready := &url.URL{Scheme: "http", Host: p.addr, Path: "/readyz"}
	if err := p.await(ctx, func() bool { return status(ctx, ready) == http.StatusOK }); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// show lets the node see files for the first time, and makes sure that all answer
// alike.
func (t *troupe) show(ctx context.Context, paths []string, clients int) error {
	if err := visit(ctx, t.ours.proc.addr, paths, clients); err != nil {
		return fmt.Errorf("%w\n%s\n%s", err, t.ours.proc.lastWords(), t.ours.node.lastWords())
	}
	want, err := fetch(ctx, t.nginx.proc.addr, paths[0])
	if err != nil {
		return err
	}
	for _, s := range []side{t.ours, t.naive} {
		got, err := fetch(ctx, s.proc.addr, paths[0])
		if err == nil && !bytes.Equal(got, want) {
			err = fmt.Errorf("nginx and %s differ on %s", s.name, paths[0])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// withGateway runs f with a gateway of ours that knows nothing; others never do.
func (t *troupe) withGateway(ctx context.Context, s side, f func(side) error) error {
	if s.name != clusterPair {
		return f(s)
	}
	p, err := t.newGateway(ctx)
	if err != nil {
		return err
	}
	defer p.stop()
	s.proc = p
	return f(s)
}

// zipMetrics are those of a run of stream, see zipValues.
func zipMetrics(name string, goal float64) []metric {
	return []metric{
		{name: name, unit: "GB/s", atLeast: goal},
		{name: name + ", gateway CPU", unit: "s/GB"},
		{name: name + ", node CPU", unit: "s/GB"},
		{name: name + ", gateway peak RSS", unit: "MB"},
		{name: name + ", node peak RSS", unit: "MB"},
	}
}

func zipValues(rate float64, took toll) []float64 {
	each := 1e9 / (rate * took.seconds)
	return []float64{rate / 1e9, took.gateway.cpu * each, took.node.cpu * each, took.gateway.rss, took.node.rss}
}

// freshZips is about bytes that cross gRPC: each run has a new gateway, which reads
// each zip once.
func (t *troupe) freshZips(ctx context.Context, clients int) (contest, error) {
	c := contest{metrics: zipMetrics(fmt.Sprintf("different zips, %d at once", clients), 2)}
	err := c.play(t.rules(t.runs), t.naive, t.ours, func(s side, _ int) (values []float64, err error) {
		err = t.withGateway(ctx, s, func(s side) error {
			first, lap := t.zips[:clients], newLap(t.zips[clients:]...)
			if err := visit(ctx, s.proc.addr, first, clients); err != nil {
				return err
			}
			var rate float64
			took, err := s.metered(ctx, lap, fromNode, clients, t.profiled(ctx, s, func() (err error) {
				rate, err = stream(ctx, s.proc.addr, lap, clients, t.time)
				return err
			}))
			values = zipValues(rate, took)
			return err
		})
		return values, err
	})
	return c, err
}

// sameZip is about what later clients get, beside a pair that keeps nothing.
func (t *troupe) sameZip(ctx context.Context, clients int) (contest, error) {
	c := contest{metrics: zipMetrics(fmt.Sprintf("a zip again, %d at once", clients), 0)}
	same := newTour(t.zips[0])
	for _, s := range []side{t.naive, t.ours} {
		if err := visit(ctx, s.proc.addr, []string{t.zips[0], t.zips[0]}, 2); err != nil {
			return c, err
		}
	}
	err := c.play(t.rules(t.runs), t.naive, t.ours, func(s side, _ int) ([]float64, error) {
		var rate float64
		took, err := s.metered(ctx, same, kept, clients, func() (err error) {
			rate, err = stream(ctx, s.proc.addr, same, clients, t.time)
			return err
		})
		return zipValues(rate, took), err
	})
	return c, err
}

// crowd is about the memory of gateways under many connections, not their speed.
func (t *troupe) crowd(ctx context.Context, what string, paths []string, limit int64) (contest, error) {
	name := fmt.Sprintf("%d connections, %s", crowd, what)
	c := contest{metrics: zipMetrics(name, 0)}
	c.metrics[3].ceiling = gatewayMB
	err := c.play(t.rules(1), t.naive, t.ours, func(s side, _ int) (values []float64, err error) {
		err = t.withGateway(ctx, s, func(s side) error {
			var rate float64
			all := newTour(paths...)
			took, err := s.metered(ctx, all, anyway, crowd, func() (err error) {
				rate, err = trickle(ctx, s.proc.addr, all, crowd, limit, max(t.time, slowTime))
				return err
			})
			values = zipValues(rate, took)
			return err
		})
		return values, err
	})
	return c, err
}

// manyInfos is about small objects that a gateway has not in memory.
func (t *troupe) manyInfos(ctx context.Context) (contest, error) {
	if err := t.show(ctx, t.infos, loadConns); err != nil {
		return contest{}, err
	}
	return t.infoContest(ctx, ".info, all different", t.infos, fromNode, 0.22)
}

// sameInfo is about those that it has.
func (t *troupe) sameInfo(ctx context.Context) (contest, error) {
	return t.infoContest(ctx, ".info, the same", t.infos[:1], kept, 0.80)
}

func (t *troupe) infoContest(ctx context.Context, name string, paths []string, way traffic, goal float64) (contest, error) {
	c := contest{metrics: []metric{
		{name: name, unit: "req/s", atLeast: goal},
		{name: name + ", p99", unit: "ms"},
		{name: name + ", gateway CPU", unit: "µs/req"},
		{name: name + ", node CPU", unit: "µs/req"},
		{name: name + ", gateway peak RSS", unit: "MB"},
	}}
	tours := map[string]*tour{}
	for _, s := range []side{t.nginx, t.ours} {
		tours[s.name] = newTour(paths...)
		if _, err := ownLoad(ctx, s.proc.addr, tours[s.name], warmUp); err != nil {
			return c, err
		}
	}
	err := c.play(t.rules(t.runs), t.nginx, t.ours, func(s side, _ int) ([]float64, error) {
		var l load
		took, err := s.metered(ctx, tours[s.name], way, loadConns, t.profiled(ctx, s, func() (err error) {
			l, err = t.load(ctx, s.proc.addr, tours[s.name], t.time)
			return err
		}))
		each := 1e6 / float64(l.requests)
		return []float64{l.rate, l.p99, took.gateway.cpu * each, took.node.cpu * each, took.gateway.rss}, err
	})
	return c, err
}

// traffic is where a gateway of ours is to have its answers from.
type traffic uint8

const (
	anyway traffic = iota
	fromNode
	kept
)

// toll is what a run took of a side.
type toll struct {
	gateway, node usage
	seconds       float64
}

// metered runs f, which follows t with that many requests at a time, and says what
// the side took. It fails when the answers came another way.
func (s side) metered(ctx context.Context, t *tour, way traffic, atOnce int, f func() error) (toll, error) {
	var took toll
	asked, err := s.asked(ctx)
	if err != nil {
		return took, err
	}
	requests, start := t.at.Load(), time.Now()
	took.gateway, err = metered(s.proc, func() (err error) {
		took.node, err = metered(s.node, f)
		return err
	})
	took.seconds = time.Since(start).Seconds()
	if err != nil || s.name != clusterPair {
		return took, err
	}
	after, err := s.asked(ctx)
	if err != nil {
		return took, err
	}
	return took, way.check(int(after-asked), int(t.at.Load()-requests), atOnce)
}

// check compares how often a gateway asked its node with how often it was asked
// itself. What has just begun or ended may count on one side only.
func (way traffic) check(asked, requests, atOnce int) error {
	slack := atOnce + requests/20
	if way == kept && asked > slack || way == fromNode && asked < requests-slack {
		return fmt.Errorf("the gateway asked its node %d times for %d requests, which is not what is to be measured", asked, requests)
	}
	return nil
}

// asked returns how many objects the gateway of our own pair has asked its node
// for so far.
func (s side) asked(ctx context.Context) (float64, error) {
	if s.name != clusterPair {
		return 0, nil
	}
	text, err := fetch(ctx, s.proc.ready["admin"], "/metrics")
	if err != nil {
		return 0, err
	}
	return sumMetric(string(text), "ringmod_peer_requests_total")
}

// sumMetric adds up the samples of a counter in Prometheus' text format.
func sumMetric(text, name string) (float64, error) {
	sum := 0.0
	for _, sample := range regexp.MustCompile(`(?m)^`+name+`(?:\{.*\})? ([^ \n]+)$`).FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseFloat(sample[1], 64)
		if err != nil {
			return 0, fmt.Errorf("reading %s: %w", name, err)
		}
		sum += v
	}
	return sum, nil
}
