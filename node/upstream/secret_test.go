package upstream_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

// guarded answers 401 without me:secret.
func guarded(s http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
			http.Error(w, "sign in", http.StatusUnauthorized)
			return
		}
		s.ServeHTTP(w, r)
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	base := serve(t, guarded(upstreamtest.New(t, mods...)))
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	withUser := func(user *url.Userinfo) string {
		c := *u
		c.User = user
		return c.String()
	}
	tests := []struct {
		name, list, netrc string
		ok                bool
	}{
		{"none", base, "", false},
		{"in the URL", withUser(url.UserPassword("me", "secret")), "", true},
		{"netrc", base, "machine 127.0.0.1 login me password secret", true},
		{"netrc with a port", base, "machine 127.0.0.1 login me password wrong\nmachine " + u.Host + " login me password secret", true},
		{"netrc of another host", base, "machine a.test login me password secret", false},
		{"netrc default", base, "default login me password secret", false},
		{"the URL's win", withUser(url.UserPassword("me", "secret")), "machine 127.0.0.1 login me password wrong", true},
	}
	for _, test := range tests {
		file := filepath.Join(t.TempDir(), "netrc")
		if err := os.WriteFile(file, []byte(test.netrc), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := read(t, client(t, upstream.Config{List: test.list, Netrc: file}), mod)
		if test.ok && err != nil {
			t.Errorf("%s: %v", test.name, err)
		} else if !test.ok {
			checkError(t, err, cache.Denied, "401 Unauthorized: sign in")
		}
	}
	if _, err := upstream.New(upstream.Config{List: "off", Netrc: filepath.Join(t.TempDir(), "none")}); err != nil {
		t.Errorf("without the netrc file: %v", err)
	}
	if _, err := upstream.New(upstream.Config{List: "off", Netrc: t.TempDir()}); err == nil {
		t.Error("a folder as netrc file was accepted")
	}
}

// TestSecretsStayInside drives a client with credentials into many kinds of
// trouble and looks for them in errors, their causes and logs.
func TestSecretsStayInside(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	faults := []upstreamtest.Fault{
		{Status: 404},
		{Status: 401},
		{Status: 503},
		{Drop: true},
		{CutAfter: 2, NoRange: true},
		{Status: 302, Header: http.Header{"Location": {"http://me:secret@127.0.0.1:1/?token=secret"}}},
		{Status: 302, Header: http.Header{"Location": {"http://me:secret@a.test:x/"}}},
		{Status: 302, Header: http.Header{"Location": {"ftp://me:secret@a.test/"}}},
		{DelayHeader: 1 << 40},
	}
	for _, fault := range faults {
		s := upstreamtest.New(t, mods...)
		s.Fault("", fault)
		list := strings.Replace(s.URL, "http://", "http://me:secret@", 1) + "/?key=secret"
		timeouts := quick
		timeouts.Header, timeouts.Retry = timeouts.Header/10, timeouts.Retry/5
		_, err := read(t, client(t, upstream.Config{List: list, Logger: logger, Timeouts: timeouts}), mod)
		if err == nil {
			t.Errorf("%+v: no error", fault)
		}
		for e := err; e != nil; e = unwrap(e) {
			if strings.Contains(fmt.Sprintf("%v %+v", e, e), "secret") {
				t.Errorf("%+v: %v", fault, e)
			}
		}
	}
	if got := log.String(); strings.Contains(got, "secret") || !strings.Contains(got, "trying again") {
		t.Errorf("log:\n%s", got)
	}
}

func unwrap(err error) error {
	if u, ok := err.(interface{ Unwrap() error }); ok {
		return u.Unwrap()
	}
	return nil
}

func TestRedirects(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	elsewhere, seen := record(t, s)
	to := func(format string) string {
		return serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, strings.ReplaceAll(format, "PATH", r.URL.Path), http.StatusFound)
		})
	}
	secret := func(base string) string {
		return strings.Replace(base, "http://127.0.0.1", "http://me:secret@127.0.0.1", 1)
	}

	list := secret(to(strings.Replace(elsewhere, "127.0.0.1", "localhost", 1) + "PATH"))
	if _, err := read(t, client(t, upstream.Config{List: list + "/?key=secret"}), mod); err != nil {
		t.Errorf("to another host: %v", err)
	}
	r := <-seen
	if r.Header.Get("Authorization") != "" || strings.Contains(r.Header.Get("Referer"), "secret") {
		t.Errorf("credentials went to another host: %v", r.Header)
	}
	_, err := read(t, client(t, upstream.Config{List: to("/x")}), mod)
	checkError(t, err, cache.Broken, "stopped after 10 redirects")
}

// tlsConfig trusts a client's server.
func tlsConfig(t *testing.T, c *http.Client) *tls.Config {
	t.Helper()
	tr, ok := c.Transport.(*http.Transport)
	if !ok {
		t.Fatalf("transport is a %T", c.Transport)
	}
	return &tls.Config{RootCAs: tr.TLSClientConfig.RootCAs, MinVersion: tls.VersionTLS12}
}

func TestHTTPS(t *testing.T) {
	t.Parallel()
	s, trusting := upstreamtest.NewTLS(t, mods...)
	c := client(t, upstream.Config{List: s.URL, TLS: tlsConfig(t, trusting)})
	want := string(s.Zip("example.com/a", "v1.0.0"))
	if got, err := read(t, c, zip); err != nil || got != want {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	s.Fault(zip, upstreamtest.Fault{CutAfter: 7000, Times: 1})
	if got, err := read(t, c, zip); err != nil || got != want {
		t.Errorf("cut: %d bytes, %v", len(got), err)
	}
	s.Heal()
	s.Fault(mod, upstreamtest.Fault{WrongLength: true})
	_, err := read(t, c, mod)
	checkError(t, err, cache.Broken, "")
	s.Heal()
	s.Fault("", upstreamtest.Fault{Status: 302, Header: http.Header{"Location": {"http://127.0.0.1:1/"}}})
	_, err = read(t, c, mod)
	checkError(t, err, cache.Broken, "redirected from https to http")
	_, err = read(t, client(t, upstream.Config{List: s.URL, TLS: &tls.Config{RootCAs: x509.NewCertPool()}}), mod)
	checkError(t, err, cache.Broken, "certificate not accepted")
}

// TestConnectionsAreReused looks at the connections that an upstream sees.
func TestConnectionsAreReused(t *testing.T) {
	t.Parallel()
	s := upstreamtest.New(t, mods...)
	ports := make(map[string]bool)
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		ports[r.RemoteAddr] = true
		s.ServeHTTP(w, r)
	})
	c := client(t, upstream.Config{List: base})
	for range 5 {
		for _, name := range []string{mod, "example.com/none/@v/list", zip} {
			_, _ = read(t, c, name)
		}
	}
	if len(ports) != 1 {
		t.Errorf("%d connections, want 1", len(ports))
	}
}

func TestVeryLongSecretsAreNotCut(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("secret", 300)
	_, err := upstream.New(upstream.Config{List: "https://me:" + long + "%zz@host.test"})
	if err == nil || bytes.Contains([]byte(err.Error()), []byte("secret")) {
		t.Errorf("got %v", err)
	}
}
