package direct

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/polite"
	"github.com/ringmod/ringmod/node/upstream"
)

const (
	patience   = 10 * time.Second // for a host that wants to be left alone
	maxOrigins = 4096             // modules whose host is remembered
)

// politely asks the host of t when it may be asked, and tells how that went.
func (d *Direct) politely(ctx context.Context, t target.Target, ask func() (*upstream.Response, error)) (*upstream.Response, error) {
	name, path := d.origins.find(t.Path)
	host := d.cfg.Hosts.Host(name, polite.Repository)
	if err := host.Crawl(ctx, path); err != nil {
		return nil, d.noTurn(ctx, err)
	}
	deadline := time.Now().Add(patience)
	leave, err := host.Enter(ctx, t.Kind == target.Zip, deadline)
	if err != nil {
		return nil, d.noTurn(ctx, err)
	}
	defer leave()
	if err := host.Turn(ctx, deadline); err != nil {
		return nil, d.noTurn(ctx, err)
	}
	began := time.Now()
	resp, err := ask()
	report(ctx, host, began, err)
	return resp, err
}

func (d *Direct) noTurn(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return d.ended(ctx)
	}
	return asError(err)
}

// report tells a host's state by the end of a command. A host that does not exist is none
// that is down, nor is one whose repository is too large to be had in time.
func report(ctx context.Context, host *polite.Host, began time.Time, err error) {
	e, ok := errors.AsType[*cache.Error](err)
	switch {
	case err == nil:
		host.Answered()
	case !ok, ctx.Err() != nil, errors.Is(err, upstream.ErrNoHost):
		host.Dropped()
	case e.Reason == cache.Busy:
		e.Source, e.RetryAfter = host.Name(), host.Refused(0, false, e.Text)
	case errors.Is(err, errAway):
		host.Unreachable(began, e)
	case e.Reason.Absent(), e.Reason == cache.Denied:
		host.Answered()
	default:
		host.Dropped()
	}
}

// origins are where the repositories of modules are.
type origins struct {
	mu sync.Mutex
	of map[string]*url.URL // by module path
}

// find returns the host of a module, and its place there.
func (o *origins) find(module string) (host, path string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if u := o.of[module]; u != nil {
		return u.Hostname(), "/" + strings.TrimPrefix(u.EscapedPath(), "/")
	}
	host, path, _ = strings.Cut(module, "/")
	return host, "/" + path
}

// learn reads what the go command says of a module's origin.
func (o *origins) learn(module string, origin json.RawMessage) {
	var said struct{ URL string }
	if json.Unmarshal(origin, &said) != nil {
		return
	}
	u, err := url.Parse(said.URL)
	if err != nil || u.Hostname() == "" {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.of == nil || len(o.of) >= maxOrigins {
		o.of = make(map[string]*url.URL) // they are learned again
	}
	o.of[module] = u
}
