// Package gateway is the front door: it answers the GOPROXY protocol
// (https://go.dev/ref/mod#goproxy-protocol) over HTTP out of a Cache.
//
// # What is served
//
//	/<module>/@v/list, /@latest             versions, newest version
//	/<module>/@v/<version>.info .mod .zip   the files of a version
//	/<module>/@v/<query>.info               what a branch, tag or commit means
//	/sumdb/<name>/supported latest lookup/… tile/…
//	/cached-only/…                          all of these, without a fill
//	/, /robots.txt, /healthz, /readyz       for people, robots and supervisors
//
// Only GET and HEAD are answered, but for POST /-/hooks/push, which is for Config.Hooks. A path is decoded once, so that "!" and "%21"
// are the same, and is never cleaned or redirected: what [target.Parse] does not
// accept reaches no Cache. Query strings mean nothing here.
//
// # What is promised to a client
//
// An answer that ends cleanly is whole. A fill that fails before its first byte
// becomes an error answer; one that fails later cuts the connection (HTTP/1) or
// resets the stream (HTTP/2). 404 and 410 are given to somebody who may fill only
// when the Cache said NotFound or Gone, an operator has purged it, or no such thing can exist; trouble
// is 502, 503 or 504 and never cached. A list, @latest or query never goes back to
// an older answer while the newer one is in memory, and is answered from memory,
// marked stale, for up to 7 days while the Cache is in trouble.
//
// Headers by kind, "private" in place of "public" for private modules:
//
//	.mod .zip                 public, max-age=604800, immutable; Last-Modified
//	.info                     public, max-age=604800
//	list, @latest, query      public, max-age=60, must-revalidate; Age
//	sumdb lookup, tile        public, max-age=86400
//	sumdb latest, supported   public, max-age=60
//
// and on each of them: a strong ETag (SHA-256 in hex) and Accept-Ranges once the
// bytes are known, Content-Length once the size is, X-Content-Type-Options, and
// Cache-Status (RFC 9211). HEAD, Range and conditional requests follow RFC 9110.
// Errors are one line of text/plain, at most 640 bytes, that names module and
// version, who failed, and what to do: the go command shows it in a terminal.
//
// # What it costs
//
// Small answers are kept in memory, bounded by bytes, and concurrent misses of one
// target ask the Cache once, on behalf of all who wait and until the last of them
// has left. Files go to the socket by sendfile. A client that takes nothing for a
// minute is cut; one that is merely slow is not.
//
// # What it never does
//
// It keeps nothing on disk, contacts no upstream, caches no error, shows no
// credentials, and lets no panic of a request end the process.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/refresh"
	"github.com/ringmod/ringmod/internal/target"
)

// Cache is where a gateway gets objects from: the node in the same process, or
// a cluster. Errors are [*cache.Error]; any other counts as an internal one.
// What is valid of the answer, Body included, is so until ctx ends.
type Cache interface {
	Get(ctx context.Context, req cache.Request) (*cache.Object, error)
}

// Purges tell what operators have removed. Check returns the [*cache.Error] to answer
// with in place of a target, CheckVersion of a version of a module, nil where it is not
// purged; List returns what is left of a list.
type Purges interface {
	Check(name string) error
	CheckVersion(m module.Version) error
	List(path string, list []byte) []byte
}

// Config says how a Gateway answers.
type Config struct {
	// Cache is asked for every object. Required.
	Cache Cache
	// Sumdbs are the names of the checksum databases served. Every other name is
	// answered with 404 and never asked for. None: no database is served.
	Sumdbs []string
	// Purges are asked before anything is answered. nil: nothing is purged.
	Purges Purges
	// Refreshes are the orders to ask the Cache again; what memory holds from before one
	// is asked for anew. nil: there are none.
	Refreshes *refresh.Orders
	// Hooks answers POST /-/hooks/push, where code hosts tell of pushes. nil: they are
	// told that nobody listens.
	Hooks http.Handler
	// Memory is how many bytes of small objects are kept. 0 means 64 MiB; less
	// keeps nothing, and then nothing guards against an older list.
	Memory int64
	// Via is our own mark in Via headers (RFC 9110, 7.6.3), for example
	// "1.1 ringmod-7f3a". A request that carries it has gone round in a circle.
	// Empty: not looked for.
	Via string
	// Region and Node are on each access line, unless empty.
	Region, Node string
	// Private are patterns of modules (as in GOPRIVATE) whose answers no shared
	// cache may keep. Empty: only what the Cache marks.
	Private string
	// Ready tells why requests should go elsewhere for now. nil: always ready.
	Ready func() error
	// Version and Upstreams are shown on the page, upstreams without credentials.
	Version   string
	Upstreams []string
	// Regions returns what the page shows of the cluster, sorted by name. nil: there
	// is no cluster to show.
	Regions func() []Region
	// Logger takes the access lines. nil: none are written.
	Logger *slog.Logger
	// Metrics is where the metrics are registered. nil: nowhere.
	Metrics prometheus.Registerer
}

// Region is a part of the cluster, as the page shows it.
type Region struct {
	Name      string
	Nodes, Up int  // that are in, and those of them that are up
	Short     bool // fewer copies of some objects are in reach than should be
}

// Gateway answers HTTP requests. It is safe for concurrent use.
type Gateway struct {
	cache   Cache
	purges  Purges
	orders  *refresh.Orders
	hooks   http.Handler
	sumdbs  []string
	private string
	via     string
	ready   func() error
	log     *slog.Logger
	metrics *metrics
	page    *page

	flights   flights
	immutable *memory
	mutable   *memory

	newestMu sync.Mutex // held while an entry of mutable is replaced by a newer one
}

const defaultMemory = 64 << 20

// New returns a Gateway. It fails when Cache is missing or the metrics are
// registered already.
func New(cfg Config) (*Gateway, error) {
	if cfg.Cache == nil {
		return nil, errors.New("a gateway needs a cache")
	}
	if cfg.Memory == 0 {
		cfg.Memory = defaultMemory
	}
	if cfg.Purges == nil {
		cfg.Purges = noPurges{}
	}
	if cfg.Refreshes == nil {
		cfg.Refreshes = refresh.New()
	}
	if cfg.Hooks == nil {
		cfg.Hooks = http.HandlerFunc(noHooks)
	}
	if cfg.Ready == nil {
		cfg.Ready = func() error { return nil }
	}
	// What changes has memory of its own: nothing else can push a list out and
	// with it the knowledge of how new the list was.
	g := &Gateway{
		cache:     cfg.Cache,
		purges:    cfg.Purges,
		orders:    cfg.Refreshes,
		hooks:     cfg.Hooks,
		sumdbs:    slices.Clone(cfg.Sumdbs),
		private:   cfg.Private,
		via:       viaName(cfg.Via),
		ready:     cfg.Ready,
		log:       accessLogger(cfg),
		page:      newPage(cfg),
		immutable: newMemory(cfg.Memory - cfg.Memory/4),
		mutable:   newMemory(cfg.Memory / 4),
	}
	var err error
	if g.metrics, err = newMetrics(cfg.Metrics, g); err != nil {
		return nil, fmt.Errorf("registering the gateway's metrics: %w", err)
	}
	return g, nil
}

// maxURL is the longest request URI that is looked at, in bytes. The longest
// target is a fourth of it.
const maxURL = 8 << 10

// ServeHTTP answers one request, writes its access line and counts it. It
// panics only with http.ErrAbortHandler, to cut an answer that cannot be
// completed.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{ResponseWriter: w, r: r, start: time.Now()}
	g.metrics.inFlight.Inc()
	defer g.finish(x) //nolint:contextcheck // the context is that of x.r
	g.route(x)        //nolint:contextcheck // the context is that of x.r
}

func (g *Gateway) route(x *exchange) {
	r := x.r
	path := r.URL.Path
	if path == hookPath {
		x.kind = kindHook
		g.hooks.ServeHTTP(x, r)
		return
	}
	refuseBody(x)
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		x.Header().Set("Allow", "GET, HEAD")
		x.refuse(http.StatusMethodNotAllowed, "only GET and HEAD are answered here", noStore)
	case len(r.RequestURI) > maxURL || len(path) > maxURL:
		x.refuse(http.StatusRequestURITooLong, "the URL is longer than any module's", noStore)
	case path == "/":
		g.page.serve(x)
	case path == "/robots.txt":
		x.kind = kindPage
		x.text(http.StatusOK, "User-agent: *\nDisallow: /\n", "public, max-age=86400")
	case path == "/healthz":
		x.kind = kindHealth
		x.text(http.StatusOK, "ok\n", noStore)
	case path == "/readyz":
		x.kind = kindHealth
		x.readiness(g.ready())
	default:
		g.object(x, path)
	}
}

// object answers what may name a target.
func (g *Gateway) object(x *exchange, path string) {
	r := x.r
	name, rooted := strings.CutPrefix(path, "/")
	if !rooted || hidesSeparator(r.URL.RawPath) {
		x.fail(&target.Error{Target: path, Foreign: true, Err: errEncoded})
		return
	}
	if g.via != "" && loops(r.Header["Via"], g.via) {
		x.refuse(http.StatusBadGateway, "this request has come back to the gateway that sent it: "+
			"the upstream list (--upstream) of this ringmod, or of a proxy behind it, leads back here; take that entry out", noStore)
		return
	}
	mode := cache.AllowFill
	if rest, ok := strings.CutPrefix(name, "cached-only/"); ok {
		name, mode = rest, cache.OnlyIfCached
	} else if noFetch(r.Header["Disable-Module-Fetch"]) {
		mode = cache.OnlyIfCached
	}
	if err := g.purges.Check(name); err != nil {
		g.purged(x, name, err)
		return
	}
	// Only what Parse accepted is in memory, so a hit needs no parsing.
	if e := g.remembered(name, x.start); e != nil {
		x.target, x.kind = e.target, uint8(e.target.Kind)
		e.serve(x, e.origin())
		return
	}
	t, err := target.Parse(name)
	if err != nil {
		x.fail(err)
		return
	}
	x.target, x.kind = t, uint8(t.Kind)
	x.private = g.isPrivate(t)
	g.fetch(x, mode)
}

// hookPath is where code hosts tell of pushes. No module can have this name.
const hookPath = "/-/hooks/push"

func noHooks(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h["Content-Type"], h["X-Content-Type-Options"], h["Cache-Control"] = plainText, nosniff, []string{noStore}
	w.WriteHeader(http.StatusNotFound)
	_, _ = io.WriteString(w, "this gateway listens to no hooks: it was started without --hook-secret-file\n")
}

func (g *Gateway) isPrivate(t target.Target) bool {
	return module.MatchPrefixPatterns(g.private, t.Path)
}

var errEncoded = errors.New("a separator that is percent-encoded")

// hidesSeparator reports whether an encoded path holds an encoded slash,
// backslash or NUL: nobody who means a module writes these.
func hidesSeparator(rawPath string) bool {
	for {
		_, rest, ok := strings.Cut(rawPath, "%")
		if !ok || len(rest) < 2 {
			return false
		}
		switch rest[:2] {
		case "2f", "2F", "5c", "5C", "00":
			return true
		}
		rawPath = rest
	}
}

// noFetch reports whether Disable-Module-Fetch asks for no fill
// (protocol.md, B8).
func noFetch(values []string) bool {
	return len(values) > 0 && strings.EqualFold(strings.TrimSpace(values[0]), "true")
}

// viaName returns the pseudonym in an element of a Via header.
func viaName(element string) string {
	fields := strings.Fields(element)
	if len(fields) < 2 {
		return ""
	}
	return fields[1]
}

func loops(values []string, name string) bool {
	for _, value := range values {
		for element := range strings.SplitSeq(value, ",") {
			if viaName(element) == name {
				return true
			}
		}
	}
	return false
}
