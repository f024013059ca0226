package test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// rewrite copies a bundle; change returns the content of a file as it is to be, nil to
// leave it out.
func rewrite(t *testing.T, from string, change func(name string, content []byte) []byte) string {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	in := tar.NewReader(bytes.NewReader(data))
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if content = change(h.Name, content); content == nil {
			continue
		}
		h.Size = int64(len(content))
		err = w.WriteHeader(h)
		if err == nil {
			_, err = w.Write(content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "bundle.tar")
	if err := os.WriteFile(to, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

// Modules go in a bundle to a cluster that reaches nobody, whose nodes all come to have
// them; a go command there checks them against the checksum database. What is
// not what the database says, or has no proof, is refused, and the rest is stored.
func TestBundle(t *testing.T) {
	t.Parallel()
	fake := upstreamtest.New(t,
		upstreamtest.Module{Path: "example.com/a", Version: "v1.0.0", Pad: 1 << 20},
		upstreamtest.Module{Path: "example.com/b", Version: "v1.0.0"},
		upstreamtest.Module{Path: "example.com/b", Version: "v1.1.0"},
	)
	key := fake.SumdbKey()
	outside := verifying(t, fake, t.TempDir())
	bundle := filepath.Join(t.TempDir(), "deps.tar")
	run := func(wantStatus int, want string, args ...string) {
		t.Helper()
		status, out, stderr := harness.Run(t, nil, args...)
		if status != wantStatus || !strings.Contains(out+stderr, want) {
			t.Errorf("%v: status %d\n%s%s\nwant status %d and %q", args, status, out, stderr, wantStatus, want)
		}
	}
	run(0, "8 files of 2 module versions: 6 packed", "export", "--addr", outside.GRPC, "--sumdb", key, "-o", bundle, "example.com/a@v1.0.0", "example.com/b@v1.0.0")
	more := filepath.Join(t.TempDir(), "more.tar")
	run(0, "3 packed", "export", "--addr", outside.GRPC, "--sumdb", key, "-o", more, "--since", bundle, "example.com/b@v1.1.0", "example.com/b@v1.0.0")
	run(1, "could not be packed", "export", "--addr", outside.GRPC, "--sumdb", key, "-o", more+"x", "example.com/none@v1.0.0")
	if _, err := os.Stat(more + "x"); err == nil {
		t.Error("a bundle that lacks something was written")
	}

	inside := harness.NewCluster(t, "--upstream", "off", "--offline", "--sumdb", key, "--log-level", "error")
	n1 := inside.StartNode(harness.Spec{Name: "n1"})
	inside.StartNode(harness.Spec{Name: "n2"})
	gateway := inside.StartGateway(harness.Spec{Name: "g1"})
	inside.WaitConverged()

	bad := rewrite(t, bundle, func(name string, content []byte) []byte {
		if name == "example.com/a/@v/v1.0.0.zip" {
			return fake.Zip("example.com/b", "v1.0.0")
		}
		if strings.Contains(name, "/lookup/example.com/b") {
			return nil
		}
		return content
	})
	run(1, "example.com/a/@v/v1.0.0.zip: ", "import", "--addr", n1.GRPC, bad)
	run(1, "example.com/b/@v/v1.0.0.zip: ", "import", "--addr", n1.GRPC, bad)
	for _, name := range []string{"example.com/a/@v/v1.0.0.zip", "example.com/b/@v/v1.0.0.zip", "example.com/b/@v/v1.0.0.mod"} {
		if holders := inside.Holders(name); len(holders) > 0 {
			t.Errorf("%s is stored at %v", name, holders)
		}
	}
	data, err := os.ReadFile(bundle)
	if err != nil {
		t.Fatal(err)
	}
	short := filepath.Join(t.TempDir(), "short.tar")
	if err := os.WriteFile(short, data[:len(data)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	run(1, "cut short", "import", "--addr", n1.GRPC, short)
	run(1, "no tar archive", "import", "--addr", n1.GRPC, os.Args[0])
	run(2, "no such file", "import", "--addr", n1.GRPC, bundle+"x")

	run(0, " 0 failed", "import", "--addr", n1.GRPC, bundle)
	run(0, " 0 failed", "import", "--addr", n1.GRPC, more, bundle)
	g := harness.NewGo(t, "GOPROXY="+gateway.URL(), "GOSUMDB="+key)
	g.Write("go.mod", "module example.com/main\n\ngo 1.21\n\nrequire (\n\texample.com/a v1.0.0\n\texample.com/b v1.1.0\n)\n")
	g.Must("mod", "download", "all")
	for _, name := range []string{"example.com/a/@v/v1.0.0.zip", "example.com/b/@v/v1.1.0.mod"} {
		inside.Eventually(patience, name+" is at both nodes", func(*harness.Process) error {
			if got := inside.Holders(name); len(got) != 2 {
				return errors.New(strings.Join(got, " "))
			}
			return nil
		})
	}
}

// Private modules are packed where that is asked for, and are taken by a cluster to which
// they are private, too: nobody else could have checked them.
func TestBundleOfPrivateModules(t *testing.T) {
	t.Parallel()
	module := upstreamtest.Module{Path: "example.com/secret", Version: "v1.0.0"}
	fake := upstreamtest.New(t, module)
	cluster := func(flags ...string) (*harness.Cluster, *harness.Process) {
		c := harness.NewCluster(t, append([]string{"--upstream", "off", "--offline", "--sumdb", fake.SumdbKey(), "--log-level", "error"}, flags...)...)
		n1 := c.StartNode(harness.Spec{Name: "n1"})
		c.WaitConverged()
		return c, n1
	}
	outside, n1 := cluster("--private", "example.com/secret")
	outside.Place(fake, module)
	_, there := cluster("--private", "example.com/*")
	_, elsewhere := cluster()
	bundle := filepath.Join(t.TempDir(), "private.tar")
	for _, step := range []struct {
		status int
		want   string
		args   []string
	}{
		{1, "say --with-private", []string{"export", "--addr", n1.GRPC, "-o", bundle, "example.com/secret@v1.0.0"}},
		{0, "3 packed", []string{"export", "--addr", n1.GRPC, "--with-private", "-o", bundle, "example.com/secret@v1.0.0"}},
		{0, " 0 failed", []string{"import", "--addr", there.GRPC, bundle}},
		{1, "3 failed", []string{"import", "--addr", elsewhere.GRPC, bundle}},
	} {
		status, out, stderr := harness.Run(t, nil, step.args...)
		if status != step.status || !strings.Contains(out+stderr, step.want) {
			t.Errorf("%v: status %d\n%s%s\nwant status %d and %q", step.args, status, out, stderr, step.status, step.want)
		}
	}
}
