package admin_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/purge"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// undertaker notes what it is asked for.
type undertaker struct {
	names []purge.Name
	lift  bool
	text  string
}

func (u *undertaker) Purge(_ context.Context, names []purge.Name, lift bool, text string) (*ringmodv1.PurgeResponse, error) {
	u.names, u.lift, u.text = names, lift, text
	return &ringmodv1.PurgeResponse{Confirmed: []string{"n1"}}, nil
}

func (u *undertaker) Explain(name string) *ringmodv1.Tombstone {
	if strings.HasSuffix(name, ".zip") {
		return &ringmodv1.Tombstone{Name: name, Epoch: 1}
	}
	return nil
}

func moduleRequest(path, version string) *ringmodv1.PurgeRequest {
	return &ringmodv1.PurgeRequest{Subject: &ringmodv1.PurgeRequest_Module{Module: &ringmodv1.ModuleVersion{Path: path, Version: version}}}
}

func TestPurge(t *testing.T) {
	t.Parallel()
	u := &undertaker{}
	c := newCluster(t)
	c.purger = u
	c.serve(entry("n1", "eu", ""))
	for _, test := range []struct {
		name string
		req  *ringmodv1.PurgeRequest
		want string // names, prefixes with a star; "" wants an error
	}{
		{"version", moduleRequest("example.com/M", "v1.0.0"), "example.com/!m/@v/v1.0.0.info example.com/!m/@v/v1.0.0.mod example.com/!m/@v/v1.0.0.zip"},
		{"module", moduleRequest("example.com/M", ""), "example.com/!m/@v/* example.com/!m/@latest"},
		{"target", &ringmodv1.PurgeRequest{Subject: &ringmodv1.PurgeRequest_Target{Target: zip}, Lift: true, Text: "why"}, zip},
		{"prefix", &ringmodv1.PurgeRequest{Subject: &ringmodv1.PurgeRequest_Prefix{Prefix: "example.com/"}}, "example.com/*"},
		{"nothing", &ringmodv1.PurgeRequest{}, ""},
		{"branch", moduleRequest("example.com/m", "main"), ""},
		{"bad path", moduleRequest("nodot", "v1.0.0"), ""},
		{"no target", &ringmodv1.PurgeRequest{Subject: &ringmodv1.PurgeRequest_Target{Target: "x"}}, ""},
		{"checksum database", &ringmodv1.PurgeRequest{Subject: &ringmodv1.PurgeRequest_Prefix{Prefix: "sumdb/"}}, ""},
		{"everything", &ringmodv1.PurgeRequest{Subject: &ringmodv1.PurgeRequest_Prefix{}}, ""},
		{"long reason", &ringmodv1.PurgeRequest{Subject: &ringmodv1.PurgeRequest_Target{Target: zip}, Text: strings.Repeat("x", 513)}, ""},
	} {
		*u = undertaker{}
		resp, err := c.operator("n1").Purge(t.Context(), test.req)
		if test.want == "" {
			if cache.ReasonOf(wire.FromStatus(err, "")) != cache.Malformed || u.names != nil {
				t.Errorf("%s: got %v, %v", test.name, u.names, err)
			}
			continue
		}
		var got []string
		for _, n := range u.names {
			name := n.Name
			if n.Prefix {
				name += "*"
			}
			got = append(got, name)
		}
		if err != nil || strings.Join(got, " ") != test.want || u.lift != test.req.GetLift() || u.text != test.req.GetText() || len(resp.GetConfirmed()) != 1 {
			t.Errorf("%s: got %v, %v, %q, %v", test.name, got, u.lift, u.text, err)
		}
	}
}

func TestPurgeWhereNothingIs(t *testing.T) {
	t.Parallel()
	c := newCluster(t, entry("n1", "eu", ""))
	if _, err := c.operator("n1").Purge(t.Context(), moduleRequest("example.com/m", "")); status.Code(err) != codes.Unimplemented {
		t.Errorf("got %v, want Unimplemented", err)
	}
}

func TestExplainShowsTombstone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, entry("n1", "eu", ""))
	c.purger = &undertaker{}
	c.serve(entry("n2", "eu", ""))
	resp, err := c.operator("n2").Explain(t.Context(), aboutModule("example.com/m", "v1.2.3"))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range resp.GetObjects() {
		if got := x.GetTombstone() != nil; got != (x.GetTarget() == zip) {
			t.Errorf("%s is purged: %v", x.GetTarget(), got)
		}
	}
}
