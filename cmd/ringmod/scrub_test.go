package main

import (
	"strings"
	"testing"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

func TestScrubView(t *testing.T) {
	t.Parallel()
	bad := func(repaired bool) []*ringmodv1.ScrubFinding {
		return []*ringmodv1.ScrubFinding{{Target: "example.com/m/@v/v1.0.0.zip", Text: "chunk 3: wrong\x1b checksum", Repaired: repaired}}
	}
	for _, tt := range []struct {
		name string
		told []*ringmodv1.ScrubResponse
		out  string
		err  string
	}{
		{
			"all is well",
			[]*ringmodv1.ScrubResponse{{NodeId: "n1", ObjectsChecked: 5, ObjectsTotal: 5, BytesChecked: 2048, Done: true}},
			"0 bad copies found, 0 repaired.", "",
		},
		{
			"repaired",
			[]*ringmodv1.ScrubResponse{{NodeId: "n1", Findings: bad(true)}, {NodeId: "n1", Done: true}},
			"n1: example.com/m/@v/v1.0.0.zip: repaired: chunk 3: wrong checksum", "",
		},
		{
			"not repaired",
			[]*ringmodv1.ScrubResponse{{NodeId: "n1", Findings: bad(false)}, {NodeId: "n1", Findings: bad(true), Done: true}},
			"2 bad copies found, 1 repaired.", "1 bad copy was not repaired",
		},
		{
			"a node that could not",
			[]*ringmodv1.ScrubResponse{
				{NodeId: "n1", Done: true}, {NodeId: "n2", Done: true, Error: &ringmodv1.ErrorDetail{Text: "a scrub runs here already"}},
			},
			"0 bad copies found", "n2 did not finish: a scrub runs here already",
		},
		{"a stream that ends early", []*ringmodv1.ScrubResponse{{NodeId: "n1", ObjectsChecked: 1}}, "n1", "n1 did not finish"},
		{"nobody", nil, "", "no node is up"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, isJSON := range []bool{false, true} {
				var out, progress strings.Builder
				v := &scrubView{json: isJSON, out: &out, nodes: map[string]*ringmodv1.ScrubResponse{}}
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
				} else if !strings.Contains(out.String(), tt.out) || strings.Contains(out.String(), "\x1b") {
					t.Errorf("printed %q, want %q", &out, tt.out)
				}
			}
		})
	}
}

func TestScrubRefusesARate(t *testing.T) {
	t.Parallel()
	for _, rate := range []string{"fast", "50%", "10"} {
		var out, errOut strings.Builder
		if status := run(t.Context(), []string{"scrub", "--rate", rate}, &out, &errOut); status != 2 || !strings.Contains(errOut.String(), "--rate") {
			t.Errorf("--rate %s: status %d, %s", rate, status, &errOut)
		}
	}
}
