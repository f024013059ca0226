package gateway

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // page.html and page.css
	"encoding/base64"
	"html/template"
	"net/http"
	"net/url"
	"strings"
)

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS string

// page is what a browser sees at /.
type page struct {
	template *template.Template
	policy   string
	data     pageData
	regions  func() []Region // nil: no cluster
}

type pageData struct {
	Style     template.CSS
	Base      string
	Version   string
	Upstreams []string
	Sumdbs    []string
	Cluster   bool
	Regions   []Region
}

func newPage(cfg Config) *page {
	digest := sha256.Sum256([]byte(pageCSS))
	p := &page{
		template: template.Must(template.New("page").Parse(pageHTML)),
		policy: "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(digest[:]) +
			"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		data:    pageData{Style: template.CSS(pageCSS), Version: cfg.Version, Sumdbs: cfg.Sumdbs, Cluster: cfg.Regions != nil},
		regions: cfg.Regions,
	}
	for _, list := range cfg.Upstreams {
		for entry := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == '|' }) {
			p.data.Upstreams = append(p.data.Upstreams, redact(entry))
		}
	}
	return p
}

// redact strips what may be secret of an upstream: user, password (a token may
// be either), query and fragment.
func redact(upstream string) string {
	u, err := url.Parse(strings.TrimSpace(upstream))
	if err != nil {
		return "(not a URL)"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

func (p *page) serve(x *exchange) {
	x.kind = kindPage
	data := p.data
	data.Base = baseURL(x.r)
	if p.regions != nil {
		data.Regions = p.regions()
	}
	var b bytes.Buffer
	if err := p.template.Execute(&b, data); err != nil {
		x.fail(err)
		return
	}
	h := x.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", p.policy)
	h.Set("Referrer-Policy", "no-referrer")
	h["X-Content-Type-Options"] = nosniff
	h.Set("Cache-Control", "no-cache")
	x.WriteHeader(http.StatusOK)
	if x.r.Method != http.MethodHead {
		_, _ = x.Write(b.Bytes())
	}
}

// baseURL is how the client that sent r reaches us: what it should put into
// GOPROXY.
func baseURL(r *http.Request) string {
	scheme := "http://"
	if r.TLS != nil {
		scheme = "https://"
	}
	if r.Host == "" || strings.Trim(r.Host, hostCharacters) != "" {
		return scheme + "HOST"
	}
	return scheme + r.Host
}

const hostCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]"
