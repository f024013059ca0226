package main

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

func TestPurgeRequest(t *testing.T) {
	t.Parallel()
	for arg, want := range map[string]string{
		"example.com/M@v1.0.0":          "example.com/M v1.0.0",
		"example.com/M":                 "example.com/M ",
		"/example.com/!m/@v/v1.0.0.zip": "example.com/!m/@v/v1.0.0.zip",
		"http://127.0.0.1:8080/example.com/!m/@v/v1.0.0-rc.1.mod": "example.com/!m/@v/v1.0.0-rc.1.mod",
		"example.com/M/...": "example.com/!m/*",
		"localhost/...":     "localhost/*",
	} {
		req, err := purgeRequest(arg, "why", true)
		if err != nil {
			t.Errorf("%s: %v", arg, err)
			continue
		}
		var got string
		switch s := req.GetSubject().(type) {
		case *ringmodv1.PurgeRequest_Module:
			got = s.Module.GetPath() + " " + s.Module.GetVersion()
		case *ringmodv1.PurgeRequest_Target:
			got = s.Target
		case *ringmodv1.PurgeRequest_Prefix:
			got = s.Prefix + "*"
		}
		if got != want || req.GetText() != "why" || !req.GetLift() {
			t.Errorf("%s: got %q of %v, want %q", arg, got, req, want)
		}
	}
	for arg, want := range map[string]string{
		"":                                   "empty",
		"nodot":                              "missing dot",
		"example.com/m@main":                 "canonical version",
		"example.com/m@v2.0.0":               "should be v0 or v1",
		"example.com//...":                   "slash",
		"/...":                               "slash",
		"sumdb/sum.golang.org/latest":        "checksum database",
		"sumdb/sum.golang.org/...":           "checksum database",
		"http://127.0.0.1/a.b/c/@v/v1.x.zip": "canonical",
	} {
		if req, err := purgeRequest(arg, "", false); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: got %v, %v, want an error with %q", arg, req, err, want)
		}
	}
	if _, err := purgeRequest("example.com/m", strings.Repeat("x", 513), false); err == nil {
		t.Error("a long reason is taken")
	}
}

func TestPrintPurge(t *testing.T) {
	t.Parallel()
	answer := &ringmodv1.PurgeResponse{
		Tombstones: []*ringmodv1.Tombstone{{Name: "a.b/c/@v/", Prefix: true}, {Name: "a.b/c/@latest"}}, Confirmed: []string{"n1", "n2"},
	}
	for _, test := range []struct {
		unconfirmed []string
		lift        bool
		want        []string
	}{
		{nil, false, []string{"a.b/c is purged.", "  a.b/c/@v/*\n", "  a.b/c/@latest\n", "Confirmed by n1 and n2.\n"}},
		{[]string{"n3"}, false, []string{"NOT CONFIRMED by n3.", "before\nit serves"}},
		{nil, true, []string{"a.b/c is no longer purged.", "fetched again"}},
		{[]string{"n3"}, true, []string{"NOT CONFIRMED by n3.", "keep it away"}},
	} {
		answer.Unconfirmed = test.unconfirmed
		var out strings.Builder
		printPurge(&out, "a.b/c", test.lift, answer)
		for _, want := range test.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("lift %v, not by %v: %q is not in\n%s", test.lift, test.unconfirmed, want, &out)
			}
		}
	}
}

func TestExplainPurged(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	printExplain(&out, "a.b/c@v1.0.0", &ringmodv1.ExplainResponse{Objects: []*ringmodv1.Explanation{
		{Target: "a.b/c/@v/v1.0.0.zip", Tombstone: &ringmodv1.Tombstone{Name: "a.b/", Prefix: true, Text: "leaked", Age: durationpb.New(3 * time.Minute)}},
	}})
	if want := "PURGED by an operator 3m ago, with all that begins with a.b/, who says: leaked; held by no node"; !strings.Contains(out.String(), want) {
		t.Errorf("%q is not in\n%s", want, &out)
	}
}
