package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/node/purge"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// errUnconfirmed makes the exit status tell that a purge is not everywhere yet.
var errUnconfirmed = errors.New("not all nodes have confirmed")

func purgeCommand() *cobra.Command {
	a := &asker{}
	var reason string
	var lift bool
	cmd := &cobra.Command{
		Use:   "purge MODULE[@VERSION]",
		Short: "Remove a module or one version from all nodes, and keep it removed",
		Long: "purge removes objects from the disks of all nodes and from the memory of all gateways, and\n" +
			"keeps them away for 30 days, whatever upstream has: developers get 410 with the reason, lists\n" +
			"do not name the version any more, and @latest is the newest one that is left. It lasts through\n" +
			"restarts. Nodes that cannot be reached are named: they apply the purge before they serve\n" +
			"again. With --lift the same is available again, and is fetched when somebody asks.\n\n" +
			"Without a version it is the whole module, with all that is listed; MODULE/... is all modules\n" +
			"below a path. The path or URL of a request, as the go command prints it, stands for that file\n" +
			"alone. The records of the checksum database stay: they hold hashes, and nobody's bytes. What\n" +
			"developers have downloaded already is on their machines.\n\n" +
			"Exit status: 0 when all nodes have confirmed, 1 when some have not or nothing was done.",
		Example: "  ringmod purge example.com/leaked@v1.2.3 --reason \"holds a password, use v1.2.4\"\n" +
			"  ringmod purge example.com/leaked\n" +
			"  ringmod purge example.com/leaked@v1.2.3 --lift",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("name one module: ringmod purge MODULE[@VERSION]")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := purgeRequest(args[0], reason, lift)
			if err != nil {
				return err
			}
			var unconfirmed []string
			err = ask(cmd.Context(), a, cmd.OutOrStdout(), func(ctx context.Context, client ringmodv1.AdminServiceClient) (*ringmodv1.PurgeResponse, error) {
				resp, err := client.Purge(ctx, req)
				unconfirmed = resp.GetUnconfirmed()
				return resp, err
			}, func(out io.Writer, r *ringmodv1.PurgeResponse) { printPurge(out, words(args[0]), lift, r) })
			if err == nil && len(unconfirmed) > 0 {
				err = fmt.Errorf("%w: %s", errUnconfirmed, listed(unconfirmed))
			}
			return err
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, in `words` that developers see who ask for it")
	cmd.Flags().BoolVar(&lift, "lift", false, "take an earlier purge of the same back")
	a.bind(cmd)
	return cmd
}

// purgeRequest reads what is to be purged. The member reads it again; this is for the sake
// of those who have mistyped.
func purgeRequest(arg, reason string, lift bool) (*ringmodv1.PurgeRequest, error) {
	if len(reason) > purge.MaxText {
		return nil, usagef("--reason has %d bytes: at most %d", len(reason), purge.MaxText)
	}
	req := &ringmodv1.PurgeRequest{Text: reason, Lift: lift}
	if dir, ok := strings.CutSuffix(arg, "/..."); ok {
		escaped, err := module.EscapePath(dir)
		if err != nil {
			// Below a host there are modules, though it is none.
			escaped, err = dir, purge.Name{Name: dir + "/", Prefix: true}.Check()
		}
		if err != nil {
			return nil, badPurge(arg, err)
		}
		req.Subject = &ringmodv1.PurgeRequest_Prefix{Prefix: escaped + "/"}
		return req, nil
	}
	subject, err := subjectOf(arg)
	if err != nil {
		return nil, badPurge(arg, err)
	}
	switch s := subject.GetSubject().(type) {
	case *ringmodv1.ExplainRequest_Target:
		if err := (purge.Name{Name: s.Target}).Check(); err != nil {
			return nil, badPurge(arg, err)
		}
		req.Subject = &ringmodv1.PurgeRequest_Target{Target: s.Target}
	case *ringmodv1.ExplainRequest_Module:
		m := s.Module
		if _, err := purge.Names(module.Version{Path: m.GetPath(), Version: m.GetVersion()}); err != nil {
			return nil, badPurge(arg, err)
		}
		req.Subject = &ringmodv1.PurgeRequest_Module{Module: m}
	}
	return req, nil
}

func badPurge(arg string, err error) error {
	return fmt.Errorf("%q cannot be purged: %w; give MODULE, MODULE@VERSION, MODULE/... or the path of a request", arg, cmp.Or(errors.Unwrap(err), err))
}

// printPurge says what was written, who has confirmed it, and what becomes of the others.
func printPurge(out io.Writer, subject string, lift bool, r *ringmodv1.PurgeResponse) {
	did := "purged"
	if lift {
		did = "no longer purged"
	}
	fmt.Fprintf(out, "%s is %s.\n", subject, did)
	for _, t := range r.GetTombstones() {
		name := words(t.GetName())
		if t.GetPrefix() {
			name += "*"
		}
		fmt.Fprintf(out, "  %s\n", name)
	}
	confirmed := "no node"
	if ids := wordsOf(r.GetConfirmed()); len(ids) > 0 {
		confirmed = listed(ids)
	}
	fmt.Fprintf(out, "Confirmed by %s.\n", confirmed)
	if ids := wordsOf(r.GetUnconfirmed()); len(ids) > 0 {
		then := "What they hold stays on their disks until then. Each hears of the purge when it is back, before\nit serves, or within a minute; 'ringmod explain' shows who still holds it."
		if lift {
			then = "They keep it away until they are back and hear of it."
		}
		fmt.Fprintf(out, "NOT CONFIRMED by %s. %s\n", listed(ids), then)
	}
	if lift && len(r.GetUnconfirmed()) == 0 {
		fmt.Fprintln(out, "It is fetched again when somebody asks; lists name it within a minute or two.")
	}
}

func wordsOf(ids []string) []string {
	clean := make([]string, len(ids))
	for i, id := range ids {
		clean[i] = words(id)
	}
	return clean
}
