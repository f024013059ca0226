package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ringmod/ringmod/internal/cache"
)

const (
	maxErrorBody = 4 << 10 // bytes of an error body that are read
	maxText      = 200     // bytes of it that are passed on

	maxRetryAfter = time.Hour // of a Retry-After that is believed
)

// silence is the cause of a request that we ended because a source took too long.
type silence struct {
	text  string
	again bool // trying again may help
}

func (s *silence) Error() string { return s.text }

// redirectError is a redirect that we do not follow.
type redirectError string

func (e redirectError) Error() string { return string(e) }

// givenUp is the error when the caller's ctx has ended.
func givenUp(ctx context.Context, source string) *cache.Error {
	text := "the request was given up before the answer came"
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		text = "no answer in the time that the request had"
	}
	return slow(source, ctx.Err(), text)
}

// broken makes an error of that reason. A broken connection must not match
// io.EOF, which would end a copy as if all was well.
func broken(source string, err error, format string, args ...any) *cache.Error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &cache.Error{Reason: cache.Broken, Source: source, Text: fmt.Sprintf(format, args...), Err: err}
}

func slow(source string, err error, text string) *cache.Error {
	return &cache.Error{Reason: cache.Slow, Source: source, Text: text, Err: err}
}

// transportError puts what went wrong below HTTP into words; cause is why the
// attempt's own context ended, if it did.
func transportError(source string, err, cause error) *failure {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // its text has the URL, which may be a signed one
	}
	if strings.HasPrefix(err.Error(), "failed to parse Location header") { // as net/http words it, with the URL
		err = redirectError("redirected to what is no URL")
	}
	for _, err := range []error{cause, err} {
		if s, ok := errors.AsType[*silence](err); ok {
			return &failure{err: slow(source, err, s.text), again: s.again, away: true}
		}
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dnsError(source, dns, err)
	}
	if e := tlsError(source, err); e != nil {
		return &failure{err: e, away: true}
	}
	if redirect, ok := errors.AsType[redirectError](err); ok {
		return &failure{err: broken(source, err, "%s", string(redirect))}
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return &failure{err: broken(source, err, "%s", errno.Error()), again: true, away: true}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &failure{err: broken(source, err, "connection closed without an answer"), again: true, away: true}
	}
	text := oneLine(strings.TrimPrefix(err.Error(), "net/http: "))
	if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() {
		return &failure{err: slow(source, err, text), again: true, away: true}
	}
	return &failure{err: broken(source, err, "%s", text), again: true, away: true}
}

func dnsError(source string, dns *net.DNSError, err error) *failure {
	switch {
	case dns.IsNotFound:
		return &failure{err: broken(source, err, "no such host"), away: true}
	case dns.IsTimeout:
		return &failure{err: slow(source, err, "no answer from DNS"), again: true, away: true}
	default:
		return &failure{err: broken(source, err, "DNS: %s", oneLine(dns.Err)), again: true, away: true}
	}
}

// tlsError returns nil when err is none of TLS.
func tlsError(source string, err error) *cache.Error {
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return broken(source, err, "certificate not accepted: %s", oneLine(strings.TrimPrefix(e.Err.Error(), "x509: ")))
	}
	if e, ok := errors.AsType[tls.AlertError](err); ok {
		return broken(source, err, "TLS: %s", oneLine(e.Error()))
	}
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	if noTLS || errors.Is(err, http.ErrSchemeMismatch) {
		return broken(source, err, "does not speak HTTPS on this port")
	}
	return nil
}

// statusError turns an answer that is no success into an error, using a line of
// its body.
func statusError(source string, resp *http.Response) *failure {
	line := bodyLine(resp)
	text := strings.TrimSpace(fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode)))
	if line != "" && line != http.StatusText(resp.StatusCode) {
		text += ": " + line
	}
	e := &cache.Error{Reason: cache.Broken, Source: source, Text: text}
	var again, away bool
	after, told := parseRetryAfter(resp.Header.Get("Retry-After"), time.Now())
	switch resp.StatusCode {
	case http.StatusNotFound:
		e.Reason = cache.NotFound
	case http.StatusGone:
		e.Reason = cache.Gone
	case http.StatusUnauthorized, http.StatusForbidden:
		e.Reason = cache.Denied
	case http.StatusTooManyRequests:
		e.Reason, e.RetryAfter, again = cache.Busy, after, true
	case http.StatusServiceUnavailable:
		if told {
			e.Reason, e.RetryAfter = cache.Busy, after
		}
		again, away = true, !told
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		again = true
	}
	if e.Reason.Absent() && line != "" {
		e.Text = line // it says more than the number, which the reason has
	}
	return &failure{err: e, again: again, away: away, told: told}
}

// parseRetryAfter reads seconds or a date (RFC 9110, 10.2.3) and believes at
// most maxRetryAfter.
func parseRetryAfter(value string, now time.Time) (d time.Duration, ok bool) {
	if value == "" {
		return 0, false
	}
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return min(time.Duration(seconds)*time.Second, maxRetryAfter), true
	}
	t, err := http.ParseTime(value)
	if err != nil {
		return 0, false
	}
	return min(max(t.Sub(now), 0), maxRetryAfter), true
}

// bodyLine returns the first line of an error body that is plain text.
func bodyLine(resp *http.Response) string {
	mediaType, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || mediaType != "text/plain" {
		return ""
	}
	if c := strings.ToLower(params["charset"]); c != "" && c != "utf-8" && c != "us-ascii" {
		return ""
	}
	data, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // what came is enough
	return oneLine(string(data))
}

// oneLine returns the first line of s that is not blank, cleaned for a terminal
// and short.
func oneLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimLeftFunc(s, unicode.IsSpace), "\n")
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return -1
		default:
			return r
		}
	}, s)
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText-len("…")], "") + "…"
	}
	return strings.TrimSpace(s)
}
