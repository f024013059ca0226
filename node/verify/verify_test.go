package verify_test

import (
	"bytes"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/verify"
)

func parse(t testing.TB, name string) target.Target {
	t.Helper()
	got, err := target.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// checkBroken wants err to be nil, or the reason Broken with one line that holds want.
func checkBroken(t *testing.T, what string, err error, want string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("%s: %v, want no error", what, err)
		}
		return
	}
	if err == nil || cache.ReasonOf(err) != cache.Broken || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %v (%v), want %v with %q", what, err, cache.ReasonOf(err), cache.Broken, want)
	}
	if err != nil && strings.ContainsAny(err.Error(), "\n\r\x00\x1b") {
		t.Errorf("%s: text %q is not one clean line", what, err)
	}
}

func TestInfo(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, target, data, want string }{
		{"full", "a.b/c/@v/v1.2.3.info", `{"Version":"v1.2.3","Time":"2024-01-02T03:04:05Z","Origin":{"VCS":"git","Ref":"refs/tags/v1.2.3"}}`, ""},
		{"version only", "a.b/c/@v/v1.2.3.info", `{"Version":"v1.2.3"}`, ""},
		{"unknown fields", "a.b/c/@v/v1.2.3.info", `{"Version":"v1.2.3","Name":1,"Short":[]}`, ""},
		{"another version", "a.b/c/@v/v1.2.3.info", `{"Version":"v1.2.4"}`, `info names version "v1.2.4" instead of v1.2.3`},
		{"query to a release", "a.b/c/@v/master.info", `{"Version":"v1.2.4"}`, ""},
		{"query to a pseudo-version", "a.b/c/@v/master.info", `{"Version":"v0.0.0-20240102030405-0123456789ab"}`, ""},
		{"query to a branch", "a.b/c/@v/master.info", `{"Version":"master"}`, "not a canonical version"},
		{"query to build metadata", "a.b/c/@v/master.info", `{"Version":"v1.0.0+meta"}`, "not a canonical version"},
		{"latest of another major", "a.b/c/@latest", `{"Version":"v2.0.0"}`, "does not fit the path"},
		{"latest incompatible", "a.b/c/@latest", `{"Version":"v2.0.0+incompatible"}`, ""},
		{"no version", "a.b/c/@latest", `{"Time":"2024-01-02T03:04:05Z"}`, "names no version"},
		{"null", "a.b/c/@latest", `null`, "names no version"},
		{"array", "a.b/c/@latest", `[]`, "not the JSON"},
		{"html", "a.b/c/@latest", "<html>\x1b[2J\n</html>", "not the JSON"},
		{"empty", "a.b/c/@latest", ``, "not the JSON"},
		{"cut", "a.b/c/@latest", `{"Version":"v1.0.0"`, "not the JSON"},
		{"two values", "a.b/c/@latest", `{"Version":"v1.0.0"}{}`, "not the JSON"},
		{"bad time", "a.b/c/@v/v1.2.3.info", `{"Version":"v1.2.3","Time":"yesterday"}`, "not the JSON"},
		{"bad origin", "a.b/c/@v/v1.2.3.info", `{"Version":"v1.2.3","Origin":"git"}`, "not the JSON"},
	}
	for _, test := range tests {
		checkBroken(t, test.name, verify.Info(parse(t, test.target), []byte(test.data)), test.want)
	}
}

func TestMod(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, data, want string }{
		{"plain", "module a.b/c\n", ""},
		{"fork", "module original.org/x\n\ngo 1.20\n", ""},
		{"quoted", "// x\nmodule \"a.b/c\"\n", ""},
		{"empty", "", "no module line"},
		{"html", "<html>not found</html>", "no module line"},
		{"too large", "module a.b/c\n" + strings.Repeat(" ", 16<<20), "the limit is 16777216"},
	}
	for _, test := range tests {
		_, err := verify.Mod(parse(t, "a.b/c/@v/v1.2.3.mod"), []byte(test.data))
		checkBroken(t, test.name, err, test.want)
	}
	// rsc.io/sampler v1.3.0 and its line in many a go.sum.
	got, err := verify.Mod(parse(t, "a.b/c/@v/v1.2.3.mod"), []byte("module \"rsc.io/sampler\"\n\nrequire \"golang.org/x/text\" v0.0.0-20170915032832-14c0d48ead0c\n"))
	if want := "h1:T1hPZKmBbMNahiBKFy5HrXp6adAjACjK9JXDnKaTXpA="; got != want || err != nil {
		t.Errorf("Mod = %q, %v, want %q", got, err, want)
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, data, want string }{
		{"empty", "", ""},
		{"plain", "v1.0.0\nv1.1.0-rc.1\nv2.0.0+incompatible\n", ""},
		{"no last newline, blanks, carriage returns, times", "\n v1.0.0\r\n\r\nv1.1.0 2024-01-02T03:04:05Z", ""},
		{"html", "<!DOCTYPE html>\n<html>", `"<!DOCTYPE"`},
		{"prose", "v1.0.0\nnot found", `"not"`},
		{"control", "\x1b[2J", "not a version"},
	}
	for _, test := range tests {
		checkBroken(t, test.name, verify.List(parse(t, "a.b/c/@v/list"), []byte(test.data)), test.want)
	}
}

func FuzzInfo(f *testing.F) {
	f.Add([]byte(`{"Version":"v1.2.3","Time":"2024-01-02T03:04:05Z","Origin":{"VCS":"git"}}`))
	f.Add([]byte(`{"Version":"v0.0.0-20240102030405-0123456789ab"}`))
	latest := parse(f, "a.b/c/@latest")
	f.Fuzz(func(t *testing.T, data []byte) {
		err := verify.Info(latest, data)
		if err != nil {
			checkBroken(t, "info", err, " ")
		}
	})
}

func FuzzMod(f *testing.F) {
	f.Add([]byte("module a.b/c\n"))
	f.Add([]byte("module `a\n"))
	mod := parse(f, "a.b/c/@v/v1.0.0.mod")
	f.Fuzz(func(t *testing.T, data []byte) {
		h1, err := verify.Mod(mod, data)
		if (err == nil) != (modfile.ModulePath(data) != "") || (err == nil) != strings.HasPrefix(h1, "h1:") {
			t.Errorf("Mod = %q, %v", h1, err)
		}
	})
}

func FuzzList(f *testing.F) {
	f.Add([]byte("v1.0.0\nv1.1.0 x\n"))
	list := parse(f, "a.b/c/@v/list")
	f.Fuzz(func(t *testing.T, data []byte) {
		if verify.List(list, data) != nil {
			return
		}
		for line := range bytes.Lines(data) {
			if field := bytes.Fields(line); len(field) > 0 && !semver.IsValid(string(field[0])) {
				t.Errorf("List accepts %q", line)
			}
		}
	})
}

var testModule = module.Version{Path: "example.com/m", Version: "v1.2.3"}
