package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/ringmod/ringmod/internal/target"
)

// patience is how long a client may take nothing before it is cut.
const patience = 60 * time.Second

// slice is how many bytes must go out within patience: small enough for a client
// on the slowest of lines, large enough for sendfile.
const slice = 64 << 10

// exchange is one request and its answer. It is the ResponseWriter that all of
// the gateway writes to: it counts, moves the write deadline ahead of the bytes,
// and hands files on as files, so that net/http can use sendfile.
type exchange struct {
	http.ResponseWriter

	r     *http.Request
	start time.Time

	target  target.Target
	kind    uint8 // of target, or kindPage, kindHealth
	private bool
	outcome outcome
	err     error // why the answer is an error or was cut

	status   int
	bytes    int64
	deadline time.Time // for writing; zero before the first byte
	cut      bool      // the answer cannot be completed: the connection must not look as if it were
}

// Unwrap serves http.ResponseController.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

func (x *exchange) WriteHeader(status int) {
	if x.status != 0 {
		return
	}
	x.status = status
	if status == http.StatusPreconditionFailed { // from http.ServeContent, with the object's headers
		x.Header()["Cache-Control"] = []string{noStore}
	}
	x.extend(time.Now())
	x.ResponseWriter.WriteHeader(status)
}

func (x *exchange) Write(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	extended := x.status == 0 // by WriteHeader, just now
	x.WriteHeader(http.StatusOK)
	for {
		part := p[n:min(n+slice, len(p))]
		if !extended {
			x.extend(time.Now())
		}
		extended = false
		m, err := x.ResponseWriter.Write(part)
		n += m
		x.bytes += int64(m)
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

// ReadFrom copies src slice by slice. An *os.File stays visible to net/http,
// also below the one io.LimitedReader that package net looks through. The first
// bytes go by Write (net/http would copy them all the same), so that a source
// that fails at once leaves the header unsent.
func (x *exchange) ReadFrom(src io.Reader) (n int64, err error) {
	if x.status == 0 {
		if n, err = x.writeFirst(src); err != nil || n == 0 {
			return n, err
		}
	}
	to, ok := x.ResponseWriter.(io.ReaderFrom)
	if !ok {
		m, err := io.Copy(struct{ io.Writer }{x}, src)
		return n + m, err
	}
	outer, limited := src.(*io.LimitedReader)
	if limited {
		src = outer.R
	}
	for {
		part := &io.LimitedReader{R: src, N: slice}
		if limited {
			part.N = min(part.N, outer.N)
		}
		want := part.N
		x.extend(time.Now())
		m, err := to.ReadFrom(part)
		n += m
		x.bytes += m
		if limited {
			outer.N -= m
		}
		if err != nil || m < want || limited && outer.N == 0 {
			return n, err
		}
	}
}

// writeFirst passes on what the first Read of src that yields anything yields;
// nothing and no error at the end of src.
func (x *exchange) writeFirst(src io.Reader) (int64, error) {
	var buf [512]byte
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			n, err = x.Write(buf[:n])
			return int64(n), err
		}
		if errors.Is(err, io.EOF) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// extend moves the write deadline ahead of now. Moving it once a second is
// enough and keeps it out of the cost of a slice.
func (x *exchange) extend(now time.Time) {
	if now.Sub(x.deadline) < time.Second-patience {
		return
	}
	x.deadline = now.Add(patience)
	// A writer without deadlines is a test's.
	_ = http.NewResponseController(x.ResponseWriter).SetWriteDeadline(x.deadline)
}

// text answers with a short text.
func (x *exchange) text(status int, text, cacheControl string) {
	h := x.Header()
	h["Content-Type"] = plainText
	h["X-Content-Type-Options"] = nosniff
	h["Content-Length"] = []string{strconv.Itoa(len(text))}
	h["Cache-Control"] = []string{cacheControl}
	x.WriteHeader(status)
	if x.r.Method != http.MethodHead {
		_, _ = io.WriteString(x, text)
	}
}

func (x *exchange) readiness(err error) {
	if err == nil {
		x.text(http.StatusOK, "ok\n", noStore)
		return
	}
	x.err = err
	x.text(http.StatusServiceUnavailable, oneLine("not ready: "+err.Error()), noStore)
}

// gone reports whether the client has left.
func (x *exchange) gone() bool { return x.r.Context().Err() != nil }

// abort gives up an answer: nothing more is written, and what was written does
// not end cleanly.
func (x *exchange) abort(err error) {
	x.err, x.cut = err, true
	switch {
	case x.status != 0:
	case x.gone():
		x.status = statusClientGone
	default:
		x.status = http.StatusInternalServerError
	}
}

// finish is deferred around each request.
func (g *Gateway) finish(x *exchange) {
	if p := recover(); p != nil {
		g.recovered(x, p)
	}
	g.metrics.inFlight.Dec()
	took := time.Since(x.start)
	g.metrics.observe(x, took)
	g.logRequest(x, took)
	x.trace()
	if x.cut {
		panic(http.ErrAbortHandler)
	}
}

// recovered turns a panic into an answer, or into a cut where one has begun.
func (g *Gateway) recovered(x *exchange, p any) {
	err, _ := p.(error)
	if errors.Is(err, http.ErrAbortHandler) {
		x.abort(err)
		return
	}
	g.logPanic(x.r.Context(), p)
	if x.status != 0 {
		x.abort(fmt.Errorf("panic: %v", p))
		return
	}
	clear(x.Header())
	x.fail(fmt.Errorf("panic: %v", p))
}

func (g *Gateway) logPanic(ctx context.Context, p any) {
	g.log.ErrorContext(ctx, "panic in a request", "stack", string(debug.Stack()), "err", fmt.Sprint(p))
}

// bodyPatience is how long a client may take to send a body nobody asked for.
const bodyPatience = 5 * time.Second

// refuseBody keeps a request's body from holding its connection: net/http reads
// what is left of it after the answer, and the listener has no deadline for that.
func refuseBody(x *exchange) {
	if x.r.ContentLength == 0 || x.r.ProtoMajor != 1 {
		return
	}
	x.Header().Set("Connection", "close")
	_ = http.NewResponseController(x.ResponseWriter).SetReadDeadline(x.start.Add(bodyPatience))
}
