package upstream

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

type entryKind uint8

const (
	proxyEntry entryKind = iota + 1 // http or https
	fileEntry
	directEntry
	offEntry
)

// entry is one place of a GOPROXY list.
type entry struct {
	kind    entryKind
	base    *url.URL // of a proxyEntry and a fileEntry
	source  *source  // of a proxyEntry
	onError bool     // followed by "|": trouble goes on to the next entry
	name    string   // for people
}

// listItem is an entry as it was written, with the separator behind it.
type listItem struct {
	text string
	sep  string // ",", "|" or "" at the end
}

func splitList(list string) []listItem {
	var items []listItem
	for list != "" {
		item := listItem{text: list}
		if i := strings.IndexAny(list, ",|"); i >= 0 {
			item = listItem{text: list[:i], sep: list[i : i+1]}
			list = list[i+1:]
		} else {
			list = ""
		}
		item.text = strings.TrimSpace(item.text)
		if item.text != "" {
			items = append(items, item)
		}
	}
	return items
}

// parseList follows proxyList in cmd/go/internal/modfetch/proxy.go, except that
// an empty list is allowed here.
func parseList(list string) ([]entry, error) {
	items := splitList(list)
	if len(items) == 0 && list != "" {
		return nil, fmt.Errorf("upstream list is not empty, but contains no entries: name a proxy such as https://mirror.example.com, or \"off\"")
	}
	var entries []entry
	for i, item := range items {
		e, err := parseEntry(item.text)
		if err != nil {
			return nil, fmt.Errorf("upstream entry %d (%s): %w", i+1, redact(item.text), err)
		}
		e.onError = item.sep == "|"
		entries = append(entries, e)
		if e.kind == directEntry || e.kind == offEntry {
			break
		}
	}
	return entries, nil
}

func parseEntry(text string) (entry, error) {
	switch text {
	case "off":
		return entry{kind: offEntry, name: text}, nil
	case "direct":
		return entry{kind: directEntry, name: text}, nil
	}
	base, err := url.Parse(withScheme(text))
	if err != nil {
		return entry{}, fmt.Errorf("not a valid URL") // the parser's words may quote a password
	}
	e := entry{base: base, name: redact(base.String())}
	switch base.Scheme {
	case "http", "https":
		e.kind = proxyEntry
		return e, checkProxyURL(base)
	case "file":
		e.kind = fileEntry
		if *base != (url.URL{Scheme: base.Scheme, Path: base.Path, RawPath: base.RawPath}) {
			return entry{}, fmt.Errorf("a file URL has only a path: file:///folder")
		}
		e.name = "file://" + base.Path
		return e, nil
	case "":
		return entry{}, fmt.Errorf("no scheme: write https://… or file:///folder")
	default:
		return entry{}, fmt.Errorf("scheme must be https, http or file")
	}
}

// withScheme adds https:// where cmd/go does: to what looks like a host.
func withScheme(text string) string {
	if strings.ContainsAny(text, ".:/") && !strings.Contains(text, ":/") && !filepath.IsAbs(text) && !path.IsAbs(text) {
		return "https://" + text
	}
	return text
}

func checkProxyURL(base *url.URL) error {
	if base.Hostname() == "" {
		return fmt.Errorf("no host")
	}
	if base.User != nil && !maySendCredentials(base) {
		return fmt.Errorf("credentials would be sent unencrypted: use https")
	}
	return nil
}

// maySendCredentials reports whether a password sent to u cannot be read on the way.
func maySendCredentials(u *url.URL) bool {
	return u.Scheme == "https" || isLoopback(u.Hostname())
}

func isLoopback(hostname string) bool {
	hostname = strings.ToLower(strings.TrimSuffix(hostname, "."))
	if hostname == "localhost" || strings.HasSuffix(hostname, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(hostname)
	return err == nil && ip.Unmap().IsLoopback()
}

// redact returns scheme and host of an entry. It
// does not rely on the entry being a valid URL: all before the last "@" goes.
func redact(text string) string {
	scheme := ""
	if name, rest, ok := strings.Cut(text, "://"); ok && !strings.Contains(name, "@") {
		scheme, text = name+"://", rest
	}
	rest := text[strings.LastIndexByte(text, '@')+1:]
	if i := strings.IndexAny(rest, "/?#"); i >= 0 && rest[i:] != "/" {
		rest = rest[:i] + "/…"
	}
	return scheme + strings.TrimSuffix(rest, "/")
}

// DropSelf removes the entries of a GOPROXY list that lead to one of the
// addresses that this process listens on, and returns the rest of the list, with
// the separators that belong to what is left, and what was dropped, redacted. An
// address with an unspecified IP stands for all addresses of this machine.
//
// It resolves no names except "localhost" and this machine's own; a loop
// through another name is left to the Via header.
func DropSelf(list string, self []netip.AddrPort) (kept string, dropped []string) {
	ownName, _ := os.Hostname()
	var ownIPs []netip.Addr
	addrs, _ := net.InterfaceAddrs() // without them only loopback is recognised
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			ownIPs = append(ownIPs, prefix.Addr().Unmap())
		}
	}
	return dropSelf(list, machine{ownName, ownIPs}, self)
}

// machine is what names this machine.
type machine struct {
	name string
	ips  []netip.Addr
}

func dropSelf(list string, m machine, self []netip.AddrPort) (kept string, dropped []string) {
	var items []listItem
	for _, item := range splitList(list) {
		if m.leadsTo(item.text, self) {
			dropped = append(dropped, redact(withScheme(item.text)))
			continue
		}
		items = append(items, item)
	}
	if len(dropped) == 0 {
		return list, nil
	}
	for i, item := range items {
		kept += item.text
		if i+1 < len(items) {
			kept += item.sep
		}
	}
	return kept, dropped
}

// leadsTo reports whether an entry is the URL of one of the listeners.
func (m machine) leadsTo(text string, self []netip.AddrPort) bool {
	u, err := url.Parse(withScheme(text))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return false
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	for _, addr := range self {
		if fmt.Sprint(addr.Port()) == port && m.reaches(u.Hostname(), addr.Addr().Unmap()) {
			return true
		}
	}
	return false
}

// reaches reports whether a connection to hostname arrives at a listener on ip.
func (m machine) reaches(hostname string, ip netip.Addr) bool {
	hostname = strings.ToLower(strings.TrimSuffix(hostname, "."))
	local := ip.IsLoopback() || ip.IsUnspecified()
	to, err := netip.ParseAddr(hostname)
	if err != nil {
		short, _, _ := strings.Cut(strings.ToLower(m.name), ".")
		own := m.name != "" && (hostname == strings.ToLower(m.name) || hostname == short)
		return own || local && isLoopback(hostname)
	}
	to = to.Unmap()
	switch {
	case to.IsUnspecified():
		return local
	case ip.IsUnspecified():
		return to.IsLoopback() || slices.Contains(m.ips, to)
	default:
		return to == ip
	}
}
