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
	req := cache.Request{Target: x.target, Mode: mode, Whole: needsWhole(x.r)}
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
	o := newOrigin(obj.Source, obj.Stale)
	_, whole := obj.Body.(io.ReadSeeker)
	if whole && req.Target.Kind == target.Zip && obj.Size <= maxSmallZip && g.immutable.takes(obj.Size) {
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
	switch body := obj.Body.(type) {
	case *os.File:
		_, err = x.ReadFrom(body)
	case io.WriterTo:
		_, err = body.WriteTo(x)
	default:
		err = x.copyFrom(body)
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

// copyFrom copies src. Its first read comes before the header.
func (x *exchange) copyFrom(src io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := x.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
