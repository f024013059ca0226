package upstream

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/spans"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/polite"
)

// maxAttempts is how often a request is tried at most, the first time included.
const maxAttempts = 4

// source is an http(s) place to fetch from: an entry or a checksum database.
type source struct {
	base *url.URL // without credentials
	auth string   // value of the Authorization header; may be empty
	host *polite.Host
}

// newSource prepares base, with the credentials that it has or that netrc has for it.
func (c *Client) newSource(base *url.URL) *source {
	clean := *base
	clean.User = nil
	s := &source{base: &clean, host: c.hosts.Host(clean.Host, polite.Proxy)}
	if base.User != nil {
		password, _ := base.User.Password()
		s.auth = basicAuth(base.User.Username(), password)
	} else if login, password, ok := c.netrc.credentials(base); ok && maySendCredentials(base) {
		s.auth = basicAuth(login, password)
	}
	return s
}

func basicAuth(login, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(login+":"+password))
}

// url returns base/name, escaped as the go command does it for module paths.
func (s *source) url(name string) string {
	u := *s.base
	elements := strings.Split(name, "/")
	for i, e := range elements {
		elements[i] = url.PathEscape(e)
	}
	u.RawPath = strings.TrimSuffix(s.base.EscapedPath(), "/") + "/" + strings.Join(elements, "/")
	u.Path = strings.TrimSuffix(s.base.Path, "/") + "/" + name
	return u.String()
}

func newHTTPClient(cfg Config, timeouts Timeouts) *http.Client {
	tlsConfig := cfg.TLS.Clone()
	if tlsConfig == nil {
		tlsConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	dial := cfg.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	return &http.Client{
		CheckRedirect: checkRedirect,
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         dialWithin(timeouts.Connect, dial),
			TLSClientConfig:     tlsConfig,
			TLSHandshakeTimeout: timeouts.TLS,
			ForceAttemptHTTP2:   true,
			MaxIdleConnsPerHost: cmp.Or(max(cfg.PerHost, 0), polite.DefaultAtOnce),
			IdleConnTimeout:     90 * time.Second,
			// A connection that died silently must not swallow request after request.
			HTTP2: &http.HTTP2Config{SendPingTimeout: timeouts.Stall, PingTimeout: timeouts.Stall},
		},
	}
}

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

func dialWithin(limit time.Duration, dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, limit, &silence{text: fmt.Sprintf("no connection within %v", limit), again: true})
		defer cancel()
		conn, err := dial(ctx, network, addr)
		if err != nil && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return conn, err
	}
}

// checkRedirect allows what the go command allows (cmd/go/internal/web/http.go).
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return redirectError("stopped after 10 redirects")
	}
	if req.URL.Scheme == "http" && via[len(via)-1].URL.Scheme == "https" {
		return redirectError("redirected from https to http, which is not followed")
	}
	req.Header.Del("Referer") // a base URL may hold a token in its query
	return nil
}

// request is what is asked of a source.
type request struct {
	src  *source
	kind target.Kind
	name string // below src.base
}

// failure is a failed attempt.
type failure struct {
	err   *cache.Error
	again bool // another attempt may help
	away  bool // there was no answer at all, or 503
	told  bool // RetryAfter is what the host has said
}

// send asks for r with more header fields, again while that may help and the
// budget lasts. The answer has status 200, or 206 or 304 where header asked for
// it; its body is watched, its errors are raw. An error is a *cache.Error.
func (c *Client) send(ctx context.Context, r request, header http.Header) (*http.Response, error) {
	h := r.src.host
	deadline := time.Now().Add(c.timeouts.Retry)
	for n := 1; ; n++ {
		if err := h.Turn(ctx, deadline); err != nil {
			return nil, c.noTurn(ctx, h, err)
		}
		began := time.Now()
		resp, f := c.attempt(ctx, r, header)
		if f == nil {
			return resp, nil
		}
		if ctx.Err() != nil {
			h.Dropped()
			return nil, givenUp(ctx, h.Name())
		}
		delay := c.backoff(n)
		late := time.Now().Add(max(delay, f.err.RetryAfter)).After(deadline)
		if !f.again || n == maxAttempts || late || !h.Patient() {
			if f.away {
				h.Unreachable(began, f.err)
			}
			return nil, f.err
		}
		c.log.DebugContext(ctx, "upstream request failed, trying again", slog.String("upstream", h.Name()),
			slog.String("key", r.name), slog.Int("attempt", n), slog.Any("err", f.err))
		if err := sleep(ctx, delay, h.Name()); err != nil {
			return nil, err
		}
	}
}

// noTurn is the error of who is not to ask a host.
func (c *Client) noTurn(ctx context.Context, h *polite.Host, err error) error {
	if ctx.Err() != nil {
		return givenUp(ctx, h.Name())
	}
	return asError(err)
}

// backoff returns the wait after attempt n: a fiftieth of the budget, tripled
// each time, of which the upper half is random.
func (c *Client) backoff(n int) time.Duration {
	d := c.timeouts.Retry / 50
	for range n - 1 {
		d *= 3
	}
	return d/2 + rand.N(d/2+1)
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration, source string) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return givenUp(ctx, source)
	}
}

// attempt asks once.
func (c *Client) attempt(ctx context.Context, r request, header http.Header) (*http.Response, *failure) {
	name := r.src.host.Name()
	ctx, span := spans.Start(ctx, trace.SpanKindClient, "upstream GET", spans.Key.String(r.name), semconv.ServerAddress(name))
	ctx, stop := context.WithCancelCause(ctx)
	cancel := func(cause error) { // also when the body has been read
		stop(cause)
		spans.End(span, cause)
	}
	timer := time.AfterFunc(c.timeouts.Header, func() {
		cancel(&silence{text: fmt.Sprintf("no answer within %v", c.timeouts.Header)})
	})
	defer timer.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.src.url(r.name), nil)
	if err != nil {
		cancel(nil)
		return nil, &failure{err: broken(name, err, "%s makes no URL", r.name)}
	}
	c.setHeader(req, r, header)
	start := time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		c.observe(name, 0, time.Since(start))
		f := transportError(name, err, context.Cause(ctx))
		cancel(f.err)
		return nil, f
	}
	span.SetAttributes(semconv.HTTPResponseStatusCode(resp.StatusCode))
	c.observe(name, resp.StatusCode, time.Since(start))
	resp.Body = watch(resp.Body, c.timeouts.Stall, cancel, func() error { return context.Cause(ctx) })
	f := checkAnswer(r, resp, header)
	if f == nil || !f.away && f.err.Reason != cache.Busy {
		r.src.host.Answered()
	}
	if f != nil {
		cancel(f.err)
		_ = resp.Body.Close()
		return nil, f
	}
	return resp, nil
}

func (c *Client) setHeader(req *http.Request, r request, header http.Header) {
	req.Header.Set("User-Agent", c.userAgent)
	if c.via != "" {
		req.Header.Set("Via", c.via)
	}
	if r.src.auth != "" {
		req.Header.Set("Authorization", r.src.auth)
	}
	if r.kind == target.Zip {
		req.Header.Set("Accept-Encoding", "identity") // its length and ranges are wanted
	}
	maps.Copy(req.Header, header)
}

// checkAnswer returns a failure for an answer that is no success.
func checkAnswer(r request, resp *http.Response, header http.Header) *failure {
	name := r.src.host.Name()
	switch {
	case resp.StatusCode == http.StatusOK:
	case resp.StatusCode == http.StatusPartialContent && header.Get("Range") != "":
	case resp.StatusCode == http.StatusNotModified && (header.Get("If-None-Match") != "" || header.Get("If-Modified-Since") != ""):
		return nil
	default:
		f := statusError(name, resp)
		if f.err.Reason == cache.Busy {
			f.err.RetryAfter = r.src.host.Refused(f.err.RetryAfter, f.told, f.err.Text)
		}
		return f
	}
	if encoding := resp.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return &failure{err: broken(name, nil, "answered with content encoding %q, which was not asked for", oneLine(encoding))}
	}
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	if r.kind != target.Zip && strings.EqualFold(strings.TrimSpace(mediaType), "text/html") {
		return &failure{err: broken(name, nil, "answered with an HTML page")}
	}
	if resp.StatusCode == http.StatusOK && resp.ContentLength > Limit(r.kind) {
		return &failure{err: tooLarge(name, r.kind)}
	}
	return nil
}

// watched is the body of one attempt. A read that brings nothing for the stall
// timeout ends the attempt with a *silence.
type watched struct {
	rc     io.ReadCloser
	limit  time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
	cause  func() error
}

func watch(rc io.ReadCloser, limit time.Duration, cancel context.CancelCauseFunc, cause func() error) *watched {
	timer := time.AfterFunc(limit, func() { cancel(&silence{text: fmt.Sprintf("no byte for %v", limit)}) })
	timer.Stop()
	return &watched{rc: rc, limit: limit, timer: timer, cancel: cancel, cause: cause}
}

func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.limit)
	n, err := w.rc.Read(p)
	w.timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) {
		if s, ok := errors.AsType[*silence](w.cause()); ok {
			err = s
		}
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	w.cancel(nil)
	return w.rc.Close()
}
