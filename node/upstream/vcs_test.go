package upstream_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/upstream"
	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
)

// vcs stands for version control; nil error = it has everything.
type vcs struct {
	err   *cache.Error
	asked []string
}

// Fetch implements upstream.Source.
func (v *vcs) Fetch(_ context.Context, t target.Target) (*upstream.Response, error) {
	v.asked = append(v.asked, t.String())
	if v.err != nil {
		return nil, v.err
	}
	return &upstream.Response{Body: io.NopCloser(strings.NewReader("vcs")), Size: 3, Source: "direct"}, nil
}

// "direct" is asked where cmd/go would ask it, and what it says counts as what any
// other entry says, but for a host that does not exist.
func TestVersionControl(t *testing.T) {
	t.Parallel()
	const asked = true
	no := func(reason cache.Reason) *cache.Error {
		return &cache.Error{Reason: reason, Source: "direct", Text: "vcs says no"}
	}
	noHost := &cache.Error{Reason: cache.Broken, Source: "direct", Text: "vcs says no", Err: fmt.Errorf("dns: %w", upstream.ErrNoHost)}
	for _, test := range []struct {
		list, private string
		fault         upstreamtest.Fault
		vcs           *cache.Error
		asked         bool
		reason        cache.Reason // of the error, ignored with text ""
		text          string
	}{
		{"direct", "", upstreamtest.Fault{}, nil, asked, 0, ""},
		{"P,direct", "", upstreamtest.Fault{}, nil, !asked, 0, ""},
		{"P,direct", "", upstreamtest.Fault{Status: 404}, nil, asked, 0, ""},
		{"P,direct", "", upstreamtest.Fault{Status: 410}, no(cache.NotFound), asked, cache.Gone, ""},
		{"P,direct", "", upstreamtest.Fault{Status: 404}, no(cache.Denied), asked, cache.Denied, "vcs says no"},
		{"P,direct", "", upstreamtest.Fault{Status: 404}, noHost, asked, cache.NotFound, "Not Found"},
		{"P,direct", "", upstreamtest.Fault{Status: 403}, nil, !asked, cache.Denied, "403"},
		{"P|direct", "", upstreamtest.Fault{Status: 403}, nil, asked, 0, ""},
		{"P|direct", "", upstreamtest.Fault{Status: 403}, noHost, asked, cache.Broken, "vcs says no"},
		{"P|direct", "", upstreamtest.Fault{Status: 403}, no(cache.NotFound), asked, cache.Denied, "403"},
		{"direct", "", upstreamtest.Fault{}, noHost, asked, cache.Broken, "vcs says no"},
		{"P", "example.com/a", upstreamtest.Fault{}, nil, asked, 0, ""}, // GOPRIVATE implies direct
		{"P,direct", "example.com/a", upstreamtest.Fault{}, no(cache.NotFound), asked, cache.NotFound, "vcs says no"},
		{"P,off", "example.com/a", upstreamtest.Fault{}, nil, !asked, cache.NotCached, "off"},
	} {
		s := upstreamtest.New(t, mods...)
		if test.fault.Status != 0 {
			s.Fault(mod, test.fault)
		}
		v := &vcs{err: test.vcs}
		c := client(t, upstream.Config{List: strings.ReplaceAll(test.list, "P", s.URL), Private: test.private, Direct: v})
		_, err := read(t, c, mod)
		name := fmt.Sprintf("%s, private %q, %d, %v", test.list, test.private, test.fault.Status, test.vcs)
		if (len(v.asked) > 0) != test.asked {
			t.Errorf("%s: version control was asked for %v, want %v", name, v.asked, test.asked)
		}
		if test.text == "" && test.reason == 0 {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if e, ok := err.(*cache.Error); !ok || e.Reason != test.reason || !strings.Contains(e.Text, test.text) { //nolint:errorlint // as it is given
			t.Errorf("%s: got %v, want %v with %q", name, err, test.reason, test.text)
		}
		if test.private != "" && len(s.Requests()) > 0 {
			t.Errorf("%s: a private name left: %q", name, s.Requests())
		}
	}
}
