package test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/test/harness"
	"github.com/ringmod/ringmod/test/harness/gitserver"
)

const dvLib = "git.example.com/lib"

// tagged is a repository with so many tags, a module in a folder, a second major
// version, a retracted version and a commit without a tag, and 1 MiB that does not
// compress. It returns that commit.
func tagged(s *gitserver.Server, tags int) (commit string) {
	noise := make([]byte, 3<<18)
	for i := range noise {
		noise[i] = byte(rand.IntN(256))
	}
	r := s.Repo(dvLib)
	r.Commit(map[string]string{
		"go.mod": "module " + dvLib + "\n\ngo 1.20\n", "lib.go": "package lib\n\nconst Release = 0\n",
		"noise.txt": base64.StdEncoding.EncodeToString(noise), "LICENSE": "Do as you like.\n",
		"sub/go.mod": "module " + dvLib + "/sub\n", "sub/sub.go": "package sub\n",
	}, "v1.0.0", "sub/v0.1.0")
	for i := range tags - 1 {
		r.Commit(map[string]string{"lib.go": fmt.Sprintf("package lib\n\nconst Release = %d\n", i+1)}, fmt.Sprintf("v1.%d.0", i+1))
	}
	r.Commit(map[string]string{"sub/sub.go": "package sub // again\n"}, "sub/v0.2.0")
	r.Commit(map[string]string{"go.mod": "module " + dvLib + "\n\ngo 1.20\n\nretract v1.1.0 // it deletes files\n"}, fmt.Sprintf("v1.%d.0", tags))
	commit = r.Commit(map[string]string{"lib.go": "package lib // without a tag\n"})
	r.Git("checkout", "-q", "-b", "v2")
	r.Commit(map[string]string{"go.mod": "module " + dvLib + "/v2\n\ngo 1.20\n"}, "v2.0.0", "v2.1.0-rc.1")
	r.Git("checkout", "-q", "main")
	return commit
}

// downloaded is what 'go mod download -json' says of a module.
type downloaded struct{ Path, Version, Sum, GoModSum, Error string }

func downloadAll(t *testing.T, g *harness.Go, modules []string) map[string]downloaded {
	t.Helper()
	out := g.Must(append([]string{"mod", "download", "-json"}, modules...)...)
	all := make(map[string]downloaded)
	for decoder := json.NewDecoder(strings.NewReader(out)); ; {
		var d downloaded
		err := decoder.Decode(&d)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		all[d.Path+"@"+d.Version] = d
	}
}

// cloneSize is what a clone costs the host, in bytes.
func cloneSize(t *testing.T, s *gitserver.Server) int64 {
	t.Helper()
	before := s.Sent()
	cmd := exec.CommandContext(t.Context(), "git", "clone", "-q", "--bare", "https://"+dvLib+".git", filepath.Join(t.TempDir(), "clone"))
	cmd.Env = append(cmd.Environ(), s.Env()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return s.Sent() - before
}

// TestDirect gets all of a repository with a real go command, by way of ringmod and
// without it: what comes is the same, and the host is asked for little.
func TestDirect(t *testing.T) {
	t.Parallel()
	tags := 60
	if testing.Short() {
		tags = 5
	}
	s := gitserver.New(t)
	commit := tagged(s, tags)
	clone := cloneSize(t, s)
	data := t.TempDir()
	p := harness.ServeEnv(t, append(s.Env(), "GIT_CONFIG_GLOBAL="), "--data-dir", data, "--upstream", "direct", "--private", "", "--sumdb", "off", "--log-level", "error")
	through := harness.NewGo(t, "GOPROXY="+p.URL(), "GOSUMDB=off", "GOVCS=*:off", "HTTPS_PROXY=http://127.0.0.1:1")
	itself := harness.NewGo(t, append(s.Env(), "GOPROXY=direct", "GOSUMDB=off")...)

	// Versions and queries; the first clone is in here.
	for _, args := range [][]string{
		{dvLib + "@latest"},
		{"-versions", dvLib},
		{"-versions", "-retracted", dvLib},
		{"-versions", dvLib + "/sub"},
		{"-versions", dvLib + "/v2"},
		{dvLib + "/v2@latest"},
		{dvLib + "/v2@v2.1.0-rc.1"},
		{dvLib + "@" + commit},
		{dvLib + "@main"},
		{dvLib + "@v1.2"},
		{dvLib + "/sub@" + commit[:12]},
	} {
		args = append([]string{"list", "-m"}, args...)
		if got, want := through.Must(args...), itself.Must(args...); got != want {
			t.Errorf("go %v: got %q, want %q", args, got, want)
		}
	}
	pseudo := strings.Fields(through.Must("list", "-m", dvLib+"@"+commit))[1]
	first := s.Sent()

	modules := []string{dvLib + "@" + pseudo, dvLib + "/sub@v0.1.0", dvLib + "/sub@v0.2.0", dvLib + "/v2@v2.0.0", dvLib + "/v2@v2.1.0-rc.1"}
	for i := range tags + 1 {
		modules = append(modules, fmt.Sprintf("%s@v1.%d.0", dvLib, i))
	}
	for _, m := range modules {
		path, version, _ := strings.Cut(m, "@")
		if got, err := fetch(t, p.URL()+"/"+path+"/@v/"+version+".mod"); err != nil || got.status != 200 || !strings.HasPrefix(got.body, "module "+path+"\n") {
			t.Errorf("%s.mod: got %d %q, %v", m, got.status, got.body, err)
		}
	}
	if zips := slices.DeleteFunc(filesBelow(t, data), func(name string) bool { return !strings.HasSuffix(name, ".zip") }); len(zips) > 0 {
		t.Errorf("go.mod files had zips made: %q", zips)
	}
	got := downloadAll(t, through, modules)
	cost := s.Sent() - first
	if limit := clone * int64(tags-1) / 10; cost > limit {
		t.Errorf("tags 2 to %d cost the host %d bytes, want at most %d; a clone is %d", tags, cost, limit, clone)
	}
	t.Logf("%d versions cost the host %d bytes, a clone is %d: %.2f %% of %d clones", len(modules), cost, clone, 100*float64(cost)/float64(clone*int64(tags-1)), tags-1)
	want := downloadAll(t, itself, modules)
	if len(want) != len(modules) {
		t.Fatalf("the go command by itself got %d of %d", len(want), len(modules))
	}
	for m, w := range want {
		if got[m] != w || w.Sum == "" || w.Error != "" {
			t.Errorf("%s: got %+v, want %+v", m, got[m], w)
		}
	}
	if refused := s.Refused(); len(refused) > 0 {
		t.Errorf("somebody else was asked: %q", refused)
	}
}
