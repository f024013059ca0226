package polite

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
)

func TestRobots(t *testing.T) {
	t.Parallel()
	const opens, shuts = true, false
	for name, test := range map[string]struct {
		text  string
		path  string
		allow bool
		delay time.Duration
	}{
		"empty":                      {"", "/a", opens, 0},
		"all shut":                   {"User-agent: *\nDisallow: /", "/a", shuts, 0},
		"nothing shut":               {"User-agent: *\nDisallow:", "/a", opens, 0},
		"others shut":                {"User-agent: evil\nDisallow: /", "/a", opens, 0},
		"we are meant, and not all":  {"User-agent: *\nDisallow: /\n\nUser-agent: RingMod/1.0\nDisallow: /b", "/a", opens, 0},
		"we alone are shut out":      {"User-agent: ringmod\nDisallow: /\nUser-agent: *\nAllow: /", "/a", shuts, 0},
		"another name like ours":     {"User-agent: ringmodder\nDisallow: /", "/a", opens, 0},
		"named together":             {"User-agent: evil\nUser-agent: ringmod\nDisallow: /", "/a", shuts, 0},
		"named twice":                {"User-agent: ringmod\nDisallow: /a\n\nUser-agent: ringmod\nDisallow: /b", "/a/x", shuts, 0},
		"longest wins":               {"User-agent: *\nDisallow: /a\nAllow: /a/b", "/a/b/c", opens, 0},
		"longest wins, shut":         {"User-agent: *\nAllow: /a\nDisallow: /a/b", "/a/b/c", shuts, 0},
		"allow wins between equals":  {"User-agent: *\nDisallow: /a\nAllow: /a", "/a", opens, 0},
		"star":                       {"User-agent: *\nDisallow: /*/archive", "/o/r/archive/x", shuts, 0},
		"star, elsewhere":            {"User-agent: *\nDisallow: /*/archive", "/archive", opens, 0},
		"end":                        {"User-agent: *\nDisallow: /*.git$", "/o/r.git", shuts, 0},
		"end, and more":              {"User-agent: *\nDisallow: /*.git$", "/o/r.git/x", opens, 0},
		"encoded":                    {"User-agent: *\nDisallow: /%61b", "/ab", shuts, 0},
		"encoded, reserved":          {"User-agent: *\nDisallow: /a%2fb", "/a/b", opens, 0},
		"not ASCII":                  {"User-agent: *\nDisallow: /ä", "/%C3%A4", shuts, 0},
		"comments, CR, no space":     {"# hi\rUSER-AGENT:*#x\rdisallow:/a # b\r", "/a", shuts, 0},
		"byte order mark":            {"\xef\xbb\xbfUser-agent: *\nDisallow: /", "/a", shuts, 0},
		"rules before any group":     {"Disallow: /\nUser-agent: *\nAllow: /", "/a", opens, 0},
		"sitemap between names":      {"User-agent: evil\nSitemap: x\nUser-agent: *\nDisallow: /", "/a", shuts, 0},
		"a delay":                    {"User-agent: *\nCrawl-delay: 2.5\n", "/a", opens, 2500 * time.Millisecond},
		"a delay without end":        {"User-agent: *\nCrawl-delay: 1e300\n", "/a", opens, maxDelay},
		"no delay":                   {"User-agent: *\nCrawl-delay: soon\nCrawl-delay: -1\nCrawl-delay: NaN", "/a", opens, 0},
		"a delay of another's group": {"User-agent: *\nCrawl-delay: 5\nUser-agent: ringmod\nDisallow: /b", "/a", opens, 0},
		"HTML":                       {"<!doctype html><a href='x: y'>", "/a", opens, 0},
		"beyond what is read":        {strings.Repeat("#\n", MaxRobots) + "User-agent: *\nDisallow: /", "/a", opens, 0},
	} {
		got := ParseRobots([]byte(test.text))
		if got.Allow(test.path) != test.allow || got.Delay != test.delay {
			t.Errorf("%s: %s allowed %v after %v, want %v after %v", name, test.path, got.Allow(test.path), got.Delay, test.allow, test.delay)
		}
	}
}

func FuzzRobots(f *testing.F) {
	f.Add([]byte("User-agent: *\nDisallow: /*a*$\nAllow: /%41\nCrawl-delay: 3"), "/a/%zz")
	f.Add([]byte("User-agent: ringmod\r\rDisallow: *****\x00"), "")
	f.Fuzz(func(t *testing.T, data []byte, path string) {
		rules := ParseRobots(data)
		rules.Allow(path)
		if rules.Delay < 0 || rules.Delay > maxDelay {
			t.Errorf("a delay of %v", rules.Delay)
		}
		if n := normal(path); normal(n) != n {
			t.Errorf("%q is spelled %q and %q", path, n, normal(n))
		}
		if !new(Rules).Allow(path) {
			t.Error("no rules forbid something")
		}
	})
}

// site is a host with a robots.txt.
type site struct {
	status int
	body   string
	err    error
	asked  int
}

func (s *site) get(context.Context, string) (int, []byte, error) {
	s.asked++
	return s.status, []byte(s.body), s.err
}

func TestBackgroundIsWhereItIsWanted(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		site   site
		reason cache.Reason
		ok     bool
	}{
		"none":            {site: site{status: 404}, ok: true},
		"forbidden":       {site: site{status: 403}, ok: true},
		"allows":          {site: site{status: 200, body: "User-agent: *\nDisallow: /other"}, ok: true},
		"opted out":       {site: site{status: 200, body: "User-agent: ringmod\nDisallow: /"}, reason: cache.Denied},
		"fails":           {site: site{status: 500}, reason: cache.Busy},
		"too many":        {site: site{status: 429}, reason: cache.Busy},
		"does not answer": {site: site{err: errors.New("refused")}, reason: cache.Busy},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := New(Config{})
			s.UseRobots(test.site.get)
			h := s.Host("git.test", Repository)
			if err := h.Crawl(t.Context(), "/a/b"); err != nil || test.site.asked > 0 {
				t.Errorf("%s: what somebody waits for: %v, robots.txt asked for %d times", name, err, test.site.asked)
			}
			for range 3 {
				err := h.Crawl(WithBackground(t.Context()), "/a/b")
				if (err == nil) != test.ok || err != nil && cache.ReasonOf(err) != test.reason {
					t.Errorf("%s: got %v, want one: %v", name, err, !test.ok)
				}
			}
			if test.site.asked != 1 {
				t.Errorf("%s: robots.txt was asked for %d times, want once", name, test.site.asked)
			}
			time.Sleep(robotsTTL + time.Second)
			if _ = h.Crawl(WithBackground(t.Context()), "/a/b"); test.site.asked != 2 {
				t.Errorf("%s: robots.txt was asked for %d times in a day, want 2", name, test.site.asked)
			}
		})
	}
	if err := New(Config{}).Host("a", Repository).Crawl(WithBackground(t.Context()), "/"); cache.ReasonOf(err) != cache.Busy {
		t.Errorf("without a way to get robots.txt: %v", err)
	}
}

func TestCrawlDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Share: func() float64 { return 0.5 }})
		s.UseRobots((&site{status: 200, body: "User-agent: *\nCrawl-delay: 10"}).get)
		h, ctx := s.Host("git.test", Repository), WithBackground(t.Context())
		for range 3 {
			if err := h.Crawl(ctx, "/a"); err != nil {
				t.Fatal(err)
			}
			err := h.Crawl(ctx, "/b")
			if e, ok := errors.AsType[*cache.Error](err); !ok || e.Reason != cache.Busy || e.RetryAfter != 20*time.Second {
				t.Fatalf("at once again: %#v, want Busy for 20s, as two nodes come", err)
			}
			if err := h.Crawl(t.Context(), "/b"); err != nil {
				t.Errorf("what somebody waits for: %v", err)
			}
			time.Sleep(20 * time.Second)
		}
	})
}
