// Package upstreamtest is a fake upstream for tests: a module proxy with its
// checksum database on a loopback port, whose every misbehaviour can be ordered.
//
// A Server answers the GOPROXY protocol for the modules it was given, with
// strong ETags, ranges and conditional requests, and below /sumdb/<name>/ a
// real checksum database over the same modules, so that a real go command can
// work with it. It records each request before it does anything else, so counts
// are exact. Faults change how requests are answered (see Fault); Broken lists
// servers that fail below HTTP.
//
// Zips are made by golang.org/x/mod/zip when they are first wanted and are the
// same bytes in each run.
package upstreamtest

import (
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/note"
)

// sumdbName is the name of every Server's checksum database; their keys differ.
const sumdbName = "sum.upstream.test"

// Server is a fake upstream. It is an http.Handler too, for tests that put it
// behind another listener or below a prefix.
type Server struct {
	URL string // base URL without a slash at its end

	t        testing.TB
	signer   string
	verifier string

	mu       sync.Mutex
	modules  map[module.Version]*entry
	queries  map[string]string // <path>@<query> to version
	requests []string
	faults   []*fault
	released chan struct{} // closed by Release
	lies     map[module.Version]lie
	recorded map[module.Version]bool // in the checksum database
	sumdbOff bool
	sumdb    http.Handler
}

// New starts a Server on a loopback port that holds mods. It stops with t.
func New(t testing.TB, mods ...Module) *Server {
	t.Helper()
	s := NewUnstarted(t, mods...)
	srv := httptest.NewServer(s)
	s.URL = srv.URL
	t.Cleanup(func() { s.stop(srv) })
	return s
}

// NewTLS is New over https with HTTP/2. The certificate is signed by nobody;
// the returned client's transport trusts it.
func NewTLS(t testing.TB, mods ...Module) (*Server, *http.Client) {
	t.Helper()
	s := NewUnstarted(t, mods...)
	srv := httptest.NewUnstartedServer(s)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	s.URL = srv.URL
	t.Cleanup(func() { s.stop(srv) })
	return s, srv.Client()
}

// NewUnstarted returns a Server without a listener, to be used as a handler.
func NewUnstarted(t testing.TB, mods ...Module) *Server {
	t.Helper()
	signer, verifier, err := note.GenerateKey(rand.Reader, sumdbName)
	if err != nil {
		t.Fatalf("generating a checksum database key: %v", err)
	}
	s := &Server{
		t:        t,
		signer:   signer,
		verifier: verifier,
		modules:  make(map[module.Version]*entry),
		queries:  make(map[string]string),
		released: make(chan struct{}),
		lies:     make(map[module.Version]lie),
		recorded: make(map[module.Version]bool),
	}
	s.sumdb = sumdb.NewServer(sumdb.NewTestServer(signer, s.gosum))
	s.Add(mods...)
	return s
}

func (s *Server) stop(srv *httptest.Server) {
	s.Release()
	srv.CloseClientConnections()
	srv.Close()
}

// Requests returns method and decoded path of each request since the last
// Reset, in the order of arrival, for example "GET /example.com/a/@v/list".
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requests...)
}

// Count returns how many requests since the last Reset had a path that ends
// with pathSuffix.
func (s *Server) Count(pathSuffix string) int {
	n := 0
	for _, request := range s.Requests() {
		if strings.HasSuffix(request, pathSuffix) {
			n++
		}
	}
	return n
}

// Reset forgets the requests. Modules and faults stay.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = nil
}

// ServeHTTP records the request, then answers it as faults say.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.URL.Path)
	f, released := s.takeFault(r.URL.Path), s.released
	s.mu.Unlock()
	if f == nil {
		s.serve(w, r)
		return
	}
	f.serve(w, r, released, s.serve)
}

// serve answers without faults.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, "/direct/"+sumdbName); ok {
		s.serveSumdb(w, r, rest)
		return
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, "/sumdb/"); ok {
		s.serveProxiedSumdb(w, r, rest)
		return
	}
	s.serveModule(w, r)
}
