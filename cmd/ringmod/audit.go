package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/node/admin"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

func auditCommand() *cobra.Command {
	a := &asker{}
	req := &ringmodv1.AuditRequest{}
	cmd := &cobra.Command{
		Use:   "audit [MODULE...]",
		Short: "List the versions that upstream has moved or removed though they are held",
		Long: "audit tells of which versions upstream says something else than when they were fetched: the\n" +
			"tag is another commit now, or every source says that there is no such version. What is held\n" +
			"stays and is served on. Nodes look at each version within 14 days by themselves; with --now\n" +
			"they do it at once, for the modules that are named or for all, gently, and what they have\n" +
			"found comes at the end.\n\n" +
			"MODULE/... is all modules below a path. REQUESTS is about how often the version was asked\n" +
			"for lately: a request counts half for every day that it lies back.\n\n" +
			"Exit status: 0 when all nodes have answered, whatever was found; 1 when some have not, or\n" +
			"upstream could not be asked.",
		Example: "  ringmod audit\n" +
			"  ringmod audit --now example.com/lib example.com/team/...\n" +
			"  ringmod audit --json | jq '.findings[] | select(.closed_age == null)'",
		Args: func(_ *cobra.Command, args []string) error {
			for _, arg := range args {
				if err := admin.CheckModules(arg); err != nil {
					return usagef("%q is no module: give MODULE or MODULE/...", arg)
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Modules = args
			return a.audit(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), req)
		},
	}
	a.bind(cmd)
	cmd.Flags().BoolVar(&req.Now, "now", false, "ask upstream about all these versions at once")
	cmd.Flags().Lookup("timeout").Usage = "how `long` to wait for a sign of life"
	return cmd
}

// audit asks what was found, or for an audit, and shows what comes of it.
func (a *asker) audit(ctx context.Context, out, progress io.Writer, req *ringmodv1.AuditRequest) error {
	v := &auditView{json: a.json, now: req.GetNow(), out: out, nodes: map[string]*ringmodv1.AuditResponse{}}
	if isTerminal(progress) && !a.json && req.GetNow() {
		v.progress = progress
	}
	err := watch(ctx, a, func(ctx context.Context, client ringmodv1.AdminServiceClient) (grpc.ServerStreamingClient[ringmodv1.AuditResponse], error) {
		return client.Audit(ctx, req)
	}, v.show)
	if err != nil {
		return err
	}
	return v.end()
}

// auditView shows an audit to people, or to programs: a line for each message.
type auditView struct {
	json, now bool
	out       io.Writer
	progress  io.Writer // of a terminal; nil: none

	nodes    map[string]*ringmodv1.AuditResponse // the last of each
	findings []*ringmodv1.AuditFinding
}

func (v *auditView) show(r *ringmodv1.AuditResponse) error {
	v.nodes[r.GetNodeId()] = r
	v.findings = append(v.findings, r.GetFindings()...)
	if v.json {
		return printJSONLine(v.out, r)
	}
	if v.progress != nil {
		looked, total := v.sum()
		fmt.Fprintf(v.progress, "\r\x1b[K%d of %s asked about", looked, number(total, "version", "versions"))
	}
	return nil
}

func (v *auditView) sum() (looked, total int) {
	for _, r := range v.nodes {
		looked, total = looked+int(r.GetLooked()), total+int(r.GetTotal())
	}
	return looked, total
}

// end prints what was found, and returns an error when not all have answered.
func (v *auditView) end() error {
	if v.progress != nil {
		fmt.Fprint(v.progress, "\r\x1b[K")
	}
	if !v.json {
		v.print()
	}
	var trouble []string
	for _, id := range slices.Sorted(maps.Keys(v.nodes)) {
		r := v.nodes[id]
		switch {
		case r.GetError() != nil:
			trouble = append(trouble, words(id)+" did not answer: "+words(failure(r.GetError())))
		case !r.GetDone():
			trouble = append(trouble, words(id)+" did not finish")
		case r.GetTroubled() > 0:
			trouble = append(trouble, fmt.Sprintf("%s could not ask upstream about %s, the last time because of: %s", words(id),
				number(int(r.GetTroubled()), "version", "versions"), words(r.GetTrouble())))
		}
	}
	if len(v.nodes) == 0 {
		trouble = append(trouble, "there is no node")
	}
	if len(trouble) > 0 {
		return errors.New(strings.Join(trouble, "; "))
	}
	return nil
}

// print shows the findings that are open in a table, then the others.
func (v *auditView) print() {
	t := newTable("MODULE", "VERSION", "UPSTREAM", "HELD COMMIT", "NOW", "FIRST SEEN", "LAST REQUEST", "REQUESTS", "SAYS")
	var closed []string
	for _, f := range admin.MergeFindings(v.findings) {
		if f.GetClosedAge() != nil {
			closed = append(closed, fmt.Sprintf("%s@%s is upstream again as it is held, for %s now.", words(f.GetModule().GetPath()), words(f.GetModule().GetVersion()), age(f.GetClosedAge())))
			continue
		}
		last := none
		if f.GetUsedAge() != nil {
			last = age(f.GetUsedAge()) + " ago"
		}
		t.row(f.GetModule().GetPath(), f.GetModule().GetVersion(), changeOf(f), commit(f.GetOldCommit()), commit(f.GetNewCommit()),
			age(f.GetFirstSeenAge())+" ago", last, fmt.Sprintf("%.0f", f.GetUses()), f.GetSource())
	}
	if t.rows > 0 {
		t.print(v.out, "")
		fmt.Fprintln(v.out)
	}
	for _, line := range closed {
		fmt.Fprintln(v.out, line)
	}
	if v.now {
		looked, _ := v.sum()
		fmt.Fprintf(v.out, "Upstream was asked about %s. ", number(looked, "version", "versions"))
	}
	if t.rows == 0 {
		fmt.Fprintln(v.out, "Nothing that is held is known to have changed upstream.")
		return
	}
	fmt.Fprintf(v.out, "%s upstream; what is held is served on as it is.\n", number(t.rows, "version has changed", "versions have changed"))
}

// changeOf says in a word what has become of a version.
func changeOf(f *ringmodv1.AuditFinding) string {
	if f.GetNewCommit() == "" {
		return "vanished"
	}
	return "moved"
}

// commit is enough of a commit's name to find it by.
func commit(hash string) string { return words(hash[:min(len(hash), 12)]) }
