package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/test/harness"
)

// commitOf is a commit that is easy to tell from others.
func commitOf(letter string) string { return strings.Repeat(letter, 40) }

// auditNow runs ringmod audit --now until it has asked about so many versions, as what has
// just been fetched is not on the disk yet. It returns what it has found, in words.
func auditNow(t *testing.T, p *harness.Process, versions int, args ...string) (found map[string]string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d versions to be looked at", versions), func() bool {
		var looked int
		found, looked = auditOnce(t, p, args...)
		return looked == versions
	})
	return found
}

func auditOnce(t *testing.T, p *harness.Process, args ...string) (found map[string]string, looked int) {
	t.Helper()
	status, out, stderr := harness.Run(t, nil, append([]string{"audit", "--now", "--json", "--addr", p.GRPC}, args...)...)
	if status != 0 {
		t.Fatalf("ringmod audit: status %d\n%s%s", status, out, stderr)
	}
	found = map[string]string{}
	for line := range strings.Lines(out) {
		r := &ringmodv1.AuditResponse{}
		if err := protojson.Unmarshal([]byte(line), r); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if r.GetDone() {
			looked += int(r.GetLooked())
		}
		for _, f := range r.GetFindings() {
			text := fmt.Sprintf("%s>%s", f.GetOldCommit(), f.GetNewCommit())
			if f.GetClosedAge() != nil {
				text += " closed"
			}
			found[f.GetModule().GetPath()+"@"+f.GetModule().GetVersion()] = text
		}
	}
	return found, looked
}

func checkFound(t *testing.T, when string, got, want map[string]string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: found %v, want %v", when, got, want)
	}
}

// filesOf reads all files of versions through a gateway.
func filesOf(t *testing.T, gateway *harness.Process, path string, versions ...string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, version := range versions {
		for _, ext := range []string{".info", ".mod", ".zip"} {
			name := path + "/@v/" + version + ext
			got, err := fetch(t, gateway.URL()+"/"+name)
			if err != nil || got.status != http.StatusOK {
				t.Fatalf("%s: %d %q, %v", name, got.status, got.body, err)
			}
			files[name] = got.body
		}
	}
	return files
}

func checkFiles(t *testing.T, when string, got, want map[string]string) {
	t.Helper()
	for name, data := range want {
		if got[name] != data {
			t.Errorf("%s: %s has other bytes than before", when, name)
		}
	}
}

// TestAuditOfAProxy moves a tag and deletes another behind a proxy: "ringmod audit" of a
// cluster reports both with their commits, and the bytes stay.
func TestAuditOfAProxy(t *testing.T) {
	t.Parallel()
	const path = "example.com/m"
	module := func(version, commit, goMod string) upstreamtest.Module {
		return upstreamtest.Module{Path: path, Version: version, Commit: commitOf(commit), Files: map[string]string{"go.mod": "module " + path + "\n" + goMod}}
	}
	fake := upstreamtest.New(t, module("v1.0.0", "a", ""), module("v1.1.0", "b", ""), module("v1.2.0", "c", "retract v1.0.0 // loses data\n"),
		upstreamtest.Module{Path: "example.com/other", Version: "v1.0.0"})
	c, gateways := startCluster(t, fake, 3, 1)
	versions := []string{"v1.0.0", "v1.1.0", "v1.2.0"}
	before := filesOf(t, gateways[0], path, versions...)
	filesOf(t, gateways[0], "example.com/other", "v1.0.0")
	n1 := c.Member("n1")
	fake.Reset()
	checkFound(t, "without a change", auditNow(t, n1, 4), nil)
	if fake.Count(".zip") > 0 || fake.Count(".mod") > 0 {
		t.Errorf("an audit has asked for %q", fake.Requests())
	}

	fake.Add(module("v1.0.0", "f", "// moved\n"))
	fake.Remove(path, "v1.1.0")
	fake.Reset()
	want := map[string]string{path + "@v1.0.0": commitOf("a") + ">" + commitOf("f"), path + "@v1.1.0": commitOf("b") + ">"}
	checkFound(t, "changed", auditNow(t, n1, 3, path), want)
	for _, request := range fake.Requests() {
		if !strings.HasSuffix(request, ".info") {
			t.Errorf("an audit asks for %s", request)
		}
	}
	for _, version := range versions {
		if n := fake.Count(path + "/@v/" + version + ".info"); n != 1 {
			t.Errorf("upstream was asked %d times about %s, want once by one node", n, version)
		}
	}
	checkFiles(t, "after the audit", filesOf(t, gateways[0], path, versions...), before)
	for _, node := range []string{"n1", "n2", "n3"} {
		p := c.Member(node)
		status, out, stderr := harness.Run(t, nil, "audit", "--addr", p.GRPC)
		if node == "n1" {
			t.Logf("ringmod audit:\n%s%s", out, stderr)
		}
		if status != 0 || !strings.Contains(out, "moved") || !strings.Contains(out, "vanished") || !strings.Contains(out, "2 versions have changed") {
			t.Errorf("audit by way of %s: status %d\n%s%s", node, status, out, stderr)
		}
	}
	eventually(t, "two events in the logs", func() bool {
		events := 0
		for _, node := range []string{"n1", "n2", "n3"} {
			events += strings.Count(c.Member(node).Log(), "version has changed upstream")
		}
		return events == 2
	})
	if got, err := fetch(t, gateways[0].URL()+"/"+path+"/@v/list"); err != nil || got.status != http.StatusOK {
		t.Fatalf("list: %d, %v", got.status, err)
	}
	explained(t, n1, path+"@v1.0.0", "HAS MOVED upstream from commit aaaaaaaaaaaa to ffffffffffff", "RETRACTED by the go.mod of v1.2.0: loses data")
	explained(t, c.Member("n2"), path, path+"@v1.1.0 HAS VANISHED upstream, it was commit bbbbbbbbbbbb", "v1.0.0 RETRACTED")

	c.Member("n3").Kill()
	status, out, stderr := harness.Run(t, nil, "audit", "--addr", n1.GRPC)
	if status != 1 || !strings.Contains(stderr, "n3 did not answer") {
		t.Errorf("with n3 dead: status %d\n%s%s", status, out, stderr)
	}
}

// explained wants "ringmod explain" to say so.
func explained(t *testing.T, p *harness.Process, subject string, want ...string) {
	t.Helper()
	status, out, stderr := harness.Run(t, nil, "explain", subject, "--addr", p.GRPC)
	for _, text := range want {
		if status != 0 || !strings.Contains(out, text) {
			t.Errorf("explain %s: status %d, want %q in\n%s%s", subject, status, text, out, stderr)
		}
	}
}

// gitRepository is a repository that https://example.com/repo stands for.
type gitRepository struct {
	t         *testing.T
	dir, home string
}

func newGitRepository(t *testing.T) *gitRepository {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("git is missing")
		}
		t.Skip("git is missing")
	}
	r := &gitRepository{t: t, dir: t.TempDir(), home: t.TempDir()}
	config := fmt.Sprintf("[user]\n\tname = n\n\temail = n@example.com\n[url %q]\n\tinsteadOf = https://example.com/repo\n", "file://"+r.dir)
	if err := os.WriteFile(r.config(), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	r.git("init", "-q", "-b", "main")
	return r
}

func (r *gitRepository) config() string { return filepath.Join(r.home, ".gitconfig") }

func (r *gitRepository) git(args ...string) string {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "git", args...)
	cmd.Dir = r.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.home, "GIT_CONFIG_NOSYSTEM=1"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit writes a file and returns the commit.
func (r *gitRepository) commit(name, content string) string {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(content), 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.git("add", ".")
	r.git("commit", "-q", "-m", "a commit")
	return r.git("rev-parse", "HEAD")
}

// TestAuditOfARepository is the same with version control: nothing is cloned for it, a tag
// that comes back is told of, and what was found outlives a restart.
func TestAuditOfARepository(t *testing.T) {
	t.Parallel()
	const path = "example.com/repo.git"
	r := newGitRepository(t)
	first := r.commit("go.mod", "module "+path+"\n")
	r.git("tag", "v1.0.0")
	r.git("tag", "-a", "-m", "annotated", "v1.1.0")
	dir := t.TempDir()
	serve := func() *harness.Process {
		return harness.ServeEnv(t, []string{"GIT_CONFIG_GLOBAL=" + r.config(), "GIT_ALLOW_PROTOCOL=file:https"},
			"--data-dir", dir, "--upstream", "direct", "--sumdb", "off", "--node-id", "only")
	}
	p := serve()
	before := filesOf(t, p, path, "v1.0.0", "v1.1.0")
	checkFound(t, "without a change", auditNow(t, p, 2), nil)

	second := r.commit("a.go", "package repo\n")
	r.git("tag", "-f", "v1.0.0")
	r.git("tag", "-d", "v1.1.0")
	objects := objectsBelow(t, filepath.Join(dir, "direct", "mod", "cache", "vcs"))
	want := map[string]string{path + "@v1.0.0": first + ">" + second, path + "@v1.1.0": first + ">"}
	checkFound(t, "changed", auditNow(t, p, 2, path), want)
	if got := objectsBelow(t, filepath.Join(dir, "direct", "mod", "cache", "vcs")); got != objects {
		t.Errorf("the clones have %d files, before the audit %d", got, objects)
	}
	checkFiles(t, "after the audit", filesOf(t, p, path, "v1.0.0", "v1.1.0"), before)
	p.Stop()
	p = serve()
	checkFiles(t, "after a restart", filesOf(t, p, path, "v1.0.0", "v1.1.0"), before)
	status, out, stderr := harness.Run(t, nil, "audit", "--addr", p.GRPC)
	t.Logf("ringmod audit:\n%s%s", out, stderr)
	if status != 0 || !strings.Contains(out, second[:12]) || !strings.Contains(out, "vanished") {
		t.Errorf("after a restart: status %d\n%s%s", status, out, stderr)
	}
	r.git("tag", "-f", "v1.0.0", first)
	want[path+"@v1.0.0"] += " closed"
	checkFound(t, "restored", auditNow(t, p, 2), want)
	eventually(t, "the log to tell of the tag that is back", func() bool {
		return strings.Contains(p.Log(), "version is upstream again as it is held")
	})
	var info struct{ Origin struct{ Hash string } }
	if err := json.Unmarshal([]byte(before[path+"/@v/v1.0.0.info"]), &info); err != nil || info.Origin.Hash != first {
		t.Errorf(".info says %q, %v, want %q", info.Origin.Hash, err, first)
	}
}

// objectsBelow counts files.
func objectsBelow(t *testing.T, dir string) int {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			n++
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return n
}
