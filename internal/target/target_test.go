package target_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/internal/target"
)

func TestParse(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		kind target.Kind
		path string
		vers string
	}{
		{"golang.org/x/mod/@v/list", target.List, "golang.org/x/mod", ""},
		{"golang.org/x/mod/@latest", target.Latest, "golang.org/x/mod", ""},
		{"golang.org/x/mod/@v/v0.20.0.info", target.Info, "golang.org/x/mod", "v0.20.0"},
		{"golang.org/x/mod/@v/v0.20.0.mod", target.Mod, "golang.org/x/mod", "v0.20.0"},
		{"golang.org/x/mod/@v/v0.20.0.zip", target.Zip, "golang.org/x/mod", "v0.20.0"},
		{"github.com/!azure/azure-sdk-for-go/@v/v68.0.0+incompatible.zip", target.Zip, "github.com/Azure/azure-sdk-for-go", "v68.0.0+incompatible"},
		{"golang.org/toolchain/@v/v0.0.1-go1.25.3.linux-amd64.zip", target.Zip, "golang.org/toolchain", "v0.0.1-go1.25.3.linux-amd64"},
		{"gopkg.in/yaml.v3/@v/v3.0.1.info", target.Info, "gopkg.in/yaml.v3", "v3.0.1"},
		{"golang.org/x/mod/@v/master.info", target.Query, "golang.org/x/mod", "master"},
		{"golang.org/x/mod/@v/!h!e!a!d.info", target.Query, "golang.org/x/mod", "HEAD"},
		{"golang.org/x/mod/@v/v1.info", target.Query, "golang.org/x/mod", "v1"},
		{"golang.org/x/mod/@v/v2.0.0.info", target.Query, "golang.org/x/mod", "v2.0.0"},
		{"golang.org/x/mod/@v/v1.0.0+meta.info", target.Query, "golang.org/x/mod", "v1.0.0+meta"},
		{"sumdb/sum.golang.org/supported", target.SumdbSupported, "", ""},
		{"sumdb/sum.golang.org/latest", target.SumdbLatest, "", ""},
		{"sumdb/localhost/a/b/supported", target.SumdbSupported, "", ""},
		{"sumdb/sum.golang.org/lookup/github.com/!azure/x@v1.0.0-!r!c1", target.SumdbLookup, "github.com/Azure/x", "v1.0.0-RC1"},
		{"sumdb/sum.golang.org/tile/8/0/x001/234", target.SumdbTile, "", ""},
		{"sumdb/sum.golang.org/tile/8/1/003.p/7", target.SumdbTile, "", ""},
		{"sumdb/sum.golang.org/tile/8/data/003", target.SumdbTile, "", ""},
	}
	for _, test := range tests {
		got, err := target.Parse(test.name)
		if err != nil {
			t.Errorf("Parse(%q): %v", test.name, err)
			continue
		}
		if got.Kind != test.kind || got.Path != test.path || got.Version != test.vers || got.String() != test.name {
			t.Errorf("Parse(%q) = %v %q %q %q, want %v %q %q", test.name, got.Kind, got.Path, got.Version, got, test.kind, test.path, test.vers)
		}
	}
}

func TestParseRejects(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		foreign bool
	}{
		{"", true},
		{"favicon.ico", true},
		{"a", true},
		{"golang.org/x/mod/@v/", true},
		{"golang.org/x/mod/@v/v1.0.0", true},
		{"golang.org/x/mod/@v/v1.0.0.txt", true},
		{"golang.org/x/mod/@v/v1.0.0.info/x", true},
		{"golang.org/x/mod/@v/../../etc/passwd.info", true},
		{"../golang.org/x/mod/@v/list", true},
		{"golang.org/./mod/@v/list", true},
		{"golang.org//mod/@v/list", true},
		{"/golang.org/x/mod/@v/list", true},
		{`golang.org\x\mod/@v/list`, true},
		{"golang.org/x/mod\x00/@v/list", true},
		{"golang.org/x/mod\n/@v/list", true},
		{"golang.org/X/mod/@v/list", false},
		{"golang.org/!X/@v/list", false},
		{"golang.org/!!x/@v/list", false},
		{"golang.org/x/!/@v/list", false},
		{"golang.org/x/é/@v/list", false},
		{"nodot/x/@v/list", false},
		{"golang.org/x/mod/@v/V1.0.0.info", false},
		{"golang.org/x/mod/@v/master.zip", false},
		{"golang.org/x/mod/@v/v1.zip", false},
		{"golang.org/x/mod/@v/v1.0.0+meta.mod", false},
		{"golang.org/x/mod/@v/v2.0.0.zip", false},
		{"golang.org/x/mod/@v/" + strings.Repeat("a", 300) + ".info", false},
		{"golang.org/" + strings.Repeat("a/", 2000) + "@v/list", false},
		{"sumdb/sum.golang.org/", true},
		{"sumdb/sum.golang.org/other", false},
		{"sumdb/sum.golang.org/tile/8/0/1", false},
		{"sumdb/sum.golang.org/tile/9/0/001", false},
		{"sumdb/sum.golang.org/tile/8/0/001.p/256", false},
		{"sumdb/sum.golang.org/tile/8/0/001.p/0", false},
		{"sumdb/sum.golang.org/lookup/golang.org/x/mod", false},
		{"sumdb/sum.golang.org/lookup/golang.org/x/mod@master", false},
		{"sumdb/sum.golang.org/lookup/golang.org/X/mod@v1.0.0", false},
		{"sumdb/sum.golang.org/lookup/golang.org/x/mod@v1.0.0/go.mod", false},
	}
	for _, test := range tests {
		got, err := target.Parse(test.name)
		e, ok := errors.AsType[*target.Error](err)
		if !ok {
			t.Errorf("Parse(%q) = %v, %v, want an *Error", test.name, got.Kind, err)
			continue
		}
		if e.Foreign != test.foreign {
			t.Errorf("Parse(%q): Foreign = %v, want %v (%v)", test.name, e.Foreign, test.foreign, err)
		}
	}
}

// FuzzParse checks the law that makes a target a safe key and file name.
func FuzzParse(f *testing.F) {
	f.Add("golang.org/x/mod/@v/v0.20.0.zip")
	f.Add("sumdb/sum.golang.org/tile/8/0/x001/234.p/7")
	f.Add("sumdb/a/lookup/b.c/d@v1.0.0")
	f.Add("a.b/../@latest")
	f.Fuzz(func(t *testing.T, name string) {
		got, err := target.Parse(name)
		if err != nil {
			return
		}
		if got.String() != name {
			t.Errorf("Parse(%q).String() = %q", name, got)
		}
		for element := range strings.SplitSeq(name, "/") {
			if element == "" || element == "." || element == ".." || strings.ContainsAny(element, "\\\x00\n") {
				t.Errorf("Parse(%q) accepts the element %q", name, element)
			}
		}
		switch got.Kind {
		case target.Info, target.Mod, target.Zip:
			again, err := target.ForVersion(got.Module(), got.Kind)
			if err != nil || again != got {
				t.Errorf("ForVersion(%v) = %v, %v, want %v", got.Module(), again, err, got)
			}
		case target.List, target.Latest:
			again, err := target.ForModule(got.Path, got.Kind)
			if err != nil || again != got {
				t.Errorf("ForModule(%q) = %v, %v, want %v", got.Path, again, err, got)
			}
		}
	})
}
