package upstreamtest

import (
	"bytes"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"time"
)

// Fault says how matching requests are answered wrongly. The zero value of
// each field changes nothing, so fields combine.
type Fault struct {
	// Before the header.
	DelayHeader time.Duration   // wait, or until Release
	Block       <-chan struct{} // wait until it is closed, or until Release
	Drop        bool            // then reset the connection without an answer

	// The answer, where it is not the regular one.
	Status      int         // 0: the regular answer, or 200 when Body is set
	Body        string      // replaces the body; with a Status and no Body the body is the status text
	ContentType string      // "": "text/plain; charset=utf-8" with Status or Body
	Header      http.Header // set on the answer; an empty list deletes
	NoRange     bool        // ignore Range and If-Range: always the whole
	NoETag      bool        // no ETag, Last-Modified and no conditional answers
	Corrupt     func([]byte) []byte

	// The body's end.
	CutAfter    int64 // after so many bytes the connection is closed; 0 or less: not
	StallAfter  int64 // after so many bytes nothing comes until Release; 0 or less: not
	WrongLength bool  // Content-Length is one more than there is
	Chunked     bool  // no Content-Length
	Endless     bool  // after the body zeros for ever, without Content-Length

	Times int // only the first so many matching requests; 0: all
}

type fault struct {
	Fault

	match string
	left  int
}

// Fault applies f to requests whose decoded path contains match; "" matches all. Of several faults the one
// set first that has Times left applies, alone.
func (s *Server) Fault(match string, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &fault{Fault: f, match: match, left: f.Times})
}

// Heal removes all faults and releases what they hold.
func (s *Server) Heal() {
	s.mu.Lock()
	s.faults = nil
	s.mu.Unlock()
	s.Release()
}

// Release lets go on all requests that a Fault holds now: a delayed or blocked
// header is sent, a stalled body is finished.
func (s *Server) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.released)
	s.released = make(chan struct{})
}

// takeFault returns the fault for path and counts it. The lock is held.
func (s *Server) takeFault(path string) *fault {
	for _, f := range s.faults {
		if !strings.Contains(path, f.match) || f.Times > 0 && f.left == 0 {
			continue
		}
		f.left--
		return f
	}
	return nil
}

// serve answers r; regular answers as if there was no fault.
func (f *fault) serve(w http.ResponseWriter, r *http.Request, released <-chan struct{}, regular http.HandlerFunc) {
	if f.DelayHeader > 0 || f.Block != nil {
		f.wait(r, released)
	}
	if f.Drop {
		reset(w)
		return
	}
	status, header, body := f.answer(r, regular)
	maps.Copy(w.Header(), header)
	switch {
	case f.Endless || f.Chunked || status == http.StatusNotModified || status == http.StatusNoContent:
		w.Header().Del("Content-Length")
	case f.WrongLength:
		w.Header().Set("Content-Length", strconv.Itoa(len(body)+1))
	default:
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	maps.Copy(w.Header(), f.Header)
	w.WriteHeader(status)
	f.writeBody(w, r, body, released)
}

func (f *fault) wait(r *http.Request, released <-chan struct{}) {
	var timer <-chan time.Time
	if f.DelayHeader > 0 {
		timer = time.After(f.DelayHeader)
	}
	select {
	case <-timer:
	case <-f.Block:
	case <-released:
	case <-r.Context().Done():
	}
}

// answer makes the whole answer in memory.
func (f *fault) answer(r *http.Request, regular http.HandlerFunc) (status int, header http.Header, body []byte) {
	if f.Status != 0 || f.Body != "" {
		status, header, body = f.Status, http.Header{}, []byte(f.Body)
		if status == 0 {
			status = http.StatusOK
		} else if f.Body == "" {
			body = []byte(http.StatusText(status) + "\n")
		}
		header.Set("Content-Type", "text/plain; charset=utf-8")
	} else {
		r = r.Clone(r.Context())
		if f.NoRange {
			r.Header.Del("Range")
			r.Header.Del("If-Range")
		}
		if f.NoETag {
			for _, key := range []string{"If-None-Match", "If-Modified-Since", "If-Range"} {
				r.Header.Del(key)
			}
		}
		rec := httptest.NewRecorder()
		regular(rec, r)
		status, header, body = rec.Code, rec.Header(), rec.Body.Bytes()
	}
	if f.NoETag {
		header.Del("ETag")
		header.Del("Last-Modified")
	}
	if f.ContentType != "" {
		header.Set("Content-Type", f.ContentType)
	}
	if f.Corrupt != nil {
		body = f.Corrupt(bytes.Clone(body))
	}
	return status, header, body
}

func (f *fault) writeBody(w http.ResponseWriter, r *http.Request, body []byte, released <-chan struct{}) {
	flush := http.NewResponseController(w).Flush
	if n := f.CutAfter; n > 0 && n < int64(len(body)) {
		_, _ = w.Write(body[:n])
		_ = flush()
		panic(http.ErrAbortHandler)
	}
	if n := f.StallAfter; n > 0 && n < int64(len(body)) {
		_, _ = w.Write(body[:n])
		_ = flush()
		body = body[n:]
		select {
		case <-released:
		case <-r.Context().Done():
			return
		}
	}
	_, _ = w.Write(body)
	if f.Chunked || f.Endless {
		_ = flush()
	}
	zeros := make([]byte, 64<<10)
	for f.Endless {
		if _, err := w.Write(zeros); err != nil {
			return
		}
	}
}

// reset closes the connection so that the client sees a reset.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil { // HTTP/2
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}
