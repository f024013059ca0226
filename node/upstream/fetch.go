package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/polite"
)

// Fetch asks the entries of the list, in its order, for a target of a module. v
// is what an earlier answer to t said, or zero.
//
// When each entry that was asked says 404 or 410 the reason is NotFound or, with a
// 410 among them, Gone. NotCached means that the list ended without asking anybody.
func (c *Client) Fetch(ctx context.Context, t target.Target, v Validators) (*Response, error) {
	if t.Kind.Sumdb() || t.Path == "" {
		return nil, &cache.Error{Reason: cache.Malformed, Text: "not a file of a module: " + t.String()}
	}
	if b := bundleOf(ctx); b != nil {
		return b.Fetch(ctx, t)
	}
	if c.Offline() {
		return nil, isOff()
	}
	resp, vcs, best := c.walk(ctx, t, v)
	switch {
	case vcs:
		return c.fromVCS(ctx, best, t)
	case best != nil:
		return nil, best
	default:
		return resp, nil
	}
}

// FetchListed is Fetch for who asks version control itself: vcs says that it has the last
// word, err what the entries before it have said, nil where none was asked. It asks no
// version control.
func (c *Client) FetchListed(ctx context.Context, t target.Target) (resp *Response, vcs bool, err error) {
	if c.Offline() {
		return nil, false, isOff()
	}
	resp, vcs, best := c.walk(ctx, t, Validators{})
	if best != nil {
		err = best
	}
	return resp, vcs, err
}

// Refs asks version control what the tags of the repository at url point to, as
// *direct.Direct does.
func (c *Client) Refs(ctx context.Context, path, url string) (map[string]string, error) {
	vcs, ok := c.direct.(interface {
		Refs(ctx context.Context, path, url string) (map[string]string, error)
	})
	switch {
	case c.Offline():
		return nil, isOff()
	case !ok:
		return nil, &cache.Error{Reason: cache.Broken, Source: "direct", Text: "version control cannot be asked for its tags here"}
	default:
		return vcs.Refs(ctx, path, url)
	}
}

// walk asks the entries until one answers, or vcs is to be asked. Without an answer best is
// what they have said.
func (c *Client) walk(ctx context.Context, t target.Target, v Validators) (resp *Response, vcs bool, best *cache.Error) {
	private := module.MatchPrefixPatterns(c.private, t.Path)
	for _, e := range c.entries {
		if e.kind == offEntry {
			return nil, false, orElse(best, isOff())
		}
		if e.kind == directEntry {
			return nil, true, best
		}
		if private && e.kind == proxyEntry {
			continue
		}
		resp, err := c.ask(ctx, e, t, c.usable(v))
		if err == nil {
			return resp, false, nil
		}
		if best = worse(best, err); !e.onError && !err.Reason.Absent() || ctx.Err() != nil {
			return nil, false, best
		}
	}
	return nil, private, best // GOPRIVATE implies direct
}

func (c *Client) ask(ctx context.Context, e entry, t target.Target, v Validators) (*Response, *cache.Error) {
	if e.kind == fileEntry {
		return openFile(e, t, v)
	}
	return c.get(ctx, request{e.source, t.Kind, t.String()}, v)
}

// usable drops what could match an answer of another entry by accident: an ETag
// names content, a time does not.
func (c *Client) usable(v Validators) Validators {
	if v.ETag != "" || len(c.entries) > 1 {
		v.LastModified = ""
	}
	return v
}

// get fetches r. The Response's body holds a slot of the host until
// it has ended or is closed.
func (c *Client) get(ctx context.Context, r request, v Validators) (*Response, *cache.Error) {
	leave, err := r.src.host.Enter(ctx, r.kind == target.Zip, time.Now().Add(c.timeouts.Retry))
	if err != nil {
		return nil, asError(c.noTurn(ctx, r.src.host, err))
	}
	header := http.Header{}
	if v.ETag != "" {
		header.Set("If-None-Match", v.ETag)
	}
	if v.LastModified != "" {
		header.Set("If-Modified-Since", v.LastModified)
	}
	resp, err := c.send(ctx, r, header)
	if err != nil {
		leave()
		return nil, asError(err)
	}
	answer := &Response{
		Size:       resp.ContentLength,
		Source:     r.src.host.Name(),
		Validators: Validators{ETag: resp.Header.Get("ETag"), LastModified: resp.Header.Get("Last-Modified")},
	}
	if resp.StatusCode == http.StatusNotModified {
		_ = resp.Body.Close()
		leave()
		answer.NotModified, answer.Size, answer.Body = true, 0, http.NoBody
		return answer, nil
	}
	answer.Body = c.newBody(ctx, r, resp, leave)
	return answer, nil
}

// Robots gets a host's robots.txt, as polite.GetRobots says.
func (c *Client) Robots(ctx context.Context, host string) (status int, body []byte, err error) {
	h := c.hosts.Host(host, polite.Repository)
	if err := h.Turn(ctx, time.Now().Add(c.timeouts.Retry)); err != nil {
		return 0, nil, c.noTurn(ctx, h, err)
	}
	defer h.Dropped()
	ctx, cancel := context.WithTimeout(ctx, c.timeouts.Header)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, (&url.URL{Scheme: "https", Host: host, Path: "/robots.txt"}).String(), nil)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("User-Agent", c.userAgent)
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, polite.MaxRobots))
	return resp.StatusCode, body, err
}

// worse returns the error to report of two: trouble outranks absence, Gone
// outranks NotFound, the later wins otherwise.
func worse(best, err *cache.Error) *cache.Error {
	switch {
	case best == nil, !err.Reason.Absent():
		return err
	case !best.Reason.Absent(), best.Reason == cache.Gone:
		return best
	default:
		return err
	}
}

func orElse(e, other *cache.Error) *cache.Error {
	if e != nil {
		return e
	}
	return other
}

func isOff() *cache.Error { return &cache.Error{Reason: cache.NotCached, Text: "upstream is off"} }

// fromVCS is the end of the list: version control. best is what went before.
func (c *Client) fromVCS(ctx context.Context, best *cache.Error, t target.Target) (*Response, error) {
	if c.direct == nil {
		return nil, notDirect(best, t)
	}
	resp, err := c.direct.Fetch(ctx, t)
	switch {
	case err == nil:
		return resp, nil
	case best != nil && best.Reason.Absent() && errors.Is(err, ErrNoHost):
		return nil, best // nobody is left who could have it
	default:
		return nil, worse(best, asError(err))
	}
}

// notDirect is the error at "direct" for who has nothing to ask it with.
func notDirect(best *cache.Error, t target.Target) *cache.Error {
	switch {
	case best == nil:
		return &cache.Error{Reason: cache.Broken, Source: "direct", Text: "fetching " + t.Path +
			" from version control is for nodes, and none can be asked now"}
	case best.Reason.Absent():
		e := *best
		e.Text += " (version control, \"direct\", was not asked)"
		return &e
	default:
		return best
	}
}

// asError gives err its type back.
func asError(err error) *cache.Error {
	if e, ok := err.(*cache.Error); ok { //nolint:errorlint // only our own errors come here
		return e
	}
	return &cache.Error{Reason: cache.Internal, Err: err}
}
