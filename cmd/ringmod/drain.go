package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

func drainCommand() *cobra.Command {
	a := &asker{}
	var streams time.Duration
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "Take a node out for good without losing a copy",
		Long: "drain lets a node leave: the others pull what they lack of what it holds, the downloads that\n" +
			"run finish, its process ends by itself. The command shows how far that is, and ends when it is\n" +
			"done. Interrupting the command stops nothing: the node goes on leaving, also after it was\n" +
			"stopped or killed and started again; run the command once more to look on.\n" +
			"A node that is started again after it has left joins anew: tell whatever restarts it.\n\n" +
			"To restart or upgrade a node, do not drain it: stop it with SIGTERM. For a node that is lost see\n" +
			"'ringmod forget'.",
		Example: "  ringmod drain n3\n  ringmod drain n3 --addr n1.example.com:8082 --stream-timeout 5m",
		Args:    oneNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.drain(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), &ringmodv1.DrainRequest{NodeId: args[0], StreamTimeout: durationpb.New(streams)})
		},
	}
	a.bind(cmd)
	cmd.Flags().Lookup("timeout").Usage = "how `long` to wait for a sign of life"
	cmd.Flags().DurationVar(&streams, "stream-timeout", 30*time.Second, "how `long` downloads that run may take to finish in the end")
	return cmd
}

func forgetCommand() *cobra.Command {
	a := &asker{}
	var force bool
	cmd := &cobra.Command{
		Use:   "forget NODE",
		Short: "Take out a node that is lost and will not come back",
		Long: "forget tells the cluster that a node which is down will not come back: others take its share\n" +
			"over at once, and copy among themselves what it held. Without the command that happens after\n" +
			"10 minutes, where at least half of the nodes of its region are up. A node that comes back all the\n" +
			"same is in again.",
		Example: "  ringmod forget n3\n  ringmod forget n3 --addr n1.example.com:8082",
		Args:    oneNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd.Context(), a, cmd.OutOrStdout(), func(ctx context.Context, client ringmodv1.AdminServiceClient) (*ringmodv1.SetStateResponse, error) {
				return client.SetState(ctx, &ringmodv1.SetStateRequest{
					MemberId: args[0], State: ringmodv1.MemberState_MEMBER_STATE_FORGOTTEN, Force: force,
				})
			}, func(out io.Writer, r *ringmodv1.SetStateResponse) {
				fmt.Fprintf(out, "%s is forgotten; the others hear of it within seconds.\n", words(r.GetMember().GetId()))
			})
		},
	}
	a.bind(cmd)
	cmd.Flags().BoolVar(&force, "force", false, "also a node that seems up; it is in again when it hears of that")
	return cmd
}

// oneNode wants a node's id and nothing else.
func oneNode(cmd *cobra.Command, args []string) error {
	if len(args) != 1 || args[0] == "" {
		return usagef("want the id of one node, as 'ringmod status' shows it; see '%s --help'", cmd.CommandPath())
	}
	return nil
}

// drain lets a node leave and shows how far it is until it has left.
func (a *asker) drain(ctx context.Context, out, progress io.Writer, req *ringmodv1.DrainRequest) error {
	v := &drainView{json: a.json, out: out, node: req.GetNodeId()}
	if isTerminal(progress) && !a.json {
		v.progress = progress
	}
	defer v.clear()
	err := watch(ctx, a, func(ctx context.Context, client ringmodv1.AdminServiceClient) (grpc.ServerStreamingClient[ringmodv1.DrainResponse], error) {
		return client.Drain(ctx, req)
	}, v.show)
	if err == nil && !v.left {
		err = fmt.Errorf("%s stopped telling about %s before that had left; see 'ringmod status'", a.addr, v.node)
	}
	return err
}

// drainView shows a drain to people, in one line that changes or in a line for each
// change, or to programs: a line for each message.
type drainView struct {
	json     bool
	out      io.Writer
	progress io.Writer // of a terminal; nil: none
	node     string
	last     string
	left     bool
}

func (v *drainView) show(r *ringmodv1.DrainResponse) error {
	v.left = v.left || r.GetState() == ringmodv1.MemberState_MEMBER_STATE_LEFT
	if v.json {
		return printJSONLine(v.out, r)
	}
	text := v.text(r)
	v.clear()
	var err error
	switch {
	case v.progress != nil && !v.left:
		_, err = fmt.Fprint(v.progress, text)
	case text != v.last:
		_, err = fmt.Fprintln(v.out, text)
	}
	v.last = text
	return err
}

func (v *drainView) clear() {
	if v.progress != nil {
		fmt.Fprint(v.progress, "\r\x1b[K")
	}
}

func (v *drainView) text(r *ringmodv1.DrainResponse) string {
	node, streams := words(v.node), ""
	if n := r.GetStreamsLeft(); n > 0 {
		streams = ", answers " + number(int(n), "download", "downloads")
	}
	switch {
	case v.left:
		return node + " has left and holds nothing that others have not. Its data folder can be removed."
	case !r.GetCounted():
		return node + " is leaving: counting what it alone holds" + streams
	case r.GetObjectsLeft() > 0:
		return fmt.Sprintf("%s is leaving: %s (%s) to hand over%s", node, number(int(r.GetObjectsLeft()), "object", "objects"), size(r.GetBytesLeft()), streams)
	default:
		return node + " is leaving: everything has been handed over" + streams
	}
}
