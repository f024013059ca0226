package gateway

import (
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
)

// fetch answers what memory could not: by way of a flight for what is small by
// its kind, straight from the Cache for zips.
func (g *Gateway) fetch(x *exchange, mode cache.Mode) {
	if x.target.Kind.Sumdb() && !slices.Contains(g.sumdbs, x.target.DB) {
		x.fail(&cache.Error{Reason: cache.NotFound, Text: "this checksum database is not served here (--sumdb)"})
		x.outcome = bypass
		return
	}
	if x.target.Kind == target.SumdbSupported {
		g.supported(x)
		return
	}
	req := cache.Request{Target: x.target, Mode: mode, Whole: needsWhole(x.r), Refresh: g.orders.Latest(x.target.Path).Number}
	if x.target.Kind != target.Zip {
		e, how, err := g.flights.do(x.r.Context(), req, g.fly)
		if err != nil {
			x.fail(err)
			return
		}
		if e != nil {
			e.serve(x, how)
			return
		}
	}
	g.pass(x, req)
}

// supported says that a checksum database is served (protocol.md, S1).
func (g *Gateway) supported(x *exchange) {
	x.setOrigin(sources[cache.Memory])
	h := newHeader(x.target.Kind, &cache.Object{}, false)
	h.set(x.Header())
	h.setWhole(x.Header())
	x.WriteHeader(http.StatusOK)
}

// needsWhole reports whether a request can only be answered by somebody who has
// all of the bytes.
func needsWhole(r *http.Request) bool { return r.Method == http.MethodHead || partial(r.Header) }

// partial reports whether h asks for a range or sets a condition.
func partial(h http.Header) bool {
	for _, name := range [...]string{"Range", "If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since"} {
		if len(h[name]) > 0 {
			return true
		}
	}
	return false
}

// pass answers from the Cache without holding the object in memory, unless it
// is a small one that the Cache has whole.
func (g *Gateway) pass(x *exchange, req cache.Request) {
	obj, err := g.get(x.r.Context(), req)
	if err != nil {
		x.fail(err)
		return
	}
	defer obj.Body.Close()
	o := originOf(obj)
	_, whole := obj.Body.(io.ReadSeeker)
	if whole && !obj.Unverified && req.Target.Kind == target.Zip && obj.Size <= maxSmallZip && g.immutable.takes(obj.Size) {
		e, err := readEntry(req.Target, obj, x.private, maxSmallZip)
		if err != nil {
			x.fail(err)
			return
		}
		g.immutable.put(e)
		e.serve(x, o)
		return
	}
	x.setOrigin(o)
	x.serveObject(obj)
}

// serveObject sends obj from its Body.
func (x *exchange) serveObject(obj *cache.Object) {
	h := newHeader(x.target.Kind, obj, obj.Private || x.private)
	to := x.Header()
	h.set(to)
	if !x.target.Kind.Immutable() {
		setAge(to, obj.Age)
	}
	content, whole := obj.Body.(io.ReadSeeker)
	h.ranges = whole
	if whole && partial(x.r.Header) {
		if err := checkLength(content, obj.Size); err != nil {
			x.fail(err)
			return
		}
		x.serveContent(&h, content)
		return
	}
	h.setWhole(to)
	if x.r.Method == http.MethodHead {
		x.WriteHeader(http.StatusOK)
		return
	}
	x.copyBody(obj)
}

var errLength = errors.New("the object is not as long as it was said to be")

// checkLength guards against a file that was cut behind our back.
func checkLength(content io.Seeker, want int64) error {
	got, err := content.Seek(0, io.SeekEnd)
	if err == nil && got != want {
		err = errLength
	}
	return err
}

// serveContent answers a range or a condition.
func (x *exchange) serveContent(h *header, content io.ReadSeeker) {
	http.ServeContent(x, x.r, "", h.modTime, content)
	if x.status != http.StatusOK && x.status != http.StatusPartialContent || x.r.Method == http.MethodHead {
		return
	}
	if want := x.Header().Get("Content-Length"); want != strconv.FormatInt(x.bytes, 10) {
		x.abort(errLength)
	}
}

// copyBody sends the whole Body of obj. Nothing is sent before its first byte
// is there, so that an early failure can still be told.
func (x *exchange) copyBody(obj *cache.Object) {
	var err error
	if f, ok := obj.Body.(*os.File); ok {
		_, err = x.ReadFrom(f)
	} else {
		err = x.copyFill(obj)
	}
	if err == nil && obj.Size >= 0 && x.bytes != obj.Size {
		err = errLength
	}
	switch {
	case err == nil:
		x.WriteHeader(http.StatusOK) // of an empty body
	case x.status == 0:
		x.fail(err)
	default:
		x.abort(err)
	}
}

// copyFill sends a Body that may turn out to be broken at its end.
func (x *exchange) copyFill(obj *cache.Object) error {
	if obj.Size <= 0 {
		return copyAll(x, obj.Body)
	}
	t := &tail{x: x, left: obj.Size}
	if err := copyAll(t, obj.Body); err != nil {
		return err
	}
	return t.end()
}

// copyAll is io.Copy without the abilities of to: what src does not hand on
// itself goes through a buffer.
func copyAll(to io.Writer, src io.Reader) error {
	if from, ok := src.(io.WriterTo); ok {
		_, err := from.WriteTo(to)
		return err
	}
	_, err := io.Copy(struct{ io.Writer }{to}, src)
	return err
}

// tail holds back the last byte of an answer whose length is known until its
// source has ended well: once all of the bytes announced are out, HTTP/1 has no
// way left to tell a failure.
type tail struct {
	x    *exchange
	left int64
	last []byte
}

func (t *tail) Write(p []byte) (int, error) {
	n := int64(len(p))
	if n > t.left {
		return 0, errLength
	}
	if n < t.left || n == 0 {
		n, err := t.x.Write(p)
		t.left -= int64(n)
		return n, err
	}
	if n, err := t.x.Write(p[:n-1]); err != nil {
		t.left -= int64(n)
		return n, err
	}
	t.left, t.last = 0, []byte{p[n-1]}
	return len(p), nil
}

// ReadFrom hands all but the last byte on as they come, files as files.
func (t *tail) ReadFrom(src io.Reader) (int64, error) {
	most := &io.LimitedReader{R: src, N: max(0, t.left-1)}
	outer, limited := src.(*io.LimitedReader)
	if limited {
		most.R, most.N = outer.R, min(most.N, outer.N)
	}
	n, err := t.x.ReadFrom(most)
	t.left -= n
	if limited {
		outer.N -= n
	}
	if err != nil {
		return n, err
	}
	m, err := io.Copy(struct{ io.Writer }{t}, src)
	return n + m, err
}

// end sends the last byte.
func (t *tail) end() error {
	if t.left > 0 {
		return errLength
	}
	_, err := t.x.Write(t.last)
	return err
}
