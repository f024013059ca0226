package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/refresh"
	"github.com/ringmod/ringmod/internal/target"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

var (
	errUntold  = errors.New("not all members have been told")
	errUnasked = errors.New("upstream has no answer for some of it")
)

// refreshRun is one run of the command.
type refreshRun struct {
	asker

	untold  []string
	unasked bool
}

func refreshCommand() *cobra.Command {
	r := &refreshRun{}
	cmd := &cobra.Command{
		Use:   "refresh MODULE...",
		Short: "Look again at what upstream says of modules, now",
		Long: "refresh is for who has published a version and does not want to wait: lists and @latest\n" +
			"are refreshed within 60 s anyway. All nodes and gateways ask upstream again for what they\n" +
			"remember of the module, its 404s included. MODULE is a module path, MODULE@VERSION to see\n" +
			"whether that version is there, or PATH/... for all modules of that path and below it.\n" +
			"The exit status is 1 when upstream could not be asked, knows of no such thing, or a member\n" +
			"was not told.",
		Example: "  ringmod refresh example.com/m\n" +
			"  ringmod refresh example.com/m@v1.2.3\n" +
			"  ringmod refresh example.com/team/... --json",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("name at least one module: ringmod refresh MODULE...")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return r.run(cmd.Context(), cmd.OutOrStdout(), args) },
	}
	r.bind(cmd)
	return cmd
}

func (r *refreshRun) run(ctx context.Context, out io.Writer, args []string) error {
	requests := make([]*ringmodv1.RefreshRequest, len(args))
	for i, arg := range args {
		var err error
		if requests[i], err = refreshRequest(arg); err != nil {
			return err
		}
	}
	for i, req := range requests {
		err := ask(ctx, &r.asker, out, func(ctx context.Context, client ringmodv1.AdminServiceClient) (*ringmodv1.RefreshResponse, error) {
			resp, err := client.Refresh(ctx, req)
			r.note(resp)
			return resp, err
		}, func(out io.Writer, resp *ringmodv1.RefreshResponse) { printRefresh(out, words(args[i]), resp) })
		if err != nil {
			return fmt.Errorf("%s: %w", args[i], err)
		}
	}
	switch {
	case len(r.untold) > 0:
		return fmt.Errorf("%w: %s", errUntold, listed(r.untold))
	case r.unasked:
		return errUnasked
	default:
		return nil
	}
}

// note keeps what the exit status depends on.
func (r *refreshRun) note(resp *ringmodv1.RefreshResponse) {
	r.untold = wordsOf(resp.GetUnconfirmed())
	for _, o := range resp.GetObjects() {
		r.unasked = r.unasked || o.GetError() != nil
	}
}

// refreshRequest reads what is to be refreshed. The member reads it again.
func refreshRequest(arg string) (*ringmodv1.RefreshRequest, error) {
	bad := func(err error) error {
		return usagef("%q cannot be refreshed: %w; give MODULE, MODULE@VERSION or PATH/...", arg, cmp.Or(errors.Unwrap(err), err))
	}
	if prefix, ok := strings.CutSuffix(arg, "/..."); ok {
		if err := (refresh.Subject{Path: prefix}).Check(); err != nil {
			return nil, bad(err)
		}
		return &ringmodv1.RefreshRequest{Subject: &ringmodv1.RefreshRequest_Prefix{Prefix: prefix}}, nil
	}
	path, version, at := strings.Cut(arg, "@")
	err := module.CheckPath(path)
	if err == nil && at {
		_, err = target.ForVersion(module.Version{Path: path, Version: version}, target.Info)
	}
	if err != nil {
		return nil, bad(err)
	}
	m := &ringmodv1.ModuleVersion{Path: path, Version: version}
	return &ringmodv1.RefreshRequest{Subject: &ringmodv1.RefreshRequest_Module{Module: m}}, nil
}

// printRefresh says what upstream has said, and who looks again.
func printRefresh(out io.Writer, subject string, resp *ringmodv1.RefreshResponse) {
	if len(resp.GetObjects()) == 0 {
		fmt.Fprintf(out, "%s: asked for again when somebody wants it.\n", subject)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, o := range resp.GetObjects() {
		fmt.Fprintf(table, "%s\t%s\n", words(o.GetTarget()), refreshedAs(o))
	}
	_ = table.Flush()
	fmt.Fprintf(out, "Told: %s.\n", listed(wordsOf(resp.GetConfirmed())))
	if ids := wordsOf(resp.GetUnconfirmed()); len(ids) > 0 {
		fmt.Fprintf(out, "NOT TOLD: %s. What they remember counts for 60 s at most; they look again then.\n", listed(ids))
	}
}

// refreshedAs says what became of one object.
func refreshedAs(o *ringmodv1.Refreshed) string {
	said := "the same as before"
	switch {
	case o.GetError() != nil:
		e := o.GetError()
		said = cmp.Or(e.GetText(), strings.ToLower(strings.TrimPrefix(e.GetReason().String(), "REASON_")))
		if e.GetSource() != "" {
			said = e.GetSource() + ": " + said
		}
		return words(said)
	case o.GetChanged():
		said = "new"
	}
	if o.Versions != nil {
		said += fmt.Sprintf(", %d versions", o.GetVersions())
	}
	return said
}
