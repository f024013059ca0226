package admin_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/node/admin"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// troubled is a cluster in which most things go wrong: two regions, one node each
// that is dead, hanging, lying, out of reach and gone, and two gateways.
func troubled(t *testing.T) *cluster {
	t.Helper()
	gone := entry("n9", "us", "")
	gone.State = ring.Forgotten
	gateway, deaf := entry("g1", "eu", "a"), entry("g2", "us", "")
	gateway.Role, deaf.Role, deaf.Addr = ring.Gateway, ring.Gateway, ""
	c := newCluster(
		t, entry("n1", "eu", "b"), entry("n2", "eu", "a"), entry("n3", "eu", "c"), entry("n4", "us", ""),
		entry("n5", "us", ""), entry("n6", "us", ""), gone, gateway, deaf,
	)
	c.moods = map[string]mood{"n3": dead, "n4": hanging, "n5": lying, "n6": unknown}
	c.down = []string{"n3", "n9"}
	return c
}

// line is a member as a test wants it: id, up and down, whose report.
func line(m *ringmodv1.MemberStatus) string {
	return strings.Join(strings.Fields(fmt.Sprint(m.GetMember().GetId(), " ", m.GetUp(), " ", m.GetReport().GetVersion())), " ")
}

func TestStatus(t *testing.T) {
	t.Parallel()
	for _, asked := range []string{"n1", "g1"} {
		synctest.Test(t, func(t *testing.T) {
			c := troubled(t)
			start := time.Now()
			resp, err := c.operator(asked).Status(t.Context(), &ringmodv1.StatusRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("took %v, want at most 2 s", took)
			}
			var got []string
			for _, m := range resp.GetMembers() {
				got = append(got, line(m))
				if m.GetSince().AsDuration() < time.Minute || m.GetRtt().AsDuration() != 2*time.Millisecond {
					t.Errorf("%s: since %v, rtt %v, want a minute and 2 ms", line(m), m.GetSince(), m.GetRtt())
				}
			}
			want := []string{"g1 true v1-g1", "n2 true v1-n2", "n1 true v1-n1", "n3 false", "g2 true", "n4 true", "n5 true", "n6 true", "n9 false"}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("members:\ngot  %q\nwant %q", got, want)
			}
			r := resp.GetMembers()[1].GetReport()
			if r.GetFills() != 2 || r.GetViewDigest() != c.view.Digest() || r.GetViewSeq() != 1 || r.GetUptime() == nil {
				t.Errorf("report: got %v", r)
			}
			if resp.GetMemberId() != asked || resp.GetView().GetViewDigest() != c.view.Digest() || len(resp.GetView().GetMembers()) != 9 {
				t.Errorf("got member %q with view %v", resp.GetMemberId(), resp.GetView())
			}
		})
	}
}

func TestStatusOfRegions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := troubled(t)
		c.down = append(c.down, "n4", "n5")
		resp, err := c.operator("n1").Status(t.Context(), &ringmodv1.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		// As the field comments say it, partition by partition.
		below, none := map[string]uint32{}, map[string]uint32{}
		for p := range ring.Partition(ring.Partitions) {
			for _, region := range []string{"eu", "us"} {
				up := 0
				for _, i := range c.view.Current().Replicas(region, p) {
					if id := c.view.Member(i).ID; id != "n3" && id != "n4" && id != "n5" {
						up++
					}
				}
				if up < 2 {
					below[region]++
				}
				if up == 0 {
					none[region]++
				}
			}
		}
		want := fmt.Sprint([]any{"eu", 3, 2, below["eu"], 0, "us", 3, 1, below["us"], none["us"]})
		var got []any
		for _, r := range resp.GetRegions() {
			got = append(got, r.GetRegion(), r.GetNodes(), r.GetNodesUp(), r.GetPartitionsBelowReplicas(), r.GetPartitionsUnavailable())
		}
		if fmt.Sprint(got) != want || below["eu"] == 0 || none["us"] == 0 {
			t.Errorf("regions: got %v, want %v", got, want)
		}
	})
}

func TestLocalStatusAsksNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := troubled(t)
		start := time.Now()
		resp, err := c.operator("n2").Status(t.Context(), &ringmodv1.StatusRequest{Local: true})
		if err != nil || len(resp.GetMembers()) != 1 || line(resp.GetMembers()[0]) != "n2 true v1-n2" {
			t.Errorf("got %v, %v, want n2 alone", resp, err)
		}
		if resp.GetView() != nil || resp.GetRegions() != nil || time.Since(start) != 0 {
			t.Errorf("got %v after %v, want neither view nor regions, at once", resp, time.Since(start))
		}
	})
}

// TestBeforeTheFirstView is a gateway that has not met anybody.
func TestBeforeTheFirstView(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		gateway := entry("g1", "eu", "")
		gateway.Role = ring.Gateway
		c := newCluster(t, gateway)
		c.view = nil
		resp, err := c.operator("g1").Explain(t.Context(), &ringmodv1.ExplainRequest{Subject: &ringmodv1.ExplainRequest_Target{Target: "example.com/m/@latest"}})
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "knows no cluster yet") {
			t.Errorf("Explain: got %v, %v, want that there is no cluster yet", resp, err)
		}
		if got := admin.Regions(nil, nil); got != nil {
			t.Errorf("Regions of no view: got %v", got)
		}
	})
}
