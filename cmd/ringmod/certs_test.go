package main

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/internal/identity"
)

// runCerts returns the exit status and what was printed.
func runCerts(t *testing.T, args ...string) (exit int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	exit = run(t.Context(), append([]string{"certs"}, args...), &out, &errs)
	return exit, out.String(), errs.String()
}

// contents returns the files of a folder.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(b)
	}
	return all
}

// changed returns the names of files that are new or hold something else.
func changed(before, after map[string]string) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if before[name] != after[name] {
			names = append(names, name)
		}
	}
	return names
}

func TestCerts(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "certs")
	before := contents(t, dir)
	for _, step := range []struct {
		args string
		want string // files that are new
		says string
	}{
		{
			"--node n1 --gateway g1 --operator me",
			"ca-key.pem ca.pem gateway-g1-key.pem gateway-g1.pem gossip.key node-n1-key.pem node-n1.pem operator-me-key.pem operator-me.pem",
			"--peer-cert " + filepath.Join(dir, "gateway-g1.pem"),
		},
		{"--node n1 --node n2", "node-n2-key.pem node-n2.pem", "kept  " + filepath.Join(dir, "node-n1.pem")},
		{"", "", "No certificate was asked for"},
		{"--node n1 --renew", "node-n1-key.pem node-n1.pem", "renewed"},
	} {
		exit, out, errs := runCerts(t, append([]string{dir}, strings.Fields(step.args)...)...)
		if exit != 0 || !strings.Contains(out, step.says) {
			t.Fatalf("certs %s: exit status %d, %s%s", step.args, exit, out, errs)
		}
		after := contents(t, dir)
		if got := strings.Join(changed(before, after), " "); got != step.want {
			t.Errorf("certs %s: new are %s, want %s", step.args, got, step.want)
		}
		before = after
	}
	for name := range before {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if secret := strings.Contains(name, "key"); secret != (info.Mode().Perm() == 0o600) {
			t.Errorf("%s has mode %s", name, info.Mode())
		}
	}
	for _, who := range []identity.Identity{
		{Cluster: "ringmod", Role: identity.Node, ID: "n1"}, {Cluster: "ringmod", Role: identity.Operator, ID: "me"},
	} {
		path := func(name string) string { return filepath.Join(dir, name) }
		c, err := identity.Open(identity.Config{Cert: path(certFile(who)), Key: path(keyFile(who)), CA: path(caFile), Self: who})
		if err != nil || c.Self() != who {
			t.Errorf("%s: %v", who, err)
		}
	}
}

// What is wrong is said in one line, and nothing is written.
func TestCertsRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		args string
		edit func(path func(string) string) error
		exit int
		want string
	}{
		{name: "bad id", args: "--node a/b", exit: 2, want: "a/b"},
		{name: "bad cluster", args: "--cluster a..b --node n1", exit: 2, want: "a..b"},
		{name: "two members with one id", args: "--node n9 --gateway n9", exit: 2, want: "one id"},
		{name: "one member twice", args: "--node n9 --node n9", exit: 2, want: "one id"},
		{name: "id that takes a key's place", args: "--node n1-key --renew", exit: 2, want: "-key"},
		{name: "another cluster", args: "--cluster staging --node n9", exit: 2, want: "CA of cluster ringmod, not staging"},
		{name: "unknown flag", args: "--nodes n1", exit: 2, want: "--nodes"},
		{name: "two folders", args: "other", exit: 2, want: "one folder"},
		{
			name: "CA without its key", args: "--node n9", exit: 1, want: "ca.pem is there without ca-key.pem",
			edit: func(path func(string) string) error { return os.Remove(path(caKeyFile)) },
		},
		{
			name: "CA with another key", args: "--node n9", exit: 1, want: "ca-key.pem",
			edit: func(path func(string) string) error { return os.Rename(path("node-n1-key.pem"), path(caKeyFile)) },
		},
		{
			name: "broken CA", args: "--node n9 --renew", exit: 1, want: "ca.pem",
			edit: func(path func(string) string) error { return os.WriteFile(path(caFile), []byte("x"), 0o600) },
		},
		{
			name: "certificate without its key", args: "--node n1", exit: 1, want: "let --renew",
			edit: func(path func(string) string) error { return os.Remove(path("node-n1-key.pem")) },
		},
		{
			name: "certificate of another CA", args: "--node n1 --node n9", exit: 1, want: "not made by our CA",
			edit: func(path func(string) string) error {
				ca, err := identity.NewCA("ringmod")
				if err != nil {
					return err
				}
				cert, key, err := ca.PEM()
				if err != nil {
					return err
				}
				return errors.Join(os.WriteFile(path(caFile), cert, 0o600), os.WriteFile(path(caKeyFile), key, 0o600))
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if exit, _, errs := runCerts(t, dir, "--node", "n1"); exit != 0 {
				t.Fatal(errs)
			}
			if tt.edit != nil {
				if err := tt.edit(func(name string) string { return filepath.Join(dir, name) }); err != nil {
					t.Fatal(err)
				}
			}
			before := contents(t, dir)
			exit, out, errs := runCerts(t, append([]string{dir}, strings.Fields(tt.args)...)...)
			if exit != tt.exit || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, tt.want) || out != "" {
				t.Errorf("exit status %d, %q, %q; want %d and one line with %q", exit, out, errs, tt.exit, tt.want)
			}
			if after := contents(t, dir); !maps.Equal(before, after) {
				t.Errorf("%v were written", changed(before, after))
			}
		})
	}
	if exit, _, errs := runCerts(t, filepath.Join(os.DevNull, "certs"), "--node", "n1"); exit != 1 || strings.Count(errs, "\n") != 1 {
		t.Errorf("folder that cannot be: exit status %d, %q", exit, errs)
	}
	if exit, _, errs := runCerts(t); exit != 2 || !strings.Contains(errs, "ringmod certs DIR") {
		t.Errorf("no folder: exit status %d, %q", exit, errs)
	}
}
