package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
)

// What the arguments of warm may be, and what is said of those that they must not.
func TestReadWanted(t *testing.T) {
	t.Parallel()
	const sum = "example.com/a v1.0.0 h1:abc=\nexample.com/a v1.0.0/go.mod h1:abc=\nexample.com/b v1.0.0/go.mod h1:abc=\n"
	for name, test := range map[string]struct {
		file, text string // "" = the argument is what is given
		arg        string
		want       string // versions, those without zips with a "-"
		err        string
	}{
		"version":       {arg: "example.com/a@v1.0.0", want: "example.com/a@v1.0.0"},
		"sum":           {file: "go.sum", text: sum, want: "example.com/a@v1.0.0 -example.com/b@v1.0.0"},
		"list":          {file: "list", text: "# all\n\nexample.com/a v1.0.0\nexample.com/b@v1.2.0 # too\n", want: "example.com/a@v1.0.0 example.com/b@v1.2.0"},
		"input":         {arg: "-", text: "example.com/a@v1.0.0", want: "example.com/a@v1.0.0"},
		"no file":       {arg: "no/such/file", err: "no such file"},
		"branch":        {arg: "example.com/a@master", err: "canonical version"},
		"no module":     {arg: "a@v1.0.0", err: "canonical version"},
		"other text":    {file: "list", text: "example.com/a v1.0.0\n<html> <body> of a page\n", err: "line 2"},
		"not canonical": {file: "list", text: "example.com/a v1\n", err: "line 1"},
		"go.mod":        {file: "go.mod", text: "module x\nrequire\n", err: "go.mod:2"},
	} {
		if test.file != "" {
			test.arg = filepath.Join(t.TempDir(), test.file)
			if err := os.WriteFile(test.arg, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		w, err := readWanted([]string{test.arg}, strings.NewReader(test.text))
		if test.err != "" {
			usage, ok := errors.AsType[*usageError](err)
			if !ok || !strings.Contains(usage.Error(), test.err) {
				t.Errorf("%s: got %v, want %q", name, err, test.err)
			}
			continue
		}
		if err != nil || versionsOf(w) != test.want {
			t.Errorf("%s: got %q, %v, want %q", name, versionsOf(w), err, test.want)
		}
	}
}

func versionsOf(w *wanted) string {
	var all []string
	for _, m := range w.modules() {
		if text := m.String(); w.zips[m] {
			all = append(all, text)
		} else {
			all = append(all, "-"+text)
		}
	}
	slices.SortFunc(all, func(a, b string) int { return strings.Compare(strings.TrimPrefix(a, "-"), strings.TrimPrefix(b, "-")) })
	return strings.Join(all, " ")
}

// What of a module graph is fetched: pruned as go commands prune it.
func TestGraph(t *testing.T) {
	t.Parallel()
	mods := map[string]string{
		"example.com/lazy@v1.0.0":  "module example.com/lazy\ngo 1.21\nrequire example.com/deep v1.0.0\n",
		"example.com/eager@v1.0.0": "module example.com/eager\ngo 1.16\nrequire example.com/deep v1.1.0\n",
		"example.com/deep@v1.0.0":  "module example.com/deep\ngo 1.21\nrequire example.com/abyss v1.0.0\n",
		"example.com/deep@v1.1.0":  "module example.com/deep\ngo 1.16\nrequire example.com/abyss v1.1.0\n",
		"example.com/fork@v1.9.0":  "module example.com/eager\ngo 1.21\n",
		"example.com/bad@v1.0.0":   "no go.mod at all",
	}
	for name, test := range map[string]struct{ mod, want string }{
		"pruned":     {"module m\ngo 1.21\nrequire example.com/lazy v1.0.0\n", "-example.com/deep@v1.0.0 example.com/lazy@v1.0.0"},
		"one is not": {"module m\ngo 1.21\nrequire example.com/eager v1.0.0\n", "-example.com/abyss@v1.1.0 -example.com/deep@v1.1.0 example.com/eager@v1.0.0"},
		"not pruned": {"module m\ngo 1.16\nrequire example.com/lazy v1.0.0\n", "example.com/abyss@v1.0.0 example.com/deep@v1.0.0 example.com/lazy@v1.0.0"},
		"no go line": {"module m\nrequire example.com/lazy v1.0.0\n", "example.com/abyss@v1.0.0 example.com/deep@v1.0.0 example.com/lazy@v1.0.0"},
		"replaced":   {"module m\ngo 1.21\nrequire example.com/eager v1.0.0\nreplace example.com/eager => example.com/fork v1.9.0\n", "example.com/fork@v1.9.0"},
		"a folder":   {"module m\ngo 1.21\nrequire example.com/eager v1.0.0\nreplace example.com/eager => ../eager\n", ""},
		"unreadable": {"module m\ngo 1.21\nrequire (\n\texample.com/bad v1.0.0\n\texample.com/gone v1.0.0\n)\n", "example.com/bad@v1.0.0 example.com/gone@v1.0.0"},
	} {
		f, err := modfile.Parse("go.mod", []byte(test.mod), nil)
		if err != nil {
			t.Fatal(err)
		}
		w := &wanted{zips: map[module.Version]bool{}}
		err = w.graph(t.Context(), f, func(_ context.Context, m module.Version) ([]byte, error) {
			if text, ok := mods[m.String()]; ok {
				return []byte(text), nil
			}
			return nil, errors.New("a test")
		})
		if got := versionsOf(w); err != nil || got != test.want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, test.want)
		}
	}
}

func TestTreeSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"7\nexample.com/a v1.0.0 h1:x=\n\ngo.sum database tree\n4711\nhash=\n\n— name sig\n": 4711,
		"7\nexample.com/a v1.0.0 h1:x=\n":  0,
		"7\n\ngo.sum database tree\n-5\nx": 0,
		"":                                 0,
	} {
		if got := treeSize([]byte(text)); got != want {
			t.Errorf("%q: got %d, want %d", text, got, want)
		}
	}
}
