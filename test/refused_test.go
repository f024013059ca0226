package test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/note"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// refusedModules are one version that is known when the database begins to lie, and others
// that are not.
func refusedModules() []upstreamtest.Module {
	var all []upstreamtest.Module
	for _, version := range []string{"v1.0.0", "v1.1.0", "v1.2.0", "v1.3.0"} {
		all = append(all, upstreamtest.Module{Path: "example.com/m", Version: version, Files: map[string]string{"m.go": "package m // " + version + "\n"}})
	}
	return all
}

const knownRecord = "sumdb/" + csName + "/lookup/example.com/m@v1.0.0"

// know fetches v1.0.0 with a go command, checksums included, and v1.1.0, so that the tree
// has two records.
func know(t *testing.T, p *harness.Process, fake *upstreamtest.Server) {
	t.Helper()
	checkKnown(t, p, fake)
	if got, err := fetch(t, p.URL()+"/example.com/m/@v/v1.1.0.zip"); err != nil || got.status != http.StatusOK {
		t.Fatalf("v1.1.0: %d %q, %v", got.status, got.body, err)
	}
}

// checkKnown has a developer with an empty cache download what is known, with all checks.
func checkKnown(t *testing.T, p *harness.Process, fake *upstreamtest.Server) {
	t.Helper()
	g := harness.NewGo(t, "GOPROXY="+p.URL(), "GOSUMDB="+fake.SumdbKey(), "GONOSUMDB=", "GOPRIVATE=", "GONOPROXY=")
	if out, err := g.Run("mod", "download", "example.com/m@v1.0.0"); err != nil {
		t.Errorf("a go command that wants what is known: %v\n%s", err, out)
	}
}

// storedBelow reads all objects. What was about to be written is not among them.
func storedBelow(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	stored := map[string][]byte{}
	for _, file := range filesBelow(t, filepath.Join(dir, "objects")) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		stored[file] = data
	}
	return stored
}

// TestLyingChecksumDatabase plays a database, or the way to it, that lies: a tile is corrupted,
// its history forks. Both are refused and reported, nothing of them is stored, and who wants
// what is known notices nothing; when it is honest again, so is the answer.
func TestLyingChecksumDatabase(t *testing.T) {
	t.Parallel()
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	corrupt := func(fake *upstreamtest.Server) func() {
		fake.Fault("/tile/", upstreamtest.Fault{Corrupt: flip})
		return fake.Heal
	}
	fork := func(records int) func(*upstreamtest.Server) func() {
		return func(fake *upstreamtest.Server) func() { return fake.ForkSumdb(records) }
	}
	for _, test := range []struct {
		name, reason string
		lie          func(*upstreamtest.Server) (undo func())
	}{
		{"corrupted tile", "altered", corrupt},
		{"fork that is older", "forked", fork(0)},
		{"fork of the same size", "forked", fork(1)},
		{"fork that is newer", "forked", fork(300)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			fake := upstreamtest.New(t, refusedModules()...)
			dir := t.TempDir()
			p := verifying(t, fake, dir)
			know(t, p, fake)
			p.Stop() // all is stored
			before := storedBelow(t, dir)
			p = verifying(t, fake, dir)
			undo := test.lie(fake)
			for _, name := range []string{"example.com/m/@v/v1.2.0.zip", "example.com/m/@v/v1.2.0.mod", "sumdb/" + csName + "/lookup/example.com/m@v1.2.0"} {
				got, err := fetch(t, p.URL()+"/"+name)
				if err != nil || got.status != http.StatusBadGateway || !strings.Contains(got.body, csName) {
					t.Errorf("%s: %d %q, %v, want 502 that names the database", name, got.status, got.body, err)
				}
			}
			checkKnown(t, p, fake)
			if n := p.Metric(`ringmod_sumdb_refused_total{reason="` + test.reason + `"`); n == 0 {
				t.Errorf("ringmod_sumdb_refused_total does not count %q", test.reason)
			}
			eventually(t, "a line in the log", func() bool { return strings.Contains(p.Log(), "checksum database contradicts itself") })
			status, out, _ := harness.Run(t, nil, "status", "--addr", p.GRPC)
			if status != 0 || !strings.Contains(out, "checksum database "+csName+": refused") || !strings.Contains(out, "("+test.reason+")") {
				t.Errorf("ringmod status: %d\n%s", status, out)
			}
			t.Logf("ringmod status: %s", tail(strings.TrimSpace(out), 1))
			p.Stop()
			if after := storedBelow(t, dir); !maps.EqualFunc(before, after, bytes.Equal) {
				t.Errorf("%d files are stored, before the lie %d", len(after), len(before))
			}
			undo()
			p = verifying(t, fake, dir)
			if got, err := fetch(t, p.URL()+"/example.com/m/@v/v1.2.0.zip"); err != nil || got.status != http.StatusOK {
				t.Errorf("from an honest database: %d %q, %v", got.status, got.body, err)
			}
		})
	}
}

// TestOlderTreeHead has the database, or a cache before it, say that an older tree is the
// newest one: clients get the newer one that is known, and operators are told.
func TestOlderTreeHead(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t, refusedModules()...)
	dir := t.TempDir()
	p := verifying(t, fake, dir)
	latest := p.URL() + "/sumdb/" + csName + "/latest"
	know(t, p, fake)
	old, err := fetch(t, latest)
	if err != nil || old.status != http.StatusOK {
		t.Fatalf("latest: %d %q, %v", old.status, old.body, err)
	}
	if got, err := fetch(t, p.URL()+"/example.com/m/@v/v1.2.0.zip"); err != nil || got.status != http.StatusOK {
		t.Fatalf("v1.2.0: %d %q, %v", got.status, got.body, err)
	}
	p.Stop()
	fake.Fault("/latest", upstreamtest.Fault{Body: old.body})
	p = verifying(t, fake, dir, "--log-level", "warn")
	got, err := fetch(t, p.URL()+"/sumdb/"+csName+"/latest")
	if err != nil || got.status != http.StatusOK || !strings.HasPrefix(got.body, "go.sum database tree\n3\n") {
		t.Errorf("latest: %d %q, %v, want the tree of 3 records", got.status, got.body, err)
	}
	if n := p.Metric(`ringmod_sumdb_refused_total{reason="older"`); n != 1 {
		t.Errorf("%v older heads were counted, want 1", n)
	}
	eventually(t, "a line in the log", func() bool { return strings.Contains(p.Log(), "checksum database gives an older tree head") })
	_, out, _ := harness.Run(t, nil, "status", "--addr", p.GRPC)
	if want := "it answers with a tree head of 2 records, and one of 3 is known (older)"; !strings.Contains(out, want) {
		t.Errorf("ringmod status does not say %q:\n%s", want, out)
	}
	checkKnown(t, p, fake)
	if got, err := fetch(t, p.URL()+"/example.com/m/@v/v1.3.0.zip"); err != nil || got.status != http.StatusOK {
		t.Errorf("a version that is not known yet: %d %q, %v", got.status, got.body, err)
	}
}

// secondDatabase is another checksum database, which knows everything, and the flag for it.
func secondDatabase(t *testing.T) string {
	t.Helper()
	signer, verifier, err := note.GenerateKey(rand.Reader, "sum.second.test")
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(sumdb.NewServer(sumdb.NewTestServer(signer, func(path, version string) ([]byte, error) {
		return fmt.Appendf(nil, "%[1]s %[2]s h1:second\n%[1]s %[2]s/go.mod h1:second\n", path, version), nil
	})))
	t.Cleanup(server.Close)
	return verifier + " " + server.URL
}

// TestChecksumDatabaseDown has two databases, of which the first cannot be reached: what is
// known of it stays to be had, and the other one is as ever.
func TestChecksumDatabaseDown(t *testing.T) {
	t.Parallel()
	fake, second := upstreamtest.New(t, refusedModules()...), secondDatabase(t)
	dir := t.TempDir()
	p := verifying(t, fake, dir, "--sumdb", second)
	know(t, p, fake)
	p.Stop()
	fake.Fault("/sumdb/", upstreamtest.Fault{Drop: true})
	p = verifying(t, fake, dir, "--sumdb", second)
	checkKnown(t, p, fake)
	for name, status := range map[string]int{
		knownRecord: http.StatusOK,
		"sumdb/" + csName + "/lookup/example.com/m@v1.3.0":      http.StatusBadGateway,
		"sumdb/sum.second.test/lookup/example.com/other@v1.3.0": http.StatusOK,
		"sumdb/sum.second.test/latest":                          http.StatusOK,
	} {
		if got, err := fetch(t, p.URL()+"/"+name); err != nil || got.status != status {
			t.Errorf("%s: %d %q, %v, want %d", name, got.status, got.body, err, status)
		}
	}
}
