package sim

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/member/membertest"
)

// patience is how long a client waits for the end of an answer.
const patience = 90 * time.Second

// clients are developers, each near a gateway.
type clients struct {
	w       *World
	ctx     context.Context //nolint:containedctx // the life of all load
	stop    context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex // guards byHost
	byHost map[string]*http.Client
	ports  []*membertest.Transport
}

func newClients(w *World) *clients {
	ctx, stop := context.WithCancel(w.t.Context())
	return &clients{w: w, ctx: ctx, stop: stop, byHost: make(map[string]*http.Client)}
}

// client returns the client near a gateway.
func (c *clients) client(gw *machine) *http.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.byHost[gw.id]; known != nil {
		return known
	}
	host := gw.host.As4()
	host[2] = 1
	port, err := c.w.net.Listen(netip.AddrPortFrom(netip.AddrFrom4(host), httpPort))
	if err != nil {
		panic(err) // each gateway has an address of its own
	}
	c.ports = append(c.ports, port)
	dial := func(ctx context.Context, _, addr string) (net.Conn, error) { return port.Dial(ctx, addr) }
	c.byHost[gw.id] = &http.Client{Transport: &http.Transport{DialContext: dial, DisableCompression: true}}
	return c.byHost[gw.id]
}

// end stops all load, waits for what is still asked, and closes everything.
func (c *clients) end() {
	c.stop()
	c.running.Wait()
	for _, client := range c.byHost {
		client.CloseIdleConnections()
	}
	for _, port := range c.ports {
		_ = port.Shutdown()
	}
}

// how a client asks.
type how struct {
	cached bool // nothing may be fetched
	leave  bool // before the end
	part   bool // not all of it
}

// get asks a gateway for a target and writes down what came.
func (c *clients) get(gw *machine, t target.Target, h how) answer {
	a := answer{gateway: gw.id, boot: int(gw.boots.Load()), target: t, cached: h.cached, left: h.leave, part: h.part, start: time.Now()}
	a.held = c.w.book.holders(t)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), patience)
	defer cancel()
	body, err := c.ask(ctx, gw, &a)
	a.end, a.err, a.whole = time.Now(), err, err == nil && !h.leave
	a.astray = err != nil && a.status == http.StatusOK && strays(body, t)
	if a.whole {
		a.judge(body)
		if a.state < 0 && a.status == http.StatusOK && t.Kind == target.List {
			a.state = c.w.book.purgedState(t, string(body))
		}
		if t.Kind == target.List {
			a.versions = strings.Fields(string(body))
		}
	}
	if !a.whole || a.status != http.StatusOK {
		a.held = a.held.and(c.w.book.holders(t))
	}
	c.w.book.answer(a)
	return a
}

// and leaves those who are holders at another time, too.
func (h holders) and(other holders) holders {
	maps.DeleteFunc(h.since, func(id string, _ time.Time) bool {
		_, still := other.since[id]
		return !still
	})
	return h
}

func (c *clients) ask(ctx context.Context, gw *machine, a *answer) ([]byte, error) {
	url := fmt.Sprintf("http://%s/%s", netip.AddrPortFrom(gw.host, httpPort), a.target)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	if a.cached {
		req.Header.Set("Disable-Module-Fetch", "true")
	}
	if a.part {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", partFrom, partTo-1))
	}
	resp, err := c.client(gw).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	a.status, a.source = resp.StatusCode, resp.Header.Get("Cache-Status")
	a.stale = strings.Contains(a.source, "fwd=stale")
	if seconds, err := strconv.Atoi(resp.Header.Get("Age")); err == nil {
		a.age = time.Duration(seconds) * time.Second
	}
	if a.left {
		_, err = io.CopyN(io.Discard, resp.Body, 1000)
		return nil, err
	}
	return io.ReadAll(resp.Body)
}

// The part that a client wants who does not want all.
const partFrom, partTo = 1000, 2500

// judge compares a whole body with what upstream has. An answer with the part that was
// asked for counts as 200.
func (a *answer) judge(body []byte) {
	mod, _ := place(a.target)
	switch {
	case a.status != http.StatusOK && a.status != http.StatusPartialContent:
		a.text = strings.TrimSpace(string(body))
	case a.target.Kind == target.SumdbLookup:
		if record, err := gosum(a.target.Path, a.target.Version); err != nil || !bytes.Contains(body, record) {
			a.wrong = "no record of the database"
		}
	case !a.target.Kind.Immutable():
		a.state = state(a.target, body)
	case a.status == http.StatusPartialContent:
		a.status = http.StatusOK
		if !a.part || !bytes.Equal(body, immutableContent(a.target, mod)[partFrom:partTo]) {
			a.wrong = "another part"
		}
	case !bytes.Equal(body, immutableContent(a.target, mod)):
		a.wrong = whose(body, a.target)
	}
}

// strays tells whether a broken body is not how the object begins.
func strays(body []byte, t target.Target) bool {
	mod, _ := place(t)
	return t.Kind.Immutable() && t.Kind != target.SumdbLookup && !bytes.HasPrefix(immutableContent(t, mod), body)
}

// whose tells which object a body is that is not t.
func whose(body []byte, t target.Target) string {
	for mod := range zipSizes {
		for version := range maxVersions {
			for _, ext := range []string{".info", ".mod", ".zip"} {
				other := file(mod, version, ext)
				if other.Kind == t.Kind && bytes.Equal(body, immutableContent(other, mod)) {
					return "the bytes of " + other.String()
				}
			}
		}
	}
	return fmt.Sprintf("%d bytes that upstream never had", len(body))
}

// load lets developers ask a gateway for this and that, some times per second, until
// end.
func (c *clients) load(gw *machine, rate float64, r *rand.Rand) {
	zipf := rand.NewZipf(r, 1.3, 2, uint64(len(zipSizes)-1))
	c.running.Go(func() {
		for {
			select {
			case <-c.ctx.Done():
				return
			case <-time.After(time.Duration(r.ExpFloat64() / rate * float64(time.Second))):
			}
			t, h := c.draw(r, int(zipf.Uint64()))
			c.running.Go(func() { c.get(gw, t, h) })
		}
	})
}

// draw picks what a developer wants of a module.
func (c *clients) draw(r *rand.Rand, mod int) (target.Target, how) {
	h := how{cached: r.IntN(30) == 0, leave: r.IntN(30) == 0}
	version := c.w.out.count(mod) - 1 - min(r.IntN(3), r.IntN(3))
	switch r.IntN(20) {
	case 0:
		version = c.w.out.count(mod) // not there yet
	case 1, 2, 3:
		return mustTarget(modulePath(mod) + "/@v/list"), h
	case 4, 5:
		return mustTarget(modulePath(mod) + "/@latest"), h
	case 6:
		return mustTarget(modulePath(mod) + "/@v/master.info"), h
	case 7:
		return mustTarget(fmt.Sprintf("sumdb/%s/lookup/%s@%s", sumsName, modulePath(mod), versionOf(max(version, 0)))), h
	case 8:
		h.part = true
		return file(mod, max(version, 0), ".zip"), h
	}
	return file(mod, max(version, 0), []string{".info", ".mod", ".zip", ".zip"}[r.IntN(4)]), h
}
