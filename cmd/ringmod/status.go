package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

func statusCommand() *cobra.Command {
	a := &asker{}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the members of a cluster and how they do",
		Long: "status asks one member for all: who is in and up, how full the nodes are, whether all agree\n" +
			"on who is in, and how many partitions have fewer copies in reach than they should. The last\n" +
			"line says whether all is well.",
		Example: "  ringmod status\n" +
			"  ringmod status --addr n1.example.com:8082 --peer-cert operator-me.pem --peer-key operator-me-key.pem --peer-ca ca.pem\n" +
			"  ringmod status --json | jq '.regions[] | select(.partitions_below_replicas > 0)'",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(cmd.Context(), a, cmd.OutOrStdout(), func(ctx context.Context, client ringmodv1.AdminServiceClient) (*ringmodv1.StatusResponse, error) {
				return client.Status(ctx, &ringmodv1.StatusRequest{})
			}, printStatus)
		},
	}
	a.bind(cmd)
	return cmd
}

// printStatus shows a status to people.
func printStatus(out io.Writer, r *ringmodv1.StatusResponse) {
	v := r.GetView()
	fmt.Fprintf(out, "cluster %s as %s sees it, view %s\n", words(v.GetCluster()), words(r.GetMemberId()), viewOf(v.GetViewDigest(), v.GetViewSeq()))
	for _, t := range []*table{membersOf(r), nodesOf(r), regionsOf(r), hostsOf(r)} {
		if t.rows > 0 {
			fmt.Fprintln(out)
			t.print(out, "")
		}
	}
	fmt.Fprintf(out, "\n%s\n", verdict(r))
	for _, m := range r.GetMembers() {
		if trouble := m.GetReport().GetDiskTrouble(); trouble != "" {
			fmt.Fprintf(out, "%s: %s.\n", words(m.GetMember().GetId()), words(trouble))
		}
		for _, db := range m.GetReport().GetChecksumDatabases() {
			if db.GetTrouble() != "" {
				fmt.Fprintf(out, "%s: checksum database %s: refused %s ago: %s (%s).\n", words(m.GetMember().GetId()), words(db.GetName()),
					age(db.GetTroubleAge()), words(db.GetText()), words(db.GetTrouble()))
			}
		}
	}
}

func membersOf(r *ringmodv1.StatusResponse) *table {
	t := newTable("MEMBER", "ROLE", "REGION", "ZONE", "STATE", "UP", "RTT", "VERSION", "VIEW")
	for _, m := range r.GetMembers() {
		e := m.GetMember()
		state := state(e.GetState()) + moved(m)
		if e.GetReadOnly() {
			state += ", read-only"
		}
		up := "up "
		if !m.GetUp() {
			up = "DOWN "
		}
		t.row(e.GetId(), role(e.GetRole()), e.GetRegion(), e.GetZone(), state, up+age(m.GetSince()), roundTrip(m.GetRtt()), release(m), opinion(r, m))
	}
	return t
}

// moved shows how far a member is that joins or leaves.
func moved(m *ringmodv1.MemberStatus) string {
	r := m.GetReport()
	if r == nil || r.MovedPerMille == nil {
		return ""
	}
	return fmt.Sprintf(" %d%%", min(r.GetMovedPerMille(), 1000)/10)
}

// release shows the version of a member. Of a long one, which has no tag, the
// commit is what tells it from others.
func release(m *ringmodv1.MemberStatus) string {
	const most = 16
	v := cmp.Or(m.GetReport().GetVersion(), m.GetVersion())
	if isSilent(m) {
		return "no answer"
	}
	if i := strings.LastIndexByte(v, '-'); len(v) > most && i >= 0 {
		v = v[i+1:]
	}
	return v
}

// opinion shows the view of a member and whether it is another one.
func opinion(r *ringmodv1.StatusResponse, m *ringmodv1.MemberStatus) string {
	report := m.GetReport()
	if report == nil {
		return none
	}
	text := viewOf(report.GetViewDigest(), report.GetViewSeq())
	if differs(r, m) {
		text += " DIFFERS"
	}
	return text
}

func viewOf(digest, seq uint64) string {
	if seq == 0 {
		return "none"
	}
	return fmt.Sprintf("%08x", digest>>32)
}

func nodesOf(r *ringmodv1.StatusResponse) *table {
	titles := []string{"NODE", "DISK USED", "LIMIT", "FREE", "OBJECTS", "STREAMS", "FILLS", "QUARANTINED", "UPTIME"}
	behind := slices.ContainsFunc(r.GetMembers(), isBehind)
	if behind {
		titles = append(titles, "HINTS", "COPIES LAG")
	}
	lacks := slices.ContainsFunc(r.GetMembers(), isLacking)
	if lacks {
		titles = append(titles, "LACKS", "PARTITIONS")
	}
	t := newTable(titles...)
	for _, m := range r.GetMembers() {
		report := m.GetReport()
		if m.GetMember().GetRole() != ringmodv1.Role_ROLE_NODE || report == nil {
			continue
		}
		limit := none
		if report.GetDiskLimit() > 0 {
			limit = size(report.GetDiskLimit())
		}
		cells := []string{
			m.GetMember().GetId(), size(report.GetDiskUsed()), limit, size(report.GetDiskFree()), fmt.Sprint(report.GetObjects()),
			fmt.Sprint(report.GetStreams()), fmt.Sprint(report.GetFills()), fmt.Sprint(report.GetQuarantined()), age(report.GetUptime()),
		}
		if behind {
			cells = append(cells, fmt.Sprint(report.GetHints()), age(report.GetReplicationLag()))
		}
		if lacks {
			cells = append(cells, size(report.GetBytesLacking()), fmt.Sprint(report.GetPartitionsLacking()))
		}
		t.row(cells...)
	}
	return t
}

// isBehind tells of a node that has stored what others are still to get.
func isBehind(m *ringmodv1.MemberStatus) bool {
	return m.GetReport().GetHints() > 0 || m.GetReport().GetReplicationLag() != nil
}

// isLacking tells of a node that is still to get what others hold.
func isLacking(m *ringmodv1.MemberStatus) bool { return m.GetReport().GetPartitionsLacking() > 0 }

func regionsOf(r *ringmodv1.StatusResponse) *table {
	t := newTable("REGION", "NODES", "UP", "PARTITIONS BELOW REPLICAS", "PARTITIONS UNAVAILABLE")
	for _, g := range r.GetRegions() {
		t.row(g.GetRegion(), fmt.Sprint(g.GetNodes()), fmt.Sprint(g.GetNodesUp()), fmt.Sprint(g.GetPartitionsBelowReplicas()), fmt.Sprint(g.GetPartitionsUnavailable()))
	}
	return t
}

// verdict says in one sentence whether all is well, the loss of copies first.
func verdict(r *ringmodv1.StatusResponse) string {
	trouble := append(missing(r), unwell(r)...)
	if len(trouble) > 0 {
		return "NOT all is well: " + strings.Join(trouble, "; ") + "."
	}
	in := 0
	for _, m := range r.GetMembers() {
		if isIn(m) {
			in++
		}
	}
	return fmt.Sprintf("All is well: %s, and every partition has its copies in reach%s%s.", number(in, "member is up", "members are up and agree on one view"), fewer(r), moving(r))
}

// moving says who joins and who leaves.
func moving(r *ringmodv1.StatusResponse) string {
	var text strings.Builder
	for _, s := range []ringmodv1.MemberState{ringmodv1.MemberState_MEMBER_STATE_JOINING, ringmodv1.MemberState_MEMBER_STATE_LEAVING} {
		var ids []string
		for _, m := range r.GetMembers() {
			if m.GetMember().GetState() == s {
				ids = append(ids, words(m.GetMember().GetId())+moved(m))
			}
		}
		if len(ids) > 0 {
			fmt.Fprintf(&text, "; %s: %s", state(s), listed(ids))
		}
	}
	return text.String()
}

// missing says which copies cannot be reached.
func missing(r *ringmodv1.StatusResponse) []string {
	var trouble []string
	total := r.GetView().GetSpec().GetPartitions()
	for _, g := range r.GetRegions() {
		below, none := g.GetPartitionsBelowReplicas(), g.GetPartitionsUnavailable()
		if below > 0 {
			text := fmt.Sprintf("%d of %d partitions in region %s have fewer than %s in reach", below, total, words(g.GetRegion()), number(replicas(r, g), "copy", "copies"))
			if none > 0 && none == below {
				text = fmt.Sprintf("%d of %d partitions in region %s have no copy in reach", none, total, words(g.GetRegion()))
			} else if none > 0 {
				text += fmt.Sprintf(", %d of them none", none)
			}
			trouble = append(trouble, text)
		}
	}
	if len(r.GetRegions()) == 0 {
		trouble = append(trouble, "no node is in the cluster, so that nothing is cached")
	}
	return trouble
}

// replicas returns how many copies a region should have.
func replicas(r *ringmodv1.StatusResponse, g *ringmodv1.RegionStatus) int {
	return int(min(r.GetView().GetSpec().GetReplicas(), g.GetNodes()))
}

// fewer says where there are too few nodes for the copies that are wanted, which is
// how small clusters are.
func fewer(r *ringmodv1.StatusResponse) string {
	var text strings.Builder
	for _, g := range r.GetRegions() {
		if n, want := replicas(r, g), int(r.GetView().GetSpec().GetReplicas()); n < want {
			fmt.Fprintf(&text, "; region %s has %s, so %s of each object and not %d", words(g.GetRegion()), number(int(g.GetNodes()), "node", "nodes"), number(n, "copy", "copies"), want)
		}
	}
	return text.String()
}

// unwell says what is wrong with members.
func unwell(r *ringmodv1.StatusResponse) []string {
	var trouble []string
	for _, each := range []struct {
		is        func(*ringmodv1.StatusResponse, *ringmodv1.MemberStatus) bool
		one, many string
	}{
		{func(_ *ringmodv1.StatusResponse, m *ringmodv1.MemberStatus) bool { return isIn(m) && !m.GetUp() }, "is down", "are down"},
		{func(_ *ringmodv1.StatusResponse, m *ringmodv1.MemberStatus) bool { return isSilent(m) }, "did not answer", "did not answer"},
		{func(_ *ringmodv1.StatusResponse, m *ringmodv1.MemberStatus) bool {
			return isLacking(m) && m.GetMember().GetState() == ringmodv1.MemberState_MEMBER_STATE_ACTIVE
		}, "lacks copies that others hold and is getting them", "lack copies that others hold and are getting them"},
		{differs, "has another view of the members", "have another view of the members"},
		{func(_ *ringmodv1.StatusResponse, m *ringmodv1.MemberStatus) bool {
			return isIn(m) && (m.GetMember().GetReadOnly() || m.GetReport().GetDiskReadOnly())
		}, "stores nothing new, its disk being full or failing", "store nothing new, their disks being full or failing"},
	} {
		var ids []string
		for _, m := range r.GetMembers() {
			if each.is(r, m) {
				ids = append(ids, words(m.GetMember().GetId()))
			}
		}
		verb := each.many
		if len(ids) == 1 {
			verb = each.one
		}
		if len(ids) > 0 {
			trouble = append(trouble, listed(ids)+" "+verb)
		}
	}
	return trouble
}

func isIn(m *ringmodv1.MemberStatus) bool {
	s := m.GetMember().GetState()
	return s != ringmodv1.MemberState_MEMBER_STATE_LEFT && s != ringmodv1.MemberState_MEMBER_STATE_FORGOTTEN
}

// isSilent tells of a member that should have answered and has not.
func isSilent(m *ringmodv1.MemberStatus) bool {
	return isIn(m) && m.GetUp() && m.GetReport() == nil && m.GetMember().GetGrpcAddress() != ""
}

// differs tells whether a member has said that its view is not that of the one who
// was asked.
func differs(r *ringmodv1.StatusResponse, m *ringmodv1.MemberStatus) bool {
	report := m.GetReport()
	return report != nil && r.GetView().GetViewSeq() > 0 && (report.GetViewDigest() != r.GetView().GetViewDigest() || report.GetViewSeq() == 0)
}
