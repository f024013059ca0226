package gateway

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

// statusClientGone is logged, never sent, for a client that left.
const statusClientGone = 499

const (
	absentCaching    = "max-age=60"
	malformedCaching = "max-age=86400"
)

// verdict is how an answer tells a failure.
type verdict struct {
	status  int
	caching string // "" is no-store
	text    string
	retry   time.Duration // 0: no Retry-After
}

// judge is the one table from failures to answers.
func judge(t target.Target, err error) verdict {
	if e, ok := errors.AsType[*target.Error](err); ok {
		return judgeMalformed(e)
	}
	e, ok := errors.AsType[*cache.Error](err)
	if !ok {
		e = &cache.Error{}
	}
	who, what := t.Describe(), e.Error()
	retry := max(e.RetryAfter, time.Second)
	source := e.Source
	if source == "" {
		source = "the cache"
	}
	switch e.Reason {
	case cache.NotFound:
		return verdict{http.StatusNotFound, absentFor(e), "not found: " + who + ": " + what, 0}
	case cache.Gone, cache.Purged:
		return verdict{http.StatusGone, absentFor(e), "not found: " + who + ": " + what, 0}
	case cache.NotCached:
		return verdict{http.StatusNotFound, "", "not found: " + who + ": " + what, 0}
	case cache.Malformed:
		return verdict{http.StatusNotFound, malformedCaching, "not found: " + who + ": " + what, 0}
	case cache.Denied:
		return verdict{http.StatusForbidden, "", who + ": denied: " + what, 0}
	case cache.Busy:
		if e.Source == "" { // the text says what there is too much of, or too little
			return verdict{http.StatusServiceUnavailable, "", who + ": " + what + "; try again in " + inSeconds(retry) + " s", retry}
		}
		return verdict{http.StatusServiceUnavailable, "", who + ": " + source + " has too much to do; try again in " + inSeconds(retry) + " s: " + what, retry}
	case cache.Broken:
		if e.Source == "" { // nobody is down: the text says what stands in the way
			return verdict{http.StatusBadGateway, "", who + ": " + what, retry}
		}
		return verdict{http.StatusBadGateway, "", who + ": " + source + " is failing, not this proxy; try again later: " + what, retry}
	case cache.Slow:
		return verdict{http.StatusGatewayTimeout, "", who + ": " + source + " did not answer in time; try again later: " + what, retry}
	case cache.Mismatch:
		return verdict{http.StatusBadGateway, "", who + ": checksum mismatch, nothing was kept; do not switch verification off, tell whoever runs the source: " + what, 0}
	default:
		return verdict{http.StatusInternalServerError, "", who + ": internal server error of this proxy; its log says more", 0}
	}
}

// absentFor returns how long an absence may be repeated: no longer than the cache does
// before it asks again, or the times would add up.
func absentFor(e *cache.Error) string {
	if e.RetryAfter > 0 && e.RetryAfter < time.Minute {
		return "max-age=" + strconv.Itoa(int(e.RetryAfter/time.Second))
	}
	return absentCaching
}

// judgeMalformed tells a name that cannot exist. 404 lets the go command go on
// with its list; 400 says that no module was meant at all.
func judgeMalformed(e *target.Error) verdict {
	if e.Foreign {
		return verdict{http.StatusBadRequest, malformedCaching, e.Error(), 0}
	}
	return verdict{http.StatusNotFound, malformedCaching, "not found: " + e.Error(), 0}
}

// fail answers with err, or not at all where nobody listens any more.
func (x *exchange) fail(err error) {
	if x.gone() {
		x.abort(err)
		return
	}
	x.err = err
	v := judge(x.target, err)
	reason := cache.Malformed
	if _, ok := errors.AsType[*target.Error](err); !ok {
		reason = cache.ReasonOf(err)
		x.outcome = miss
	}
	caching := noStore
	switch {
	case v.caching != "" && x.private:
		caching = "private, " + v.caching
	case v.caching != "":
		caching = "public, " + v.caching
	}
	h := x.Header()
	for _, name := range [...]string{"Etag", "Last-Modified", "Accept-Ranges", "Age"} {
		delete(h, name)
	}
	h["Cache-Status"] = []string{"ringmod; fwd=miss; detail=" + reason.String()}
	if v.retry > 0 {
		h["Retry-After"] = []string{inSeconds(v.retry)}
	}
	x.text(v.status, oneLine(v.text), caching)
}

// refuse answers a request that names nothing, or must not be looked at.
func (x *exchange) refuse(status int, text, cacheControl string) {
	x.err = errors.New(text)
	x.Header()["Cache-Status"] = []string{"ringmod; fwd=bypass"}
	x.text(status, oneLine(text), cacheControl)
}

// inSeconds rounds d up to whole seconds.
func inSeconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}

// maxErrorText is below the 648 bytes beyond which the go command shows nothing
// of a line (cmd/go/internal/web/api.go).
const maxErrorText = 640

// oneLine makes text fit for a terminal and for the go command, which drops a
// message with one character that is not graphic: runs of these and of space
// become one space, invalid UTF-8 becomes U+FFFD, and what is too long ends in
// an ellipsis. The result ends with a newline.
func oneLine(text string) string {
	var b strings.Builder
	gap := false
	for _, r := range text {
		if unicode.IsSpace(r) || !unicode.IsGraphic(r) {
			gap = b.Len() > 0
			continue
		}
		if b.Len()+1+utf8.RuneLen(r)+len("…\n") > maxErrorText {
			b.WriteString("…")
			break
		}
		if gap {
			b.WriteByte(' ')
			gap = false
		}
		b.WriteRune(r)
	}
	b.WriteByte('\n')
	return b.String()
}
