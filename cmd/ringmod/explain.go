package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/admin"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

func explainCommand() *cobra.Command {
	a := &asker{}
	cmd := &cobra.Command{
		Use:   "explain MODULE[@VERSION]",
		Short: "Tell where a module belongs, who holds it, and why it could not be fetched",
		Long: "explain asks all nodes about the files of a version, or about list and latest of a module:\n" +
			"which nodes should hold them, which do, since when, from where and with which hash, who says\n" +
			"that there is no such thing, and how the last attempt to fetch it failed.\n\n" +
			"The path or URL of a request, as the go command prints it, stands for that file alone.",
		Example: "  ringmod explain golang.org/x/mod@v0.42.0\n" +
			"  ringmod explain golang.org/x/mod\n" +
			"  ringmod explain http://127.0.0.1:8080/golang.org/x/mod/@v/v0.42.0.zip\n" +
			"  ringmod explain golang.org/x/mod@v0.42.0 --json",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("name one module: ringmod explain MODULE[@VERSION]")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := subjectOf(args[0])
			if err != nil {
				return fmt.Errorf("%q is no module: %w; give MODULE, MODULE@VERSION or the path of a request", args[0], cmp.Or(errors.Unwrap(err), err))
			}
			return ask(cmd.Context(), a, cmd.OutOrStdout(), func(ctx context.Context, client ringmodv1.AdminServiceClient) (*ringmodv1.ExplainResponse, error) {
				return client.Explain(ctx, req)
			}, func(out io.Writer, r *ringmodv1.ExplainResponse) { printExplain(out, args[0], r) })
		},
	}
	a.bind(cmd)
	return cmd
}

// subjectOf reads what a person asks about. The member reads it again; this is for
// the sake of those who have mistyped and have no cluster at hand.
func subjectOf(arg string) (*ringmodv1.ExplainRequest, error) {
	name := strings.TrimPrefix(arg, "/")
	if u, err := url.Parse(arg); err == nil && u.Host != "" {
		name = strings.TrimPrefix(u.Path, "/")
	}
	if strings.Contains(name, "/@") || strings.HasPrefix(name, "sumdb/") {
		if _, err := target.Parse(name); err != nil {
			return nil, err
		}
		return &ringmodv1.ExplainRequest{Subject: &ringmodv1.ExplainRequest_Target{Target: name}}, nil
	}
	path, version, _ := strings.Cut(name, "@")
	if _, err := admin.Targets(module.Version{Path: path, Version: version}); err != nil {
		return nil, err
	}
	return &ringmodv1.ExplainRequest{
		Subject: &ringmodv1.ExplainRequest_Module{Module: &ringmodv1.ModuleVersion{Path: path, Version: version}},
	}, nil
}

// printExplain shows what is known of the objects that subject stands for: first in
// words, those of which the same is to be said together, then in detail.
func printExplain(out io.Writer, subject string, r *ringmodv1.ExplainResponse) {
	var said []string
	kinds := map[string][]string{} // by what is said of them
	for _, x := range r.GetObjects() {
		text := summary(x)
		if kinds[text] == nil {
			said = append(said, text)
		}
		kinds[text] = append(kinds[text], kind(x).String())
	}
	for _, text := range said {
		which := listed(kinds[text])
		if len(said) == 1 {
			which = words(subject)
		}
		fmt.Fprintf(out, "%s: %s.\n", which, text)
	}
	for _, line := range advised(subject, r) {
		fmt.Fprintf(out, "%s.\n", line)
	}
	for _, x := range r.GetObjects() {
		printObject(out, x)
	}
}

func kind(x *ringmodv1.Explanation) target.Kind {
	t, _ := target.Parse(x.GetTarget()) // what is none is of no kind
	return t.Kind
}

// summary says what a developer wants to know of an object.
func summary(x *ringmodv1.Explanation) string {
	var told []string
	if t := x.GetTombstone(); t != nil {
		told = append(told, buried(t))
	}
	told = append(append(told, holders(x)...), filling(x)...)
	if r := refuser(x); r != nil {
		no := r.GetHolding().GetNegative()
		told = append(told, fmt.Sprintf("%s heard %s ago that there is no such thing, and believes it for %s more: %s",
			words(r.GetNodeId()), age(no.GetAge()), age(no.GetTtl()), failure(no.GetError())))
	}
	if r := failed(x); r != nil {
		told = append(told, fmt.Sprintf("%s failed to fetch it %s ago: %s", words(r.GetNodeId()), age(r.GetLastErrorAge()), failure(r.GetLastError())))
	}
	return strings.Join(append(told, absentees(x)...), "; ")
}

// buried tells of a purge.
func buried(t *ringmodv1.Tombstone) string {
	text := "PURGED by an operator " + age(t.GetAge()) + " ago"
	if t.GetPrefix() {
		text += ", with all that begins with " + words(t.GetName())
	}
	if t.GetText() != "" {
		text += ", who says: " + words(t.GetText())
	}
	return text
}

// holders says who has a copy.
func holders(x *ringmodv1.Explanation) []string {
	var regions []string
	ids := map[string][]string{}
	sums := map[string]bool{}
	for _, r := range x.GetRanks() {
		if r.GetHolding().GetCopy() == nil {
			continue
		}
		region := words(r.GetRegion())
		if ids[region] == nil {
			regions = append(regions, region)
		}
		ids[region] = append(ids[region], words(r.GetNodeId()))
		sums[string(r.GetHolding().GetCopy().GetSha256())] = true
	}
	for i, region := range regions {
		regions[i] = strings.Join(ids[region], ", ") + " in region " + region
	}
	switch {
	case len(regions) == 0:
		return []string{"held by no node"}
	case len(sums) > 1 && kind(x).Immutable():
		return []string{"held by " + listed(regions), "THESE COPIES DIFFER"}
	default:
		return []string{"held by " + listed(regions)}
	}
}

// filling says who fetches it now.
func filling(x *ringmodv1.Explanation) []string {
	var ids []string
	for _, r := range x.GetRanks() {
		if r.GetHolding().GetFilling() {
			ids = append(ids, words(r.GetNodeId()))
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return []string{"being fetched by " + listed(ids)}
}

// refuser returns who heard last that there is no such object, if anybody still
// believes it.
func refuser(x *ringmodv1.Explanation) *ringmodv1.Rank {
	var last *ringmodv1.Rank
	for _, r := range x.GetRanks() {
		no := r.GetHolding().GetNegative()
		if no != nil && (last == nil || no.GetAge().AsDuration() < last.GetHolding().GetNegative().GetAge().AsDuration()) {
			last = r
		}
	}
	return last
}

// failed returns who failed last to fetch the object; nobody where that is the
// absence just told, or where the object has been stored there since.
func failed(x *ringmodv1.Explanation) *ringmodv1.Rank {
	var last *ringmodv1.Rank
	for _, r := range x.GetRanks() {
		if isOpen(r) && (last == nil || r.GetLastErrorAge().AsDuration() < last.GetLastErrorAge().AsDuration()) {
			last = r
		}
	}
	return last
}

// isOpen tells whether the last failure of a rank is news and older than no copy.
func isOpen(r *ringmodv1.Rank) bool {
	held := r.GetHolding().GetCopy()
	stored := held != nil && held.GetStoredAge().AsDuration() < r.GetLastErrorAge().AsDuration()
	return isNews(r) && !stored
}

// isNews tells whether the last failure of a rank is another one than the absence
// that it believes.
func isNews(r *ringmodv1.Rank) bool {
	no := r.GetHolding().GetNegative()
	return r.GetLastError() != nil && (no == nil || no.GetError().GetReason() != r.GetLastError().GetReason())
}

// absentees says which nodes that should hold a copy cannot be asked.
func absentees(x *ringmodv1.Explanation) []string {
	var down, silent []string
	for _, r := range x.GetRanks() {
		switch {
		case r.GetHolding() != nil:
		case r.GetUp():
			silent = append(silent, words(r.GetNodeId()))
		default:
			down = append(down, words(r.GetNodeId()))
		}
	}
	var told []string
	if len(silent) > 0 {
		told = append(told, listed(silent)+" did not answer")
	}
	switch {
	case len(x.GetRanks()) == 0:
		told = append(told, "there is no node")
	case len(down) == 1:
		told = append(told, down[0]+" is down")
	case len(down) > 1:
		told = append(told, listed(down)+" are down")
	}
	return told
}

// failure shows an error detail: who failed, and what he said or did.
func failure(e *ringmodv1.ErrorDetail) string {
	text := words(e.GetText())
	if text == "" {
		text = lower(e.GetReason().String(), "REASON_")
	}
	if e.GetSource() != "" {
		text = words(e.GetSource()) + ": " + text
	}
	if after := e.GetRetryAfter(); after.AsDuration() > 0 {
		text += ", asking again makes sense in " + age(after)
	}
	return strings.TrimSuffix(text, ".")
}
