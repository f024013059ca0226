package upstream

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

func TestDropSelf(t *testing.T) {
	t.Parallel()
	m := machine{name: "Box.corp.test", ips: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}}
	tests := []struct {
		list, self string
		kept       string
		dropped    string
	}{
		{"https://proxy.test,direct", "127.0.0.1:8080", "https://proxy.test,direct", ""},
		{"http://127.0.0.1:8080,https://proxy.test|direct", "127.0.0.1:8080", "https://proxy.test|direct", "http://127.0.0.1:8080"},
		{"http://localhost:8080", "127.0.0.1:8080", "", "http://localhost:8080"},
		{"http://localhost:8080", "[::1]:8080", "", "http://localhost:8080"},
		{"http://a.localhost:8080/x|off", "[::]:8080", "off", "http://a.localhost:8080/…"},
		{"http://127.0.0.1:8081,direct", "127.0.0.1:8080", "http://127.0.0.1:8081,direct", ""},
		{"http://127.0.0.2:8080", "127.0.0.1:8080", "http://127.0.0.2:8080", ""},
		{"http://127.0.0.2:8080", "0.0.0.0:8080", "", "http://127.0.0.2:8080"},
		{"http://0.0.0.0:8080", "127.0.0.1:8080", "", "http://0.0.0.0:8080"},
		{"http://[::ffff:127.0.0.1]:8080", "127.0.0.1:8080", "", "http://[::ffff:127.0.0.1]:8080"},
		{"http://192.0.2.7:8080", "0.0.0.0:8080", "", "http://192.0.2.7:8080"},
		{"http://[2001:db8::7]:8080", "[::]:8080", "", "http://[2001:db8::7]:8080"},
		{"http://192.0.2.8:8080", "0.0.0.0:8080", "http://192.0.2.8:8080", ""},
		{"http://192.0.2.7:8080", "127.0.0.1:8080", "http://192.0.2.7:8080", ""},
		{"http://192.0.2.7:8080", "192.0.2.7:8080", "", "http://192.0.2.7:8080"},
		{"http://localhost:8080", "192.0.2.7:8080", "http://localhost:8080", ""},
		{"http://BOX.corp.test:8080|http://box:8080,http://box.other.test:8080", "192.0.2.7:8080", "http://box.other.test:8080", "http://BOX.corp.test:8080 http://box:8080"},
		{"http://localhost,https://localhost", "127.0.0.1:80", "https://localhost", "http://localhost"},
		{"localhost.:443", "127.0.0.1:443", "", "https://localhost.:443"},
		{"https://a.test,http://me:secret@localhost:8080|https://b.test", "127.0.0.1:8080", "https://a.test,https://b.test", "http://localhost:8080"},
		{"https://a.test|http://localhost:8080,https://b.test", "127.0.0.1:8080", "https://a.test|https://b.test", "http://localhost:8080"},
		{"https://a.test|http://localhost:8080", "127.0.0.1:8080", "https://a.test", "http://localhost:8080"},
		{"file:///srv,off", "127.0.0.1:8080", "file:///srv,off", ""},
	}
	for _, test := range tests {
		kept, dropped := dropSelf(test.list, m, []netip.AddrPort{netip.MustParseAddrPort(test.self)})
		if got := strings.Join(dropped, " "); kept != test.kept || got != test.dropped {
			t.Errorf("%s, we are %s: kept %q, dropped %q, want %q, %q", test.list, test.self, kept, got, test.kept, test.dropped)
		}
	}
	if name, err := os.Hostname(); err == nil {
		list := "http://" + name + ":8080,http://127.0.0.1:8080,direct"
		if kept, _ := DropSelf(list, []netip.AddrPort{netip.MustParseAddrPort("[::]:8080")}); kept != "direct" {
			t.Errorf("DropSelf(%q) = %q, want direct", list, kept)
		}
	}
}

func TestParseNetrc(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, data string
		want       netrc
	}{
		{"empty", "", nil},
		{"one line", "machine a.test login me password pw", netrc{{"a.test", "me", "pw"}}},
		{"several lines", "machine a.test\n\tlogin me\r\n\tpassword pw\n", netrc{{"a.test", "me", "pw"}}},
		{"password first", "machine a.test password pw login me", netrc{{"a.test", "me", "pw"}}},
		{"account is skipped", "machine a.test account x login me password pw", netrc{{"a.test", "me", "pw"}}},
		{"two", "machine a.test login me password pw machine b.test login you password wp", netrc{{"a.test", "me", "pw"}, {"b.test", "you", "wp"}}},
		{"no password", "machine a.test login me\nmachine b.test login you password wp", netrc{{"b.test", "you", "wp"}}},
		{"default ends it", "machine a.test login me password pw\ndefault login x password y\nmachine b.test login you password wp", netrc{{"a.test", "me", "pw"}}},
		{"comments", "# machine c.test login no password no\nmachine a.test login me password #pw # why", netrc{{"a.test", "me", "#pw"}}},
		{"macro", "macdef init\nmachine c.test login no password no\n\nmachine a.test login me password pw", netrc{{"a.test", "me", "pw"}}},
		{"half a pair", "machine a.test login me password", nil},
	}
	for _, test := range tests {
		if got := parseNetrc(test.data); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func FuzzParseNetrc(f *testing.F) {
	f.Add("machine a.test login me password pw\ndefault login x password y")
	f.Add("macdef x\n\nmachine a login # password #")
	f.Fuzz(func(t *testing.T, data string) {
		words := strings.Fields(data)
		for _, m := range parseNetrc(data) {
			for _, word := range []string{m.name, m.login, m.password} {
				if !slices.Contains(words, word) {
					t.Errorf("%q is no word of the file", word)
				}
			}
		}
	})
}

// FuzzList checks that no list makes a panic or shows a password, and that what
// DropSelf leaves of a good list is a good list.
func FuzzList(f *testing.F) {
	f.Add("https://me:PASSWORD@host.test/x|direct")
	f.Add("me:PASSWORD@host.test,off,file:///x")
	f.Add("http://localhost:8080|,https://[::1]:8080")
	f.Fuzz(func(t *testing.T, list string) {
		entries, err := parseList(list)
		if err == nil {
			for _, e := range entries {
				if e.base != nil && e.base.User != nil && strings.Contains(e.name, "@") {
					t.Errorf("%q shows as %q", list, e.name)
				}
			}
		} else if strings.Contains(list, "PASSWORD@") && strings.Contains(err.Error(), "PASSWORD@") {
			t.Errorf("%q: %v", list, err)
		}
		kept, _ := dropSelf(list, machine{name: "box"}, []netip.AddrPort{netip.MustParseAddrPort("[::]:8080")})
		if err == nil && kept != "" {
			if _, err := parseList(kept); err != nil {
				t.Errorf("%q becomes %q: %v", list, kept, err)
			}
		}
	})
}

func FuzzOneLine(f *testing.F) {
	f.Add("not found: x\nmore")
	f.Add(strings.Repeat("é", 300))
	f.Add("\x1b[2J\xff\u202e\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		got := oneLine(s)
		if len(got) > maxText || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("oneLine(%q) = %q", s, got)
		}
	})
}

func TestParseRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tests := []struct {
		value string
		want  time.Duration
		ok    bool
	}{
		{"", 0, false},
		{"0", 0, true},
		{"7", 7 * time.Second, true},
		{"99999999", time.Hour, true},
		{"-1", 0, false},
		{"soon", 0, false},
		{"Fri, 02 Jan 2026 03:04:15 GMT", 10 * time.Second, true},
		{"Fri, 02 Jan 2026 03:00:00 GMT", 0, true},
		{"Fri, 02 Jan 2099 03:00:00 GMT", time.Hour, true},
	}
	for _, test := range tests {
		if got, ok := parseRetryAfter(test.value, now); got != test.want || ok != test.ok {
			t.Errorf("%q: %v, %v, want %v, %v", test.value, got, ok, test.want, test.ok)
		}
	}
}

func TestParseContentRange(t *testing.T) {
	t.Parallel()
	tests := []struct {
		value        string
		start, total int64
		ok           bool
	}{
		{"bytes 5-9/10", 5, 10, true},
		{"bytes 0-0/*", 0, -1, true},
		{"bytes 5-9/9", 0, 0, false},
		{"bytes 9-5/10", 0, 0, false},
		{"bytes */10", 0, 0, false},
		{"items 5-9/10", 0, 0, false},
		{"bytes 5-9", 0, 0, false},
		{"bytes -5-9/10", 0, 0, false},
		{"", 0, 0, false},
	}
	for _, test := range tests {
		start, total, ok := parseContentRange(test.value)
		if ok != test.ok || ok && (start != test.start || total != test.total) {
			t.Errorf("%q: %d, %d, %v, want %d, %d, %v", test.value, start, total, ok, test.start, test.total, test.ok)
		}
	}
}
