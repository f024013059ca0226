package identity

import (
	"net/url"
	"strings"
	"testing"
)

var uris = []struct {
	name, uri string
	want      Identity // zero: refused
}{
	{"node", "spiffe://ringmod/node/n1", Identity{"ringmod", Node, "n1"}},
	{"gateway", "spiffe://ringmod/gateway/g-1.eu_a", Identity{"ringmod", Gateway, "g-1.eu_a"}},
	{"operator", "spiffe://a.example.com/operator/Me", Identity{"a.example.com", Operator, "Me"}},
	{
		"all at their limits", "spiffe://" + strings.Repeat("c", 63) + "/gateway/" + strings.Repeat("i", 64),
		Identity{strings.Repeat("c", 63), Gateway, strings.Repeat("i", 64)},
	},
	{name: "empty"},
	{name: "another scheme", uri: "https://ringmod/node/n1"},
	{name: "no cluster", uri: "spiffe:///node/n1"},
	{name: "long cluster", uri: "spiffe://" + strings.Repeat("c", 64) + "/node/n1"},
	{name: "empty part of a cluster", uri: "spiffe://a..b/node/n1"},
	{name: "dot behind a cluster", uri: "spiffe://a./node/n1"},
	{name: "port", uri: "spiffe://ringmod:1/node/n1"},
	{name: "user", uri: "spiffe://n2@ringmod/node/n1"},
	{name: "no id", uri: "spiffe://ringmod/node/"},
	{name: "no id and no slash", uri: "spiffe://ringmod/node"},
	{name: "long id", uri: "spiffe://ringmod/node/" + strings.Repeat("i", 65)},
	{name: "more behind the id", uri: "spiffe://ringmod/node/n1/n2"},
	{name: "slash behind the id", uri: "spiffe://ringmod/node/n1/"},
	{name: "unknown role", uri: "spiffe://ringmod/root/n1"},
	{name: "role in capitals", uri: "spiffe://ringmod/Node/n1"},
	{name: "escaped id", uri: "spiffe://ringmod/node/n%31"},
	{name: "separator in the id", uri: "spiffe://ringmod/node/n1~b"},
	{name: "query", uri: "spiffe://ringmod/node/n1?x"},
	{name: "empty query", uri: "spiffe://ringmod/node/n1?"},
	{name: "fragment", uri: "spiffe://ringmod/node/n1#x"},
	{name: "line break", uri: "spiffe://ringmod/node/n1\n"},
	{name: "zero byte", uri: "spiffe://ringmod/node/n1\x00"},
}

func TestParse(t *testing.T) {
	t.Parallel()
	for _, tt := range uris {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := Parse(tt.uri)
			if got != tt.want || (err == nil) != (tt.want != Identity{}) {
				t.Errorf("got %+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
}

// What we accept has to survive the way into a certificate and out of it.
func TestNamesFitCertificates(t *testing.T) {
	t.Parallel()
	for _, tt := range uris {
		if (tt.want == Identity{}) {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ca := newCA(t, tt.want.Cluster)
			if got := ca.Cluster(); got != tt.want.Cluster {
				t.Errorf("CA is of cluster %q, want %q", got, tt.want.Cluster)
			}
			if got := ca.member(t, tt.uri).Self(); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, tt := range uris {
		f.Add(tt.uri)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		who, err := Parse(uri)
		if err != nil {
			return
		}
		if err := who.Check(); err != nil || who.URI() != uri {
			t.Errorf("%q is read as %+v: %v", uri, who, err)
		}
		if u, err := url.Parse(uri); err != nil || u.String() != uri || u.Host != who.Cluster {
			t.Errorf("%q is another URI in a certificate: %v, %v", uri, u, err)
		}
	})
}
