package main

import (
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

func TestAuditView(t *testing.T) {
	t.Parallel()
	finding := func(version, now string) *ringmodv1.AuditFinding {
		return &ringmodv1.AuditFinding{
			Target: "example.com/m/@v/" + version + ".info", Module: &ringmodv1.ModuleVersion{Path: "example.com/m", Version: version},
			OldCommit: "0123456789abcdef", NewCommit: now, Source: "proxy\x1b.test", FirstSeenAge: durationpb.New(time.Hour), Uses: math.NaN(),
		}
	}
	closed := finding("v1.1.0", "")
	closed.ClosedAge = durationpb.New(time.Minute)
	done := func(id string, f ...*ringmodv1.AuditFinding) *ringmodv1.AuditResponse {
		return &ringmodv1.AuditResponse{NodeId: id, Findings: f, Done: true, Looked: 3, Total: 3}
	}
	troubled := done("n1")
	troubled.Troubled, troubled.Trouble = 2, "connection refused"
	for _, tt := range []struct {
		name string
		told []*ringmodv1.AuditResponse
		out  []string
		err  string
	}{
		{"nothing", []*ringmodv1.AuditResponse{done("n1")}, []string{"Nothing that is held is known to have changed"}, ""},
		{
			"moved, vanished, restored",
			[]*ringmodv1.AuditResponse{done("n1", finding("v1.0.0", "fedcba9876543210"), closed), done("n2", finding("v1.2.0", ""))},
			[]string{"example.com/m  v1.0.0   moved     0123456789ab  fedcba987654  1h ago", "vanished", "v1.1.0 is upstream again as it is held", "2 versions have changed"},
			"",
		},
		{"found by two", []*ringmodv1.AuditResponse{done("n1", finding("v1.0.0", "")), done("n2", finding("v1.0.0", ""))}, []string{"1 version has changed"}, ""},
		{
			"one that did not answer",
			[]*ringmodv1.AuditResponse{done("n1"), {NodeId: "n2", Done: true, Error: &ringmodv1.ErrorDetail{Text: "no answer"}}},
			nil, "n2 did not answer: no answer",
		},
		{"one that did not finish", []*ringmodv1.AuditResponse{{NodeId: "n1"}}, nil, "n1 did not finish"},
		{"upstream away", []*ringmodv1.AuditResponse{troubled}, nil, "n1 could not ask upstream about 2 versions, the last time because of: connection refused"},
		{"nobody", nil, nil, "there is no node"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, isJSON := range []bool{false, true} {
				var out, progress strings.Builder
				v := &auditView{json: isJSON, out: &out, nodes: map[string]*ringmodv1.AuditResponse{}}
				if !isJSON {
					v.progress = &progress
				}
				for _, r := range tt.told {
					if err := v.show(r); err != nil {
						t.Fatal(err)
					}
				}
				wantEnd(t, v.end(), tt.err)
				if isJSON {
					wantJSON(t, out.String())
					continue
				}
				for _, want := range tt.out {
					if !strings.Contains(out.String(), want) || strings.Contains(out.String(), "\x1b") {
						t.Errorf("printed %q, want %q", &out, want)
					}
				}
			}
		})
	}
}

func TestAuditRefusesNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"m@v1.0.0", "../m", "example.com/", "-x/y"} {
		var out, errOut strings.Builder
		if status := run(t.Context(), []string{"audit", "--", name}, &out, &errOut); status != 2 || !strings.Contains(errOut.String(), "is no module") {
			t.Errorf("%s: status %d, %s", name, status, &errOut)
		}
	}
}

func TestAdvised(t *testing.T) {
	t.Parallel()
	retracted := []*ringmodv1.Retraction{{Low: "v1.0.0", High: "v1.2.0", Rationale: "loses data."}}
	for _, tt := range []struct {
		subject string
		advice  *ringmodv1.Advice
		want    string
	}{
		{"example.com/m/@v/v1.0.0.zip", nil, ""},
		{"example.com/m", &ringmodv1.Advice{}, "Retractions are not known: no node holds the list of its versions"},
		{"example.com/m", &ringmodv1.Advice{Latest: "v1.3.0"}, "Retractions are not known: no node holds the go.mod of v1.3.0, the latest version, or it cannot be read"},
		{"example.com/m", &ringmodv1.Advice{Latest: "v1.3.0", Known: true}, ""},
		{"example.com/m", &ringmodv1.Advice{Latest: "v1.3.0", Known: true, Deprecated: "use v2."}, "DEPRECATED by the go.mod of v1.3.0: use v2"},
		{"example.com/m", &ringmodv1.Advice{Latest: "v1.3.0", Known: true, Retractions: retracted}, "v1.0.0 to v1.2.0 RETRACTED by the go.mod of v1.3.0: loses data"},
		{"example.com/m@v1.1.0", &ringmodv1.Advice{Latest: "v1.3.0", Known: true, Retractions: retracted}, "v1.1.0, with v1.0.0 to v1.2.0, RETRACTED by the go.mod of v1.3.0: loses data"},
	} {
		if got := strings.Join(advised(tt.subject, &ringmodv1.ExplainResponse{Advice: tt.advice}), "|"); got != tt.want {
			t.Errorf("%s, %v: got %q, want %q", tt.subject, tt.advice, got, tt.want)
		}
	}
}
