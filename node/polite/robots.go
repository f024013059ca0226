package polite

import (
	"bufio"
	"bytes"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// Agent is what robots.txt calls us.
	Agent = "ringmod"
	// MaxRobots is how much of a robots.txt is read, in bytes (RFC 9309, 2.5).
	MaxRobots = 500 << 10
	maxDelay  = 24 * time.Hour // of a crawl-delay that is believed
)

// Rules are what a robots.txt says to us. The zero Rules allow everything.
type Rules struct {
	Delay time.Duration // between visits; 0 = none is asked for
	rules []rule
}

type rule struct {
	allow   bool
	pattern string
}

// ParseRobots reads a robots.txt by RFC 9309, with Crawl-delay, which is older than that: the
// groups for Agent, or else those for all. What makes no sense is skipped, as is
// all beyond 500 KiB.
func ParseRobots(data []byte) Rules {
	var ours, all Rules
	named := false // there is a group for us
	var to []*Rules
	inNames := false // the line before was a User-agent, too: they share what follows
	lines := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(data[:min(len(data), MaxRobots)], []byte("\xef\xbb\xbf"))))
	lines.Buffer(nil, MaxRobots+1)
	lines.Split(splitLines)
	for lines.Scan() {
		key, value, ok := cutRule(lines.Text())
		if !ok {
			continue
		}
		if key != "user-agent" {
			inNames = inNames && key != "allow" && key != "disallow" && key != "crawl-delay"
			for _, r := range to {
				r.add(key, value)
			}
			continue
		}
		if !inNames {
			to = nil
		}
		inNames = true
		switch name := strings.ToLower(value); {
		case name == "*":
			to = append(to, &all)
		case productOf(name) == Agent:
			to, named = append(to, &ours), true
		}
	}
	if named {
		return ours
	}
	return all
}

// splitLines is bufio.ScanLines for all ends of lines there are: LF, CR LF, CR.
func splitLines(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if i := bytes.IndexAny(data, "\r\n"); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

func cutRule(line string) (key, value string, ok bool) {
	line, _, _ = strings.Cut(line, "#")
	key, value, ok = strings.Cut(line, ":")
	return strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(value), ok
}

// productOf is the product token at the beginning of a User-agent line.
func productOf(name string) string {
	end := strings.IndexFunc(name, func(r rune) bool { return (r < 'a' || r > 'z') && r != '_' && r != '-' })
	if end < 0 {
		return name
	}
	return name[:end]
}

func (r *Rules) add(key, value string) {
	switch {
	case key == "crawl-delay":
		if seconds, err := strconv.ParseFloat(value, 64); err == nil && seconds > 0 {
			r.Delay = max(r.Delay, min(time.Duration(min(seconds, maxDelay.Seconds())*float64(time.Second)), maxDelay))
		}
	case value == "": // allows all, which is how it is anyway
	case key == "allow", key == "disallow":
		r.rules = append(r.rules, rule{key == "allow", normal(value)})
	}
}

// normal spells a path or pattern in one way: no needless percent-encoding, and what is
// not ASCII encoded.
func normal(path string) string {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' && i+2 < len(path) {
			if n, err := strconv.ParseUint(path[i+1:i+3], 16, 8); err == nil {
				c = byte(n)
				i += 2
				if !isUnreserved(c) {
					b.WriteString("%" + strings.ToUpper(path[i-1:i+1]))
					continue
				}
			}
		}
		if c >= 0x80 || c <= ' ' {
			b.WriteString(url.PathEscape(string([]byte{c})))
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// Allow tells whether a path, which begins with a slash, may be visited: the longest
// pattern that matches decides, Allow between equals.
func (r *Rules) Allow(path string) bool {
	path = normal(path)
	longest, allow := -1, true
	for _, rule := range r.rules {
		if n := len(rule.pattern); (n > longest || n == longest && rule.allow) && matches(rule.pattern, path) {
			longest, allow = n, rule.allow
		}
	}
	return allow
}

// matches tells whether a pattern, in which * is anything and $ at its end is the end,
// matches the beginning of a path.
func matches(pattern, path string) bool {
	pattern, whole := strings.CutSuffix(pattern, "$")
	parts := strings.Split(pattern, "*")
	rest, ok := strings.CutPrefix(path, parts[0])
	if !ok {
		return false
	}
	if len(parts) == 1 {
		return !whole || rest == ""
	}
	for _, part := range parts[1 : len(parts)-1] {
		_, after, found := strings.Cut(rest, part)
		if !found {
			return false
		}
		rest = after
	}
	last := parts[len(parts)-1]
	if whole {
		return strings.HasSuffix(rest, last)
	}
	return strings.Contains(rest, last)
}
