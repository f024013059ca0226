package admin_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node/admin"
	"github.com/ringmod/ringmod/node/audit"
	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// auditor has found what it holds.
type auditor struct {
	findings []store.Finding
	err      error
	asked    int
}

func (a *auditor) AuditNow(_ context.Context, _ []string, report func(audit.Progress) error) error {
	a.asked++
	return errors.Join(report(audit.Progress{Looked: 2, Total: 5, Troubled: 1, Trouble: "no\nroute"}), a.err)
}

func (a *auditor) List(context.Context, []string) []store.Finding { return a.findings }

func newAudited(t *testing.T) (*cluster, map[string]*auditor) {
	t.Helper()
	gateway := entry("g1", "eu", "")
	gateway.Role = ring.Gateway
	c := newCluster(t, entry("n1", "eu", ""), entry("n2", "eu", ""), gateway)
	auditors := map[string]*auditor{}
	now := time.Now()
	for i, id := range []string{"n1", "n2"} {
		auditors[id] = &auditor{findings: []store.Finding{
			{Name: "example.com/m/@v/v1.0.0.info", Old: "a", New: "b", First: now.Add(-time.Duration(i+1) * time.Hour), Looked: now.Add(-time.Duration(i+1) * time.Minute)},
			{Name: "example.com/" + id + "/@v/v1.0.0.info", Old: "a", First: now, Looked: now, Closed: now},
		}}
		c.auditors[id] = auditors[id]
	}
	for _, e := range c.entries {
		c.serve(e)
	}
	return c, auditors
}

func askAudit(t *testing.T, c *cluster, via string, req *ringmodv1.AuditRequest) (last map[string]*ringmodv1.AuditResponse, findings []*ringmodv1.AuditFinding, err error) {
	t.Helper()
	stream, err := c.operator(via).Audit(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	last = map[string]*ringmodv1.AuditResponse{}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return last, findings, nil
		}
		if err != nil {
			return last, findings, err
		}
		if last[r.GetNodeId()].GetDone() {
			t.Errorf("%s goes on after its end", r.GetNodeId())
		}
		last[r.GetNodeId()] = r
		findings = append(findings, r.GetFindings()...)
	}
}

func TestAuditAsksAllNodes(t *testing.T) {
	t.Parallel()
	for _, via := range []string{"n1", "g1"} {
		c, auditors := newAudited(t)
		for id, uses := range map[string]float64{"n1": 2, "n2": 3} {
			c.hold(id, &ringmodv1.Holding{
				Target: "example.com/m/@v/v1.0.0.info", Copy: &ringmodv1.Copy{Target: "example.com/m/@v/v1.0.0.info", UsedAge: seconds(int(uses)), Uses: uses},
			})
		}
		last, findings, err := askAudit(t, c, via, &ringmodv1.AuditRequest{Now: true})
		if err != nil || len(last) != 2 || len(findings) != 4 {
			t.Fatalf("via %s: %v, %v, %v, want two nodes with two findings each", via, last, findings, err)
		}
		for id, r := range last {
			if !r.GetDone() || r.GetError() != nil || r.GetLooked() != 2 || r.GetTotal() != 5 || r.GetTroubled() != 1 || r.GetTrouble() != "no route" || auditors[id].asked != 1 {
				t.Errorf("via %s, %s: %v", via, id, r)
			}
		}
		merged := admin.MergeFindings(findings)
		if len(merged) != 3 {
			t.Fatalf("merged: %v", merged)
		}
		m := merged[0]
		if m.GetUses() != 5 || m.GetUsedAge().AsDuration() != 2*time.Second || m.GetFirstSeenAge().AsDuration() < 2*time.Hour || m.GetLookedAge().AsDuration() > 90*time.Second {
			t.Errorf("via %s: of two that found it: %v", via, m)
		}
	}
}

func TestAuditNamesWhoDoesNotAnswer(t *testing.T) {
	t.Parallel()
	for _, m := range []mood{dead, unknown} {
		c, _ := newAudited(t)
		c.moods["n2"] = m
		last, findings, err := askAudit(t, c, "n1", &ringmodv1.AuditRequest{})
		if err != nil || len(findings) != 2 || last["n1"].GetError() != nil || last["n2"].GetError() == nil || !last["n2"].GetDone() {
			t.Errorf("mood %v: %v, %v, want n1's and that n2 did not answer", m, last, err)
		}
	}
	c, auditors := newAudited(t)
	auditors["n2"].err = audit.ErrBusy
	last, findings, err := askAudit(t, c, "n1", &ringmodv1.AuditRequest{Now: true})
	if err != nil || len(findings) != 2 || last["n2"].GetError().GetReason() != ringmodv1.Reason_REASON_BUSY || last["n2"].GetTotal() != 5 {
		t.Errorf("one that is busy: %v, %v", last, err)
	}
}

func TestAuditRefuses(t *testing.T) {
	t.Parallel()
	c, _ := newAudited(t)
	for via, req := range map[string]*ringmodv1.AuditRequest{
		"n1": {Modules: []string{"../m"}},
		"n2": {Modules: slices.Repeat([]string{"example.com/m"}, 1001)},
		"g1": {Local: true},
	} {
		if _, _, err := askAudit(t, c, via, req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", via, err)
		}
	}
}

// filler is the disk of the member that is asked.
type filler map[string]string

func (f filler) Get(_ context.Context, req cache.Request) (*cache.Object, error) {
	text, ok := f[req.Target.String()]
	if !ok || req.Mode != cache.Peek {
		return nil, &cache.Error{Reason: cache.NotCached}
	}
	return &cache.Object{Size: int64(len(text)), Body: io.NopCloser(strings.NewReader(text))}, nil
}

func TestExplainTellsAdvice(t *testing.T) {
	t.Parallel()
	const (
		list = "example.com/m/@v/list"
		mod  = "example.com/m/@v/v1.3.0.mod"
	)
	files := filler{
		list: "v1.0.0\nv1.1.0\nv1.3.0\nv2.0.0-rc.1\nv1.2.0\n",
		mod:  "// Deprecated: use v2.\nmodule example.com/m\n\nretract (\n\t[v1.0.0, v1.1.0] // loses data\n\tv1.3.0\n)\n",
	}
	synctest.Test(t, func(t *testing.T) {
		c, _ := newAudited(t)
		c.filler = files
		for _, e := range c.entries {
			c.serve(e)
		}
		for name := range files {
			c.hold("n1", &ringmodv1.Holding{Target: name, Copy: &ringmodv1.Copy{Target: name}})
		}
		for version, want := range map[string]int{"": 2, "v1.1.0": 1, "v1.2.0": 0} {
			r, err := c.operator("n1").Explain(t.Context(), aboutModule("example.com/m", version))
			if err != nil {
				t.Fatal(err)
			}
			a := r.GetAdvice()
			if a.GetLatest() != "v1.3.0" || !a.GetKnown() || a.GetDeprecated() != "use v2." || len(a.GetRetractions()) != want {
				t.Errorf("%q: %v, want %d retractions", version, a, want)
			}
			if found := len(r.GetFindings()); (found == 1) != (version == "") {
				t.Errorf("%q: %d findings of example.com/m", version, found)
			}
		}
		if r, err := c.operator("n1").Explain(t.Context(), aboutModule("example.com/other", "v1.0.0")); err != nil || r.GetAdvice().GetKnown() || r.GetAdvice().GetLatest() != "" {
			t.Errorf("of what nobody holds: %v, %v", r.GetAdvice(), err)
		}
	})
}
