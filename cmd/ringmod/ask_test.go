package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/identity"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// fakeMember answers what it is told to, and notes what it is asked.
type fakeMember struct {
	ringmodv1.UnimplementedAdminServiceServer

	status  *ringmodv1.StatusResponse
	err     error
	asked   chan *ringmodv1.ExplainRequest // of room for all; nil: not noted
	drained []*ringmodv1.DrainResponse     // what n3 says while it leaves
}

func (m *fakeMember) Status(_ context.Context, req *ringmodv1.StatusRequest) (*ringmodv1.StatusResponse, error) {
	if req.GetLocal() {
		return nil, status.Error(codes.InvalidArgument, "asked for itself alone")
	}
	return m.status, m.err
}

func (m *fakeMember) Explain(_ context.Context, req *ringmodv1.ExplainRequest) (*ringmodv1.ExplainResponse, error) {
	m.asked <- req
	return &ringmodv1.ExplainResponse{ViewSeq: 7}, m.err
}

// listen opens a port of loopback and serves it.
func listen(t *testing.T, serve func(net.Listener)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go serve(l)
	return l.Addr().String()
}

func serveMember(t *testing.T, m *fakeMember, options ...grpc.ServerOption) string {
	t.Helper()
	server := grpc.NewServer(append(wire.ServerOptions(new(wire.Pool)), options...)...)
	if m != nil {
		ringmodv1.RegisterAdminServiceServer(server, m)
	}
	t.Cleanup(server.Stop)
	return listen(t, func(l net.Listener) { _ = server.Serve(l) })
}

// command runs one command line.
func command(t *testing.T, args ...string) (exit int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	exit = run(t.Context(), args, &out, &errs)
	return exit, out.String(), errs.String()
}

func TestStatusAsJSON(t *testing.T) {
	t.Parallel()
	want := &ringmodv1.StatusResponse{
		MemberId: "n1", View: &ringmodv1.View{Cluster: "ringmod", ViewDigest: 1<<64 - 1, ViewSeq: 42},
		Members: []*ringmodv1.MemberStatus{{Member: &ringmodv1.Member{Id: "n1", Region: "eu"}, Report: &ringmodv1.MemberReport{DiskUsed: 1 << 60}}},
		Regions: []*ringmodv1.RegionStatus{{Region: "eu", Nodes: 3, PartitionsBelowReplicas: 5}},
	}
	addr := serveMember(t, &fakeMember{status: want})
	exit, stdout, stderr := command(t, "status", "--json", "--addr", addr)
	if exit != 0 || stderr != "" {
		t.Fatalf("exit status %d, %q", exit, stderr)
	}
	var got ringmodv1.StatusResponse
	decode(t, []byte(stdout), &got)
	if !proto.Equal(&got, want) {
		t.Errorf("got %v, want %v", &got, want)
	}
	// What programs look for, also where it is nothing.
	for _, field := range []string{
		`  "member_id": "n1"`, `"partitions_below_replicas": 5`, `"partitions_unavailable": 0`, `"up": false`, `"view_digest": "18446744073709551615"`,
	} {
		if !strings.Contains(stdout, field) {
			t.Errorf("no %s in\n%s", field, stdout)
		}
	}
	if exit, table, _ := command(t, "status", "--addr", addr); exit != 0 || !strings.HasPrefix(table, "cluster ringmod as n1 sees it") {
		t.Errorf("without --json: exit status %d, %q", exit, table)
	}
}

func TestExplainAsks(t *testing.T) {
	t.Parallel()
	m := &fakeMember{asked: make(chan *ringmodv1.ExplainRequest, 1)}
	addr := serveMember(t, m)
	module := func(path, version string) *ringmodv1.ExplainRequest {
		return &ringmodv1.ExplainRequest{Subject: &ringmodv1.ExplainRequest_Module{Module: &ringmodv1.ModuleVersion{Path: path, Version: version}}}
	}
	target := func(name string) *ringmodv1.ExplainRequest {
		return &ringmodv1.ExplainRequest{Subject: &ringmodv1.ExplainRequest_Target{Target: name}}
	}
	for arg, want := range map[string]*ringmodv1.ExplainRequest{
		"golang.org/x/mod":                                            module("golang.org/x/mod", ""),
		"golang.org/x/mod@v0.42.0":                                    module("golang.org/x/mod", "v0.42.0"),
		"github.com/Azure/azure-sdk-for-go@latest":                    module("github.com/Azure/azure-sdk-for-go", "latest"),
		"golang.org/x/mod@master":                                     module("golang.org/x/mod", "master"),
		"/golang.org/x/mod/@v/list":                                   target("golang.org/x/mod/@v/list"),
		"https://127.0.0.1:8080/github.com/%21azure/a/@v/v1.0.0.zip":  target("github.com/!azure/a/@v/v1.0.0.zip"),
		"http://localhost:8080/golang.org/x/mod/@latest":              target("golang.org/x/mod/@latest"),
		"sumdb/sum.golang.org/lookup/golang.org/x/mod@v0.42.0":        target("sumdb/sum.golang.org/lookup/golang.org/x/mod@v0.42.0"),
		"http://localhost:8080/sumdb/sum.golang.org/tile/8/0/001.p/7": target("sumdb/sum.golang.org/tile/8/0/001.p/7"),
	} {
		exit, stdout, stderr := command(t, "explain", arg, "--json", "--addr", addr)
		if exit != 0 || stderr != "" || !strings.Contains(stdout, `"view_seq": "7"`) {
			t.Fatalf("%s: exit status %d, %q, %q", arg, exit, stdout, stderr)
		}
		if got := <-m.asked; !proto.Equal(got, want) {
			t.Errorf("%s: asked for %v, want %v", arg, got, want)
		}
	}
}

// TestAskingInVain: one line that says what to do, whatever listens there.
func TestAskingInVain(t *testing.T) {
	t.Parallel()
	nobody := listen(t, func(l net.Listener) { l.Close() })
	silent := listen(t, func(l net.Listener) {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			defer conn.Close()
		}
	})
	web := listen(t, func(l net.Listener) { _ = http.Serve(l, http.NotFoundHandler()) })
	member := func(err error) string { return serveMember(t, &fakeMember{err: err}) }
	const hint = "is a ringmod node listening there? give --addr"
	tests := []struct {
		name string
		args []string
		exit int
		want string // in the one line
	}{
		{"nobody", []string{"status", "--addr", nobody}, 1, hint},
		{"nobody for explain", []string{"explain", "example.com/m", "--addr", nobody}, 1, hint},
		{"silence", []string{"status", "--addr", silent, "--timeout", "100ms"}, 1, hint},
		{"a web server", []string{"status", "--addr", web}, 1, hint},
		{"other gRPC", []string{"status", "--addr", serveMember(t, nil)}, 1, "is no ringmod member"},
		{"a refusal", []string{"status", "--addr", member(status.Error(codes.PermissionDenied, "gateway g1\nmay not"))}, 1, "says: gateway g1 may not"},
		{
			"a failure",
			[]string{"status", "--addr", member(wire.Status(&cache.Error{Reason: cache.Internal, Text: "the member failed while answering"}))},
			1, "ringmod: the member failed while answering",
		},
		{"no module", []string{"explain", "not a module", "--addr", nobody}, 1, `"not a module" is no module`},
		{"no version", []string{"explain", "example.com/m@../..", "--addr", nobody}, 1, "is no module"},
		{"no target", []string{"explain", "example.com/m/@v/v1.0.0.exe", "--addr", nobody}, 1, "is no module"},
		{"nothing to explain", []string{"explain"}, 2, "name one module"},
		{"too much to explain", []string{"explain", "example.com/a", "example.com/b"}, 2, "name one module"},
		{"no address", []string{"status", "--addr", "8082"}, 2, "host:port"},
		{"no time", []string{"status", "--timeout", "0s"}, 2, "--timeout"},
		{"part of the certificates", []string{"status", "--peer-ca", "ca.pem"}, 2, "go together"},
		{"certificates that are not there", []string{"status", "--peer-ca", "x", "--peer-cert", "x", "--peer-key", "x"}, 2, "--peer-cert"},
		{"an argument", []string{"status", "n1"}, 2, "n1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			exit, stdout, stderr := command(t, test.args...)
			if exit != test.exit || stdout != "" {
				t.Errorf("exit status %d and %q, want %d and nothing", exit, stdout, test.exit)
			}
			if strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, test.want) || len(stderr) > 400 {
				t.Errorf("got %q, want one line with %q", stderr, test.want)
			}
		})
	}
}

func TestAskingWithCertificates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, err := identity.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, data []byte) {
		if err := os.WriteFile(path(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	caCert, _, err := ca.PEM()
	if err != nil {
		t.Fatal(err)
	}
	write("ca.pem", caCert)
	for _, who := range []identity.Identity{{Cluster: "test", Role: identity.Node, ID: "n1"}, {Cluster: "test", Role: identity.Operator, ID: "me"}} {
		cert, key, err := ca.Issue(who)
		if err != nil {
			t.Fatal(err)
		}
		write(who.ID+".pem", cert)
		write(who.ID+"-key.pem", key)
	}
	creds, err := identity.Open(identity.Config{Cert: path("n1.pem"), Key: path("n1-key.pem"), CA: path("ca.pem")})
	if err != nil {
		t.Fatal(err)
	}
	m := &fakeMember{status: &ringmodv1.StatusResponse{MemberId: "n1"}}
	addr := serveMember(t, m, creds.ServerOptions()...)
	certs := []string{"--peer-cert", path("me.pem"), "--peer-key", path("me-key.pem"), "--peer-ca", path("ca.pem")}

	if exit, stdout, stderr := command(t, append([]string{"status", "--json", "--addr", addr}, certs...)...); exit != 0 || !strings.Contains(stdout, `"member_id": "n1"`) {
		t.Errorf("with certificates: exit status %d, %q, %q", exit, stdout, stderr)
	}
	if exit, _, stderr := command(t, "status", "--addr", addr); exit != 1 || !strings.Contains(stderr, "wants --peer-cert") {
		t.Errorf("without certificates: exit status %d, %q", exit, stderr)
	}
	open := serveMember(t, m)
	if exit, _, stderr := command(t, append([]string{"status", "--addr", open}, certs...)...); exit != 1 || strings.Count(stderr, "\n") != 1 {
		t.Errorf("with certificates where none are: exit status %d, %q", exit, stderr)
	}
}

func TestAskingByEnvironment(t *testing.T) {
	addr := serveMember(t, &fakeMember{status: &ringmodv1.StatusResponse{MemberId: "n1"}})
	t.Setenv("RINGMOD_ADDR", addr)
	t.Setenv("RINGMOD_JSON", "true")
	if exit, stdout, stderr := command(t, "status"); exit != 0 || !strings.Contains(stdout, `"member_id": "n1"`) {
		t.Errorf("exit status %d, %q, %q", exit, stdout, stderr)
	}
}

// wantEnd checks how a command ends: with an error that says want, or without one.
func wantEnd(t *testing.T, err error, want string) {
	t.Helper()
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

// wantJSON checks that each line is for programs.
func wantJSON(t *testing.T, out string) {
	t.Helper()
	for line := range strings.Lines(out) {
		if !json.Valid([]byte(line)) {
			t.Errorf("no JSON: %s", line)
		}
	}
}
