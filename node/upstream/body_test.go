package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

// Ways in which a first answer can break at an offset.
var breaks = map[string]func(n int64) upstreamtest.Fault{
	"cut":          func(n int64) upstreamtest.Fault { return upstreamtest.Fault{CutAfter: n} },
	"cut, chunked": func(n int64) upstreamtest.Fault { return upstreamtest.Fault{CutAfter: n, Chunked: true} },
	"stall":        func(n int64) upstreamtest.Fault { return upstreamtest.Fault{StallAfter: n} },
	"cut, no ETag": func(n int64) upstreamtest.Fault {
		return upstreamtest.Fault{CutAfter: n, Header: http.Header{"Etag": nil}}
	},
	"cut, weak ETag": func(n int64) upstreamtest.Fault {
		return upstreamtest.Fault{CutAfter: n, Header: http.Header{"Etag": {`W/"1"`}}}
	},
	"cut, no headers": func(n int64) upstreamtest.Fault { return upstreamtest.Fault{CutAfter: n, NoETag: true} },
}

func TestBodiesResume(t *testing.T) {
	t.Parallel()
	for name, breakAt := range breaks {
		for _, noRange := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, no range %v", name, noRange), func(t *testing.T) {
				t.Parallel()
				s := upstreamtest.New(t, mods...)
				want := s.Zip("example.com/a", "v1.0.0")
				timeouts := upstream.Timeouts{Stall: 200 * time.Millisecond, Retry: 2 * time.Second}
				c := client(t, upstream.Config{List: s.URL, Timeouts: timeouts, PerHost: 1})
				for _, at := range []int64{1, 2, 511, 512, 4096, 10_000, int64(len(want)) - 1} {
					s.Heal()
					s.Reset()
					first := breakAt(at)
					first.Times = 1
					s.Fault(zip, first)
					s.Fault(zip, upstreamtest.Fault{NoRange: noRange})
					got, err := read(t, c, zip)
					if err != nil || got != string(want) {
						t.Errorf("broken at %d: %d bytes of %d, %v", at, len(got), len(want), err)
					}
					if got := len(s.Requests()); got != 2 {
						t.Errorf("broken at %d: %d requests, want 2", at, got)
					}
				}
			})
		}
	}
}

func TestResumedBodyMustBeTheSame(t *testing.T) {
	t.Parallel()
	flip := func(i int) func([]byte) []byte {
		return func(b []byte) []byte { b[i] ^= 1; return b }
	}
	tests := []struct {
		name   string
		first  upstreamtest.Fault
		then   upstreamtest.Fault
		reason cache.Reason
		text   string
	}{
		{"prefix differs", upstreamtest.Fault{}, upstreamtest.Fault{NoRange: true, Corrupt: flip(999)}, cache.Broken, "changed while being read"},
		{"length differs", upstreamtest.Fault{}, upstreamtest.Fault{NoRange: true, Corrupt: func(b []byte) []byte { return append(b, 0) }}, cache.Broken, "changed while being read"},
		{"shorter, chunked", upstreamtest.Fault{Chunked: true}, upstreamtest.Fault{NoRange: true, Chunked: true, Corrupt: func(b []byte) []byte { return b[:10] }}, cache.Broken, "changed while being read"},
		{"other ETag in 206", upstreamtest.Fault{}, upstreamtest.Fault{Header: http.Header{"Etag": {`"other"`}}}, cache.Broken, "changed while being read"},
		{"other total", upstreamtest.Fault{}, upstreamtest.Fault{Header: http.Header{"Content-Range": {"bytes 1000-20300/99999"}}}, cache.Broken, "changed while being read"},
		{"other start", upstreamtest.Fault{}, upstreamtest.Fault{Header: http.Header{"Content-Range": {"bytes 999-20300/20301"}}}, cache.Broken, "changed while being read"},
		{"no Content-Range", upstreamtest.Fault{}, upstreamtest.Fault{Header: http.Header{"Content-Range": nil}}, cache.Broken, "changed while being read"},
		{"404", upstreamtest.Fault{}, upstreamtest.Fault{Status: 404}, cache.Broken, "changed while being read: Not Found"},
		{"410", upstreamtest.Fault{}, upstreamtest.Fault{Status: 410}, cache.Broken, "changed while being read"},
		{"403", upstreamtest.Fault{}, upstreamtest.Fault{Status: 403}, cache.Broken, "changed while being read"},
		{"416", upstreamtest.Fault{}, upstreamtest.Fault{Status: 416}, cache.Broken, "416"},
		{"busy", upstreamtest.Fault{}, upstreamtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"99"}}}, cache.Busy, "429"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := upstreamtest.New(t, mods...)
			test.first.CutAfter, test.first.Times = 1000, 1
			s.Fault(zip, test.first)
			s.Fault(zip, test.then)
			got, err := read(t, client(t, upstream.Config{List: s.URL}), zip)
			checkError(t, err, test.reason, test.text)
			if want := s.Zip("example.com/a", "v1.0.0")[:1000]; got != "" && got != string(want) {
				t.Errorf("handed out %d bytes that differ from the first answer's 1000", len(got))
			}
		})
	}
}

// TestBodySurvivesManyCuts has each answer cut after 2 MiB.
func TestBodySurvivesManyCuts(t *testing.T) {
	t.Parallel()
	big := upstreamtest.Module{Path: "example.com/big", Version: "v1.0.0", Pad: 24 << 20}
	s := upstreamtest.New(t, big)
	s.Fault(".zip", upstreamtest.Fault{CutAfter: 2 << 20})
	c := client(t, upstream.Config{List: s.URL, Timeouts: upstream.Timeouts{Retry: 2 * time.Second}})
	got, err := read(t, c, "example.com/big/@v/v1.0.0.zip")
	if err != nil || !bytes.Equal([]byte(got), s.Zip(big.Path, big.Version)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestResumeOutlastsARestart(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	s.Fault(zip, upstreamtest.Fault{CutAfter: 5000, Times: 1})
	s.Fault(zip, upstreamtest.Fault{Drop: true, Times: 1})
	s.Fault(zip, upstreamtest.Fault{Status: 503, Times: 1})
	got, err := read(t, client(t, upstream.Config{List: s.URL, Timeouts: upstream.Timeouts{Retry: 2 * time.Second}}), zip)
	if err != nil || got != string(s.Zip("example.com/a", "v1.0.0")) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if got := len(s.Requests()); got != 4 {
		t.Errorf("%d requests, want 4", got)
	}
}

func TestCompressedListResumes(t *testing.T) {
	t.Parallel()
	const text = "v1.0.0\nv1.1.0\n"
	gz := gzipped(t, text)
	var n atomic.Int32
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("ETag", `"1"`)
		if r.Header.Get("Range") != "" {
			t.Errorf("a range of decoded bytes was asked for: %q", r.Header.Get("Range"))
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(gz)))
		if n.Add(1) == 1 {
			_, _ = w.Write(gz[:len(gz)-4])
			return
		}
		_, _ = w.Write(gz)
	})
	if got, err := read(t, client(t, upstream.Config{List: base}), list); err != nil || got != text || n.Load() != 2 {
		t.Errorf("got %q, %v after %d requests", got, err, n.Load())
	}
}

func TestCancelledBodyFails(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	s.Fault(zip, upstreamtest.Fault{StallAfter: 100})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := client(t, upstream.Config{List: s.URL, Timeouts: upstream.Timeouts{Stall: time.Minute}, PerHost: 1})
	resp, err := c.Fetch(ctx, parse(t, zip), upstream.Validators{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	cancel()
	_, err = resp.Body.Read(make([]byte, 100))
	checkError(t, err, cache.Slow, "given up")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v does not match context.Canceled", err)
	}
	if _, err := read(t, c, mod); err != nil {
		t.Errorf("its slot is still taken: %v", err)
	}
}

func TestClosedBodyFails(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	c := client(t, upstream.Config{List: s.URL})
	resp, err := c.Fetch(t.Context(), parse(t, mod), upstream.Validators{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(resp.Body.Close(), resp.Body.Close()); err != nil {
		t.Error(err)
	}
	_, err = resp.Body.Read(make([]byte, 1))
	checkError(t, err, cache.Broken, "read after close")
}

// TestSmallReads reads byte by byte over two cuts, so that the prefix digest is
// fed in odd pieces.
func TestSmallReads(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	s.Fault(mod, upstreamtest.Fault{CutAfter: 5, Times: 1})
	s.Fault(mod, upstreamtest.Fault{CutAfter: 9, NoRange: true, Times: 1})
	resp, err := client(t, upstream.Config{List: s.URL}).Fetch(t.Context(), parse(t, mod), upstream.Validators{})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got strings.Builder
	for p := make([]byte, 1); ; {
		n, err := resp.Body.Read(p)
		got.Write(p[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if want := "module example.com/a\n"; got.String() != want {
		t.Errorf("got %q, want %q", got.String(), want)
	}
}
