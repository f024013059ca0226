package upstream

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

// A body that breaks is asked for again at most maxResumes times, not counting
// those after which at least resumeProgress bytes were new.
const (
	maxResumes     = 8
	resumeProgress = 1 << 20
)

// Limit returns how large a file of a kind may be, in bytes: for zip and mod as the go
// command and x/mod/zip have it (protocol.md A16, B5), for the rest our own.
func Limit(kind target.Kind) int64 {
	switch kind {
	case target.Zip:
		return 500 << 20
	case target.Mod, target.List:
		return 16 << 20
	default:
		return 1 << 20
	}
}

func tooLarge(source string, kind target.Kind) *cache.Error {
	return broken(source, nil, "larger than %d MiB, the most that a %v may have", Limit(kind)>>20, kind)
}

// body yields one file, over as many requests as it takes.
type body struct {
	request

	again func(b *body, err error) (*http.Response, error) // asks for the rest after err
	stop  func() error                                     // not nil when the caller has given up
	leave func()                                           // gives the host's slot back

	rc        io.ReadCloser
	size      int64 // -1 while unknown
	validator string
	off       int64
	sum       maphash.Hash // of the bytes up to off
	err       error        // of all further reads

	budget   time.Duration
	resumes  int
	resumeAt int64     // offset of the last resumption
	deadline time.Time // no resumption after it; zero while bytes come
}

func (c *Client) newBody(ctx context.Context, r request, resp *http.Response, leave func()) *body {
	return &body{
		request: r,
		again: func(b *body, err error) (*http.Response, error) {
			c.log.DebugContext(ctx, "upstream body broke, resuming", slog.String("upstream", r.src.host.Name()),
				slog.String("key", r.name), slog.Int64("bytes", b.off), slog.Any("err", err))
			if b.resumes > 1 {
				if err := sleep(ctx, c.backoff(min(b.resumes-1, maxAttempts)), r.src.host.Name()); err != nil {
					return nil, err
				}
			}
			return c.send(ctx, r, b.header())
		},
		stop: func() error {
			if ctx.Err() == nil {
				return nil
			}
			return givenUp(ctx, r.src.host.Name())
		},
		leave: leave, rc: resp.Body, size: resp.ContentLength, validator: rangeValidator(resp),
		budget: c.timeouts.Retry,
	}
}

// rangeValidator returns what If-Range may hold (RFC 9110, 13.1.5): a strong
// ETag, else a Last-Modified that is old enough to be a strong one. Without it
// parts of two states of a file could be put together, so no range is asked for.
func rangeValidator(resp *http.Response) string {
	if resp.Uncompressed {
		return "" // offsets count decoded bytes
	}
	if etag := resp.Header.Get("ETag"); strings.HasPrefix(etag, `"`) {
		return etag
	}
	modified, err := http.ParseTime(resp.Header.Get("Last-Modified"))
	date, dateErr := http.ParseTime(resp.Header.Get("Date"))
	if err != nil || dateErr != nil || date.Sub(modified) < time.Minute {
		return ""
	}
	return resp.Header.Get("Last-Modified")
}

// Read implements io.Reader. Errors other than io.EOF are *cache.Error and final.
func (b *body) Read(p []byte) (int, error) {
	for b.err == nil {
		n, err := b.rc.Read(p)
		if n > 0 {
			b.take(p[:n])
		}
		if err != nil && b.err == nil {
			b.ended(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, b.err
}

// take accounts for bytes that are handed out.
func (b *body) take(p []byte) {
	b.off += int64(len(p))
	b.sum.Write(p)
	b.deadline = time.Time{}
	switch {
	case b.off > Limit(b.kind):
		b.fail(tooLarge(b.src.host.Name(), b.kind))
	case b.size >= 0 && b.off > b.size:
		b.fail(broken(b.src.host.Name(), nil, "sent more than the %d bytes that it announced", b.size))
	}
}

// ended handles the end of an attempt's body: the end of the file, or a reason
// to go on with another attempt.
func (b *body) ended(err error) {
	if errors.Is(err, io.EOF) && b.size < 0 || b.off == b.size {
		b.fail(io.EOF)
		return
	}
	for b.err == nil {
		if b.deadline.IsZero() {
			b.deadline = time.Now().Add(b.budget)
		}
		if b.off-b.resumeAt >= resumeProgress && b.validator != "" {
			b.resumes = 0
		}
		if b.resumes == maxResumes || time.Now().After(b.deadline) || b.stop() != nil {
			b.fail(b.cut(err))
			return
		}
		b.resumes++
		b.resumeAt = b.off
		if err = b.resume(err); err == nil {
			return
		}
	}
}

// cut describes the broken body for who reads it.
func (b *body) cut(err error) error {
	if given := b.stop(); given != nil {
		return given
	}
	of := ""
	if b.size >= 0 {
		of = fmt.Sprintf(" of %d", b.size)
	}
	if s, ok := errors.AsType[*silence](err); ok {
		text := fmt.Sprintf("%s after %d%s bytes", s.text, b.off, of)
		return slow(b.src.host.Name(), err, text)
	}
	return broken(b.src.host.Name(), err, "connection broken after %d%s bytes", b.off, of)
}

func (b *body) fail(err error) {
	b.err = err
	_ = b.rc.Close()
	b.leave()
}

// header asks for what is missing, if the file is still the same.
func (b *body) header() http.Header {
	header := http.Header{}
	if b.validator != "" && b.off > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.off))
		header.Set("If-Range", b.validator)
	}
	return header
}

// resume asks for the rest. When it returns nil, b.rc goes on at b.off or b.err
// is set for good; an error means that another try makes sense.
func (b *body) resume(err error) error {
	_ = b.rc.Close()
	resp, err := b.again(b, err) //nolint:bodyclose // becomes b.rc, which fail closes
	if err != nil {
		b.fail(resumeError(err))
		return nil
	}
	b.rc = resp.Body
	if resp.StatusCode == http.StatusPartialContent {
		return b.goOn(resp)
	}
	return b.skip(resp)
}

// resumeError makes a failed resumption never look like absence: somebody has
// had the first part already.
func resumeError(err error) error {
	if e, ok := errors.AsType[*cache.Error](err); ok && (e.Reason.Absent() || e.Reason == cache.Denied) {
		return broken(e.Source, e, "changed while being read: %s", e.Text)
	}
	return err
}

func (b *body) changed() error {
	b.fail(broken(b.src.host.Name(), nil, "changed while being read"))
	return nil
}

// goOn takes a 206 whose range is what was asked for.
func (b *body) goOn(resp *http.Response) error {
	start, total, ok := parseContentRange(resp.Header.Get("Content-Range"))
	etag := resp.Header.Get("ETag")
	if !ok || start != b.off || total >= 0 && b.size >= 0 && total != b.size ||
		etag != "" && strings.HasPrefix(b.validator, `"`) && etag != b.validator {
		return b.changed()
	}
	if b.size < 0 {
		b.size = total
	}
	return nil
}

// skip takes a 200 by reading what was handed out already and comparing it. The
// seed of the hash is random, so nobody can make two states of a file look alike.
func (b *body) skip(resp *http.Response) error {
	if resp.ContentLength >= 0 && b.size >= 0 && resp.ContentLength != b.size {
		return b.changed()
	}
	b.validator = rangeValidator(resp)
	var prefix maphash.Hash
	prefix.SetSeed(b.sum.Seed())
	if n, err := io.CopyN(&prefix, resp.Body, b.off); err != nil {
		if errors.Is(err, io.EOF) && resp.ContentLength < 0 && n < b.off {
			return b.changed()
		}
		return err
	}
	if prefix.Sum64() != b.sum.Sum64() {
		return b.changed()
	}
	if b.size < 0 {
		b.size = resp.ContentLength
	}
	return nil
}

// parseContentRange reads "bytes <start>-<end>/<total>"; total is -1 for "*".
func parseContentRange(value string) (start, total int64, ok bool) {
	rest, ok := strings.CutPrefix(value, "bytes ")
	if !ok {
		return 0, 0, false
	}
	span, totalText, ok := strings.Cut(rest, "/")
	if !ok {
		return 0, 0, false
	}
	startText, endText, ok := strings.Cut(span, "-")
	if !ok {
		return 0, 0, false
	}
	start, err := strconv.ParseInt(startText, 10, 64)
	end, endErr := strconv.ParseInt(endText, 10, 64)
	if err != nil || endErr != nil || start < 0 || end < start {
		return 0, 0, false
	}
	if totalText == "*" {
		return start, -1, true
	}
	total, err = strconv.ParseInt(totalText, 10, 64)
	return start, total, err == nil && total > end
}

// Close implements io.Closer. It may be called at any time, not during a Read.
func (b *body) Close() error {
	if b.err == nil {
		b.fail(broken(b.src.host.Name(), nil, "read after close"))
	}
	return nil
}
