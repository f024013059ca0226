package admin_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/admin"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

func aboutTarget(name string) *ringmodv1.ExplainRequest {
	return &ringmodv1.ExplainRequest{Subject: &ringmodv1.ExplainRequest_Target{Target: name}}
}

func aboutModule(path, version string) *ringmodv1.ExplainRequest {
	return &ringmodv1.ExplainRequest{Subject: &ringmodv1.ExplainRequest_Module{Module: &ringmodv1.ModuleVersion{Path: path, Version: version}}}
}

const zip = "example.com/m/@v/v1.2.3.zip"

func partition(t *testing.T, name string) ring.Partition {
	t.Helper()
	parsed, err := target.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return ring.OfTarget(parsed)
}

// ranked returns the ids of a region's nodes in the order of their ranks.
func ranked(t *testing.T, v *ring.View, region, name string) []string {
	t.Helper()
	var ids []string
	for _, i := range v.Next().Ranks(region, partition(t, name)) {
		ids = append(ids, v.Member(i).ID)
	}
	return ids
}

// place is a rank as a test wants it: region, rank, id, what it is and has.
func place(r *ringmodv1.Rank) string {
	words := []string{r.GetRegion(), "-", r.GetNodeId()}
	if r.Rank != nil {
		words[1] = fmt.Sprint(r.GetRank())
	}
	for word, is := range map[string]bool{
		"1 down": !r.GetUp(), "2 coordinator": r.GetCoordinator(), "3 silent": r.GetHolding() == nil, "4 copy": r.GetHolding().GetCopy() != nil,
		"5 failed": r.GetLastError() != nil, "6 negative": r.GetHolding().GetNegative() != nil,
	} {
		if is {
			words = append(words, word)
		}
	}
	slices.Sort(words[3:])
	return strings.Join(words, " ")
}

func places(x *ringmodv1.Explanation) []string {
	var all []string
	for _, r := range x.GetRanks() {
		all = append(all, place(r))
	}
	return all
}

func checkPlaces(t *testing.T, x *ringmodv1.Explanation, want ...string) {
	t.Helper()
	if got := places(x); !slices.Equal(got, want) {
		t.Errorf("%s:\ngot  %q\nwant %q", x.GetTarget(), got, want)
	}
}

// explainOne asks about one target.
func explainOne(t *testing.T, c *cluster, asked, name string) *ringmodv1.Explanation {
	t.Helper()
	resp, err := c.operator(asked).Explain(t.Context(), aboutTarget(name))
	if err != nil || len(resp.GetObjects()) != 1 {
		t.Fatalf("got %v, %v, want one object", resp, err)
	}
	if resp.GetViewDigest() != c.view.Digest() || resp.GetViewSeq() != c.view.Seq() {
		t.Errorf("got view %x of %d, want %x of %d", resp.GetViewDigest(), resp.GetViewSeq(), c.view.Digest(), c.view.Seq())
	}
	return resp.GetObjects()[0]
}

func fiveNodes(t *testing.T) *cluster {
	t.Helper()
	gateway := entry("g1", "ap", "")
	gateway.Role = ring.Gateway
	return newCluster(t, gateway, entry("a", "eu", ""), entry("b", "eu", ""), entry("c", "eu", ""), entry("d", "eu", ""), entry("e", "us", ""))
}

func TestExplainTellsWhoHasWhat(t *testing.T) {
	t.Parallel()
	for _, asked := range []string{"a", "e", "g1"} {
		synctest.Test(t, func(t *testing.T) {
			c := fiveNodes(t)
			eu := ranked(t, c.view, "eu", zip)
			first, second, last := eu[0], eu[1], eu[3] // the one before last has nothing to say
			failure := &ringmodv1.ErrorDetail{Reason: ringmodv1.Reason_REASON_UPSTREAM_BROKEN, Source: "mirror.example.com", Text: "500"}
			c.hold(second, &ringmodv1.Holding{Target: zip, Copy: &ringmodv1.Copy{Target: zip, Size: 7}})
			c.hold(last, &ringmodv1.Holding{Target: zip, Copy: &ringmodv1.Copy{Target: zip, Size: 7}})
			c.hold(first, &ringmodv1.Holding{Target: zip, LastError: failure, LastErrorAge: seconds(50)})
			c.hold("e", &ringmodv1.Holding{Target: zip, Negative: &ringmodv1.Negative{Age: seconds(3)}})
			x := explainOne(t, c, asked, zip)
			checkPlaces(
				t, x, "eu 0 "+first+" 2 coordinator 5 failed", "eu 1 "+second+" 4 copy", "eu - "+last+" 4 copy",
				"us 0 e 2 coordinator 6 negative",
			)
			p := partition(t, zip)
			if x.GetTarget() != zip || x.GetPartition() != uint32(p) || x.GetHomeRegion() != c.view.Next().Home(p) {
				t.Errorf("got %s in partition %d at home in %s", x.GetTarget(), x.GetPartition(), x.GetHomeRegion())
			}
			r := x.GetRanks()[0]
			if !proto.Equal(r.GetLastError(), failure) || r.GetLastErrorAge().AsDuration() != 50*time.Second || r.GetHolding().GetLastError() != nil {
				t.Errorf("got %v, want the failure once", r)
			}
		})
	}
}

func TestExplainInTrouble(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fiveNodes(t)
		eu := ranked(t, c.view, "eu", zip)
		asked := eu[3]
		c.moods[eu[0]], c.moods[eu[1]], c.moods["e"] = dead, hanging, lying
		c.down = []string{eu[0], eu[1], "e"}
		start := time.Now()
		x := explainOne(t, c, asked, zip)
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("took %v, want at most 2 s", took)
		}
		// The first spare rank stands in for the replicas.
		checkPlaces(
			t, x, "eu 0 "+eu[0]+" 1 down 3 silent", "eu 1 "+eu[1]+" 1 down 3 silent", "eu - "+eu[2]+" 2 coordinator",
			"us 0 e 1 down 3 silent",
		)
		if got := x.GetHomeRegion(); got != "eu" {
			t.Errorf("home: got %q, want the one region that has a node up", got)
		}
		c.down = []string{eu[0], eu[1], eu[2], "e"}
		if x = explainOne(t, c, asked, zip); x.GetRanks()[2].GetNodeId() != asked || !x.GetRanks()[2].GetCoordinator() {
			t.Errorf("got %q, want %s to coordinate", places(x), asked)
		}
		c.down = append(c.down, asked)
		if x = explainOne(t, c, "g1", zip); x.GetHomeRegion() != "" {
			t.Errorf("home: got %q, want none", x.GetHomeRegion())
		}
	})
}

// TestExplainWhileNodesComeAndGo: who joins will own and does not coordinate yet,
// who leaves is listed for what it still holds.
func TestExplainWhileNodesComeAndGo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		joining, leaving := entry("b", "eu", ""), entry("c", "eu", "")
		joining.State, leaving.State = ring.Joining, ring.Leaving
		c := newCluster(t, entry("a", "eu", ""), joining, leaving)
		c.hold("c", &ringmodv1.Holding{Target: zip, Copy: &ringmodv1.Copy{Target: zip}})
		x := explainOne(t, c, "a", zip)
		want := []string{"eu 0 a 2 coordinator", "eu 1 b", "eu - c 4 copy"}
		if ranked(t, c.view, "eu", zip)[0] == "b" {
			want = []string{"eu 0 b", "eu 1 a 2 coordinator", "eu - c 4 copy"}
		}
		checkPlaces(t, x, want...)
		for _, r := range x.GetRanks() {
			if want := map[string]ringmodv1.MemberState{"a": 2, "b": 1, "c": 3}[r.GetNodeId()]; r.GetState() != want {
				t.Errorf("%s: got %v, want %v", r.GetNodeId(), r.GetState(), want)
			}
		}
		c.down = []string{"a"}
		if x = explainOne(t, c, "a", zip); !slices.ContainsFunc(x.GetRanks(), func(r *ringmodv1.Rank) bool { return r.GetCoordinator() && r.GetNodeId() == "a" }) {
			t.Errorf("got %q: who answers is up, whatever gossip says", places(x))
		}
		if x = explainOne(t, c, "b", zip); !slices.ContainsFunc(x.GetRanks(), func(r *ringmodv1.Rank) bool { return r.GetCoordinator() && r.GetNodeId() == "c" }) {
			t.Errorf("got %q, want the leaving node to coordinate when no active one is up", places(x))
		}
	})
}

func TestUnreadableDiskHoldsNothingBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, entry("a", "eu", ""), entry("b", "eu", ""))
		for _, r := range explainOne(t, c, "a", "example.com/unreadable/@latest").GetRanks() {
			if r.GetHolding() != nil {
				t.Errorf("got %v of a node that cannot read its disk, want nothing", r)
			}
		}
	})
}

func TestSubjects(t *testing.T) {
	t.Parallel()
	const azure, escaped = "github.com/Azure/azure-sdk-for-go", "github.com/!azure/azure-sdk-for-go"
	tests := []struct {
		path, version string
		want          []string // nil: refused
	}{
		{azure, "", []string{"/@v/list", "/@latest"}},
		{azure, "latest", []string{"/@latest"}},
		{azure, "v68.0.0+incompatible", []string{"/@v/v68.0.0+incompatible.info", "/@v/v68.0.0+incompatible.mod", "/@v/v68.0.0+incompatible.zip"}},
		{azure, "main", []string{"/@v/main.info"}},
		{azure, "Main", []string{"/@v/!main.info"}},
		{azure, "v1", []string{"/@v/v1.info"}},
		{azure, "v2.0.0", []string{"/@v/v2.0.0.info"}}, // fits no path without /v2
		{azure, "../../x", nil},
		{azure, "a\x00b", nil},
		{"", "", nil},
		{"nodot", "", nil},
		{"not a module", "v1.0.0", nil},
		{"example.com/" + strings.Repeat("x", 5000), "", nil},
	}
	for _, test := range tests {
		targets, err := admin.Targets(module.Version{Path: test.path, Version: test.version})
		if (err != nil) != (test.want == nil) {
			t.Errorf("%.40s@%s: got %v, %v, want %q", test.path, test.version, targets, err, test.want)
		}
		if err != nil {
			continue
		}
		var got []string
		for _, each := range targets {
			got = append(got, strings.TrimPrefix(each.String(), escaped))
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s@%s: got %q, want %q", test.path, test.version, got, test.want)
		}
	}
}

func TestBadSubjects(t *testing.T) {
	t.Parallel()
	c := newCluster(t, entry("a", "eu", ""))
	for _, req := range []*ringmodv1.ExplainRequest{
		nil,
		{},
		aboutTarget(""), aboutTarget("../../etc/passwd"), aboutTarget("example.com/m/@v/v1.0.0.exe"), aboutTarget(strings.Repeat("x/", 5000)),
		aboutModule("", ""), aboutModule("not a module", "v1.0.0"), aboutModule("example.com/m", "v1.0.0/../.."),
		{Subject: &ringmodv1.ExplainRequest_Module{}},
	} {
		resp, err := c.operator("a").Explain(t.Context(), req)
		if status.Code(err) != codes.InvalidArgument || cache.ReasonOf(wire.FromStatus(err, "a")) != cache.Malformed {
			t.Errorf("%.100v: got %v, %v, want that it is malformed", req, resp, err)
		}
	}
}

// FuzzExplain sends what anybody may send.
func FuzzExplain(f *testing.F) {
	for _, req := range []*ringmodv1.ExplainRequest{
		{},
		aboutTarget(zip), aboutTarget("sumdb/sum.golang.org/tile/8/0/x001/234"), aboutTarget("sumdb//lookup/@"), aboutTarget("/@v/.info"),
		aboutModule("example.com/m", "v1.2.3"), aboutModule("example.com/m", "latest"), aboutModule("example.com/M", "Main"), aboutModule("", "."),
	} {
		b, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	c := newCluster(f, entry("a", "eu", ""), entry("b", "us", ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		var req ringmodv1.ExplainRequest
		if proto.Unmarshal(b, &req) != nil {
			return
		}
		resp, err := c.operator("a").Explain(t.Context(), &req)
		if code := status.Code(err); code != codes.OK && code != codes.InvalidArgument {
			t.Fatalf("got %v, %v, want an answer or a refusal", resp, err)
		}
		if err == nil && len(resp.GetObjects()) == 0 {
			t.Error("got no object and no error")
		}
		for _, x := range resp.GetObjects() {
			parsed, err := target.Parse(x.GetTarget())
			if err != nil || x.GetPartition() != uint32(ring.OfTarget(parsed)) || len(x.GetRanks()) != 2 {
				t.Errorf("got %v, %v, want a target with a rank in each region", x, err)
			}
		}
	})
}
