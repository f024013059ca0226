package main

import (
	"encoding/hex"
	"fmt"
	"io"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// printObject shows one object in detail: where it belongs, a row for each node,
// and what does not fit a row.
func printObject(out io.Writer, x *ringmodv1.Explanation) {
	home := words(x.GetHomeRegion())
	if home == "" {
		home = "none"
	}
	fmt.Fprintf(out, "\n%s\n  partition %d, home region %s\n", words(x.GetTarget()), x.GetPartition(), home)
	mutable := !kind(x).Immutable()
	titles := []string{"RANK", "NODE", "REGION", "STATE", "UP", "COORDINATOR", "HOLDS", "SHA256", "STORED"}
	if mutable {
		titles = append(titles[:8], "AGE", "FRESH FOR")
	}
	t := newTable(titles...)
	for _, r := range x.GetRanks() {
		t.row(cells(r, mutable)...)
	}
	t.print(out, "  ")
	for _, line := range notes(x) {
		fmt.Fprintf(out, "  %s\n", line)
	}
}

// cells is the row of one node.
func cells(r *ringmodv1.Rank, mutable bool) []string {
	rank, up, coordinator := none, "up", none
	if r.Rank != nil {
		rank = fmt.Sprint(r.GetRank())
	}
	if !r.GetUp() {
		up = "DOWN"
	}
	if r.GetCoordinator() {
		coordinator = "yes"
	}
	row := []string{rank, r.GetNodeId(), r.GetRegion(), state(r.GetState()), up, coordinator, holds(r)}
	held := r.GetHolding().GetCopy()
	switch {
	case held == nil && mutable:
		return append(row, none, none, none)
	case held == nil:
		return append(row, none, none)
	case mutable:
		return append(row, short(held.GetSha256()), age(held.GetAge()), age(held.GetTtl()))
	default:
		return append(row, short(held.GetSha256()), age(held.GetStoredAge())+" ago")
	}
}

// holds says in a word or two what a node has.
func holds(r *ringmodv1.Rank) string {
	h := r.GetHolding()
	switch {
	case h == nil && r.GetUp():
		return "no answer"
	case h == nil:
		return none
	case h.GetCopy() != nil:
		return size(h.GetCopy().GetSize())
	case h.GetFilling():
		return "fetching"
	default:
		return "nothing"
	}
}

// short is enough of a hash to tell two apart.
func short(sum []byte) string { return hex.EncodeToString(sum[:min(len(sum), 6)]) }

// notes are what does not fit into rows: where copies come from and their hashes,
// the same for all once, and what went wrong.
func notes(x *ringmodv1.Explanation) []string {
	var lines []string
	origins := map[string][]string{} // nodes by what is to be said of their copies
	for _, r := range x.GetRanks() {
		text := origin(r.GetHolding().GetCopy())
		if text == "" {
			continue
		}
		if origins[text] == nil {
			lines = append(lines, text)
		}
		origins[text] = append(origins[text], words(r.GetNodeId()))
	}
	if len(lines) > 1 {
		for i, text := range lines {
			lines[i] = listed(origins[text]) + ": " + text
		}
	}
	for _, r := range x.GetRanks() {
		if no := r.GetHolding().GetNegative(); no != nil {
			lines = append(lines, fmt.Sprintf("%s: absent, heard %s ago, believed for %s more: %s", words(r.GetNodeId()), age(no.GetAge()), age(no.GetTtl()), failure(no.GetError())))
		}
		if isNews(r) {
			lines = append(lines, fmt.Sprintf("%s: last failure %s ago: %s", words(r.GetNodeId()), age(r.GetLastErrorAge()), failure(r.GetLastError())))
		}
	}
	return lines
}

// origin says where a copy comes from and what vouches for it; "" where nothing is
// known.
func origin(c *ringmodv1.Copy) string {
	text := ""
	add := func(part string) {
		if text != "" {
			text += ", "
		}
		text += part
	}
	if c.GetUpstream() != "" {
		add("from " + words(c.GetUpstream()))
	}
	if c.GetH1() != "" {
		add(words(c.GetH1()))
		if c.GetVerified() {
			add("confirmed by the checksum database")
		} else {
			add("not confirmed by a checksum database")
		}
	}
	if c.GetPrivate() {
		add("private")
	}
	return text
}
