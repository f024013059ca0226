package sumdb_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/sumdb"
)

const publicKey = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"

func TestParseSpec(t *testing.T) {
	t.Parallel()
	own := newDatabase(t).vkey
	tests := []struct{ spec, name, key, url string }{
		{"off", "", "", ""},
		{"sum.golang.org", "sum.golang.org", publicKey, ""},
		{"sum.golang.org https://mirror.example/sum", "sum.golang.org", publicKey, "https://mirror.example/sum"},
		{"sum.golang.google.cn", "sum.golang.org", publicKey, "https://sum.golang.google.cn"},
		{own, dbName, own, ""},
		{" " + own + "  http://localhost:1/x ", dbName, own, "http://localhost:1/x"},
	}
	for _, test := range tests {
		got, err := sumdb.ParseSpec(test.spec)
		url := ""
		if got.URL != nil {
			url = got.URL.String()
		}
		if err != nil || got.Name != test.name || got.Key != test.key || url != test.url || got.Direct != (url != "") || got.Off() != (test.name == "") {
			t.Errorf("ParseSpec(%q) = %+v, %v, want %q %q %q", test.spec, got, err, test.name, test.key, test.url)
		}
	}
}

func TestParseSpecRejects(t *testing.T) {
	t.Parallel()
	secret := "hunter2"
	for _, spec := range []string{
		"", " ", "sum.example.org", "a b c", "sum.golang.org+033de0ae+AAAA", "sum.golang.org ftp://u:" + secret + "@h/", "sum.golang.org https://",
		"sum.golang.org https://u:" + secret + "@h:port/", "https://u:" + secret + "@sum.example.org", "sum.golang.org mirror.example", "off https://x.y", "sum.golang.org file:///srv/sumdb",
	} {
		got, err := sumdb.ParseSpec(spec)
		if err == nil {
			t.Errorf("ParseSpec(%q) = %+v, want an error", spec, got)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("ParseSpec(%q): %v tells the password", spec, err)
		}
	}
}

func TestNewRejects(t *testing.T) {
	t.Parallel()
	own := newDatabase(t).vkey
	for name, spec := range map[string]sumdb.Spec{
		"off": {}, "no key": {Name: "a.b"}, "key of another": {Name: "a.b", Key: own},
	} {
		if _, err := sumdb.New(sumdb.Config{Spec: spec}); err == nil {
			t.Errorf("%s: New gave no error", name)
		}
	}
}

func FuzzParseSpec(f *testing.F) {
	f.Add("off")
	f.Add("sum.golang.org https://sum.golang.google.cn")
	f.Add(publicKey + " http://a.b/c")
	f.Add("a/lookup/b+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8")
	f.Fuzz(func(t *testing.T, s string) {
		spec, err := sumdb.ParseSpec(s)
		if err != nil || spec.Off() {
			return
		}
		if _, err := sumdb.New(sumdb.Config{Spec: spec}); err != nil {
			t.Errorf("ParseSpec(%q) gives what New rejects: %v", s, err)
		}
		if _, err := target.ForSumdb(spec.Name, "supported"); err != nil {
			t.Errorf("ParseSpec(%q) gives a name without targets: %v", s, err)
		}
	})
}

// FuzzLookup wants that no answer but the true record passes.
func FuzzLookup(f *testing.F) {
	r := newRig(f)
	r.db.grow(f, 0, 300)
	r.lookup(1)
	honest, err := r.db.get("lookup/example.com/m7@v1.0.0")
	if err != nil {
		f.Fatal(err)
	}
	want, _, _ := bytes.Cut(honest, []byte("\n\n"))
	f.Add(honest)
	f.Add(bytes.Replace(honest, []byte("7\n"), []byte("-7\n"), 1))
	f.Add([]byte("7\nexample.com/m7 v1.0.0 h1:x\n\n\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		r := &rig{
			t: t, db: r.db, heads: r.heads, remote: &remote{db: r.db, counts: make(map[string]int)},
			storage: &storage{t: t, files: make(map[string][]byte), damaged: make(map[string]bool)},
		}
		r.restart()
		r.remote.set(func(rest string, data []byte, err error) ([]byte, error) {
			if strings.HasPrefix(rest, "lookup/") {
				return answer, nil
			}
			return data, err
		})
		got, err := r.Lookup(t.Context(), mod(7))
		if record, _, _ := bytes.Cut(got, []byte("\n\n")); err == nil && !bytes.Equal(record, want) {
			t.Errorf("Lookup accepts %q", got)
		}
	})
}

// FuzzDataTile wants that nothing but the true records pass.
func FuzzDataTile(f *testing.F) {
	r := newRig(f)
	r.db.grow(f, 0, 3)
	want, err := r.db.get("tile/8/data/000.p/3")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(want)
	f.Add([]byte("\n\n\n\n\n\n"))
	f.Add([]byte("\n\n\n\n\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		r := &rig{
			t: t, db: r.db, heads: &heads{msgs: make(map[string][]byte)}, remote: &remote{db: r.db, counts: make(map[string]int)},
			storage: &storage{t: t, files: make(map[string][]byte), damaged: make(map[string]bool)},
		}
		r.restart()
		r.remote.set(func(rest string, data []byte, err error) ([]byte, error) {
			if strings.HasPrefix(rest, "tile/8/data/") {
				return answer, nil
			}
			return data, err
		})
		got, err := r.tile("tile/8/data/000.p/3")
		if err == nil && !bytes.Equal(got, want) {
			t.Errorf("Tile accepts %q", got)
		}
	})
}
