package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
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
			"--timeout is how long the cluster may say nothing, not how long the whole may take.\n\n" +
			"To restart or upgrade a node, do not drain it: stop it with SIGTERM. For a node that is lost see\n" +
			"'ringmod forget'.",
		Example: "  ringmod drain n3\n  ringmod drain n3 --addr n1.example.com:8082 --stream-timeout 5m",
		Args:    oneNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.drain(cmd.Context(), cmd.OutOrStdout(), &ringmodv1.DrainRequest{NodeId: args[0], StreamTimeout: durationpb.New(streams)})
		},
	}
	a.bind(cmd)
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

// drain lets a node leave and prints how far it is until it has left.
func (a *asker) drain(ctx context.Context, out io.Writer, req *ringmodv1.DrainRequest) error {
	var way dialer
	conn, err := a.dialMember(&way)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(a.timeout, func() { cancel(errSilentMember) })
	defer watchdog.Stop()
	stream, err := ringmodv1.NewAdminServiceClient(conn).Drain(ctx, req)
	show := &drainProgress{out: out, node: req.GetNodeId(), live: isTerminal(out), json: a.json}
	for err == nil {
		err = a.nextDrain(stream, show)
		watchdog.Reset(a.timeout)
	}
	show.end()
	switch {
	case errors.Is(err, io.EOF) && show.left:
		return nil
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%s stopped telling about %s before that had left; see 'ringmod status'", a.addr, req.GetNodeId())
	case errors.Is(context.Cause(ctx), errSilentMember):
		return fmt.Errorf("nothing heard from %s for %v; what has begun goes on, see 'ringmod status'", a.addr, a.timeout)
	}
	return a.explain(err, way.failure())
}

var errSilentMember = errors.New("nothing heard")

// nextDrain shows the next message; io.EOF is the end.
func (a *asker) nextDrain(stream grpc.ServerStreamingClient[ringmodv1.DrainResponse], show *drainProgress) error {
	r, err := stream.Recv()
	if err != nil {
		return err
	}
	return show.take(r)
}

// drainProgress shows how far a node is that leaves: on a terminal in one line that
// changes, else in a line for each change.
type drainProgress struct {
	out   io.Writer
	node  string
	live  bool // out is a terminal
	json  bool
	last  string
	width int // of what stands in the line
	left  bool
}

func (p *drainProgress) take(r *ringmodv1.DrainResponse) error {
	p.left = p.left || r.GetState() == ringmodv1.MemberState_MEMBER_STATE_LEFT
	if p.json {
		return printJSONLine(p.out, r)
	}
	text := p.text(r)
	if text == p.last {
		return nil
	}
	p.last = text
	if !p.live {
		_, err := fmt.Fprintln(p.out, text)
		return err
	}
	_, err := fmt.Fprint(p.out, "\r", text, strings.Repeat(" ", max(0, p.width-len(text))))
	p.width = len(text)
	return err
}

func (p *drainProgress) text(r *ringmodv1.DrainResponse) string {
	node := words(p.node)
	var and string
	if n := r.GetStreamsLeft(); n > 0 {
		and = ", and answers " + number(int(n), "download", "downloads")
	}
	switch {
	case p.left:
		return node + " has left and holds nothing that others have not. Its data folder can be removed."
	case !r.GetCounted():
		return node + " is leaving: counting what it alone holds" + and
	case r.GetObjectsLeft() > 0:
		return fmt.Sprintf("%s is leaving: %s (%s) to hand over%s", node, number(int(r.GetObjectsLeft()), "object", "objects"), size(r.GetBytesLeft()), and)
	default:
		return node + " is leaving: everything has been handed over" + and
	}
}

// end ends the line that was changed in place.
func (p *drainProgress) end() {
	if p.live && p.width > 0 {
		fmt.Fprintln(p.out)
	}
}

// printJSONLine writes m in one line, with the names of the fields in the .proto
// files.
func printJSONLine(out io.Writer, m *ringmodv1.DrainResponse) error {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return err
	}
	var raw json.RawMessage = text
	return json.NewEncoder(out).Encode(raw)
}
