package sumdb

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/ringmod/ringmod/internal/target"
)

// The databases that cmd/go knows by name: key and alias are those of
// cmd/go/internal/modfetch/key.go and sumdb.go.
const (
	publicName  = "sum.golang.org"
	publicKey   = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
	chinaAlias  = "sum.golang.google.cn"
	disabledAll = "off"
)

// Spec says which checksum database to use and how to reach it. The zero Spec
// means none.
type Spec struct {
	Name string // host, or host/path
	Key  string // verifier key, as golang.org/x/mod/sumdb/note reads it
	// URL is the address that was given for direct access; nil means https://Name.
	URL *url.URL
	// Direct is set when URL was given: then upstream proxies are not asked,
	// as in cmd/go.
	Direct bool
}

// Off reports whether s names no database.
func (s Spec) Off() bool { return s.Name == "" }

// ParseSpec reads the syntax of GOSUMDB (cmd/go/internal/modfetch/sumdb.go):
// "off", a name that the go command knows, or a verifier key, each of the
// latter two perhaps followed by a space and the address to use. Errors say
// what to write instead and never repeat an address, which may hold a password.
func ParseSpec(s string) (Spec, error) {
	if s == disabledAll {
		return Spec{}, nil
	}
	if s == chinaAlias {
		s = publicName + " https://" + chinaAlias
	}
	fields := strings.Fields(s)
	if len(fields) == 0 || len(fields) > 2 {
		return Spec{}, fmt.Errorf("checksum database: want \"NAME\", \"NAME+HASH+KEY\", either with a URL behind a space, or \"off\"; got %d fields", len(fields))
	}
	spec, err := parseKey(fields[0])
	if err != nil || len(fields) == 1 {
		return spec, err
	}
	spec.Direct = true
	spec.URL, err = parseURL(fields[1])
	if err != nil {
		return Spec{}, fmt.Errorf("checksum database %s: %w", spec.Name, err)
	}
	return spec, nil
}

func parseKey(key string) (Spec, error) {
	if key == publicName {
		key = publicKey
	}
	verifier, err := note.NewVerifier(key)
	if err != nil {
		name, _, _ := strings.Cut(key, "://") // what follows may hold a password
		return Spec{}, fmt.Errorf("checksum database %q is not a name that is known here: give its key as NAME+HASH+KEY", name)
	}
	name := verifier.Name()
	if err := checkName(name); err != nil {
		return Spec{}, fmt.Errorf("checksum database %q: %w", name, err)
	}
	return Spec{Name: name, Key: key}, nil
}

// checkName accepts host[/path] as cmd/go does, as far as it can be part of a
// target: "/lookup/" within a name would end it early.
func checkName(name string) error {
	errName := errors.New("the name must be HOST or HOST/PATH")
	u, err := url.Parse("https://" + name)
	if err != nil || u.Host == "" || u.RawPath != "" || *u != (url.URL{Scheme: "https", Host: u.Host, Path: u.Path}) {
		return errName
	}
	for _, rest := range []string{"supported", "latest", "lookup/a.b/c@v1.0.0", "tile/8/0/000"} {
		t, err := target.ForSumdb(name, rest)
		if err != nil || t.DB != name || t.Rest != rest {
			return errName
		}
	}
	return nil
}

func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, errors.New("its URL cannot be parsed")
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		return u, nil
	default:
		return nil, errors.New("its URL must begin with https://HOST or http://HOST")
	}
}
