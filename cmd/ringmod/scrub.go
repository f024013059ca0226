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

	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

func scrubCommand() *cobra.Command {
	a := &asker{}
	req := &ringmodv1.ScrubRequest{}
	var rate string
	cmd := &cobra.Command{
		Use:   "scrub [NODE...]",
		Short: "Check what nodes hold, and get again what has become bad",
		Long: "scrub has nodes read what they hold and compare it with what was recorded when it was stored:\n" +
			"those named, or all that are up. Nodes do so by themselves, each object within 30 days; scrub does\n" +
			"it now, for everything that was not checked within a day. A bad copy goes into quarantine and is\n" +
			"got again from another node, from upstream only where no node has it. Interrupt it at any time:\n" +
			"what was checked is remembered.\n\n" +
			"The exit status is 1 when something bad could not be got again or a node did not finish.",
		Example: "  ringmod scrub\n" +
			"  ringmod scrub n1 n2 --all --rate 20MiB\n" +
			"  ringmod scrub --json | jq 'select(.findings != [])'",
		RunE: func(cmd *cobra.Command, args []string) error {
			req.NodeIds = args
			if rate != "" {
				limit, err := store.ParseLimit(rate)
				if err != nil || limit.Bytes == 0 {
					return usagef("--rate %q: want bytes a second such as 20MiB, at least 1MiB", rate)
				}
				req.BytesPerSecond = uint64(limit.Bytes)
			}
			return a.scrub(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), req)
		},
	}
	a.bind(cmd)
	cmd.Flags().StringVar(&rate, "rate", "", "how much each node may read per second, such as `20MiB`; default 50MiB")
	cmd.Flags().BoolVar(&req.All, "all", false, "check also what was checked within the last day")
	cmd.Flags().Lookup("timeout").Usage = "how `long` to wait for a sign of life"
	return cmd
}

// scrub asks for a scrub and shows what comes of it.
func (a *asker) scrub(ctx context.Context, out, progress io.Writer, req *ringmodv1.ScrubRequest) error {
	v := &scrubView{json: a.json, out: out, nodes: map[string]*ringmodv1.ScrubResponse{}}
	if isTerminal(progress) && !a.json {
		v.progress = progress
	}
	err := watch(ctx, a, func(ctx context.Context, client ringmodv1.AdminServiceClient) (grpc.ServerStreamingClient[ringmodv1.ScrubResponse], error) {
		return client.Scrub(ctx, req)
	}, v.show)
	if err != nil {
		return err
	}
	return v.end()
}

// scrubView shows a scrub to people, or to programs: a line for each message.
type scrubView struct {
	json     bool
	out      io.Writer
	progress io.Writer // of a terminal; nil: none

	nodes           map[string]*ringmodv1.ScrubResponse // the last of each
	found, repaired int
}

func (v *scrubView) show(r *ringmodv1.ScrubResponse) error {
	v.nodes[r.GetNodeId()] = r
	v.found += len(r.GetFindings())
	for _, f := range r.GetFindings() {
		if f.GetRepaired() {
			v.repaired++
		}
	}
	if v.json {
		return printJSONLine(v.out, r)
	}
	v.clear()
	for _, f := range r.GetFindings() {
		end := "NOT repaired"
		if f.GetRepaired() {
			end = "repaired"
		}
		fmt.Fprintf(v.out, "%s: %s: %s: %s\n", words(r.GetNodeId()), words(f.GetTarget()), end, words(f.GetText()))
	}
	v.bar()
	return nil
}

func (v *scrubView) clear() {
	if v.progress != nil {
		fmt.Fprint(v.progress, "\r\x1b[K")
	}
}

// bar draws how far all are.
func (v *scrubView) bar() {
	if v.progress == nil {
		return
	}
	const width = 24
	var sum ringmodv1.ScrubResponse
	over := 0
	for _, r := range v.nodes {
		sum.ObjectsChecked += r.GetObjectsChecked()
		sum.ObjectsTotal += r.GetObjectsTotal()
		sum.BytesChecked += r.GetBytesChecked()
		sum.BytesTotal += r.GetBytesTotal()
		if r.GetDone() {
			over++
		}
	}
	part := 1.0
	if sum.GetBytesTotal() > 0 {
		part = min(1, float64(sum.GetBytesChecked())/float64(sum.GetBytesTotal()))
	}
	full := int(part * width)
	fmt.Fprintf(v.progress, "[%s%s] %3.0f%%  %s of %s  %d of %s  %s found bad  %d of %s done", strings.Repeat("=", full), strings.Repeat(" ", width-full),
		100*part, size(sum.GetBytesChecked()), size(sum.GetBytesTotal()), sum.GetObjectsChecked(), number(int(sum.GetObjectsTotal()), "object", "objects"),
		number(v.found, "copy", "copies"), over, number(len(v.nodes), "node", "nodes"))
}

// end prints the sum, and returns an error when not all is well.
func (v *scrubView) end() error {
	v.clear()
	var trouble []string
	if open := v.found - v.repaired; open > 0 {
		trouble = append(trouble, number(open, "bad copy was not repaired", "bad copies were not repaired"))
	}
	t := newTable("NODE", "CHECKED", "OF", "BYTES")
	for _, id := range slices.Sorted(maps.Keys(v.nodes)) {
		r := v.nodes[id]
		t.row(id, fmt.Sprint(r.GetObjectsChecked()), number(int(r.GetObjectsTotal()), "object", "objects"), size(r.GetBytesChecked()))
		switch {
		case r.GetError() != nil:
			trouble = append(trouble, words(id)+" did not finish: "+words(failure(r.GetError())))
		case !r.GetDone():
			trouble = append(trouble, words(id)+" did not finish")
		}
	}
	if len(v.nodes) == 0 {
		trouble = append(trouble, "no node is up")
	}
	if !v.json {
		t.print(v.out, "")
		fmt.Fprintf(v.out, "%s found, %d repaired.\n", number(v.found, "bad copy", "bad copies"), v.repaired)
	}
	if len(trouble) > 0 {
		return errors.New(strings.Join(trouble, "; "))
	}
	return nil
}
