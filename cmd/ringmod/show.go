package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"google.golang.org/protobuf/types/known/durationpb"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// What follows shows answers of members to people. Nothing a member says reaches
// the terminal but through printable.

// none stands where there is nothing to say.
const none = "-"

// table aligns columns.
type table struct {
	b    bytes.Buffer
	w    *tabwriter.Writer
	rows int // beside the titles
}

func newTable(titles ...string) *table {
	t := &table{}
	t.w = tabwriter.NewWriter(&t.b, 0, 0, 2, ' ', 0)
	t.row(titles...)
	t.rows = 0
	return t
}

func (t *table) row(cells ...string) {
	for i, cell := range cells {
		if cells[i] = words(cell); cells[i] == "" {
			cells[i] = none
		}
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
	t.rows++
}

// print writes the table with indent before each line.
func (t *table) print(out io.Writer, indent string) {
	_ = t.w.Flush() // into memory
	for line := range strings.Lines(t.b.String()) {
		fmt.Fprintf(out, "%s%s\n", indent, strings.TrimRight(line, " \n"))
	}
}

// words makes text of others fit for one line of a terminal.
func words(text string) string { return strings.Join(strings.Fields(printable(text)), " ") }

// printable replaces whatever a terminal could take for more than text.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(text, " "))
}

// age shows a time span by its two largest units.
func age(d *durationpb.Duration) string {
	if d == nil {
		return none
	}
	n := int64(max(0, d.AsDuration()) / time.Second)
	switch {
	case n < 60:
		return fmt.Sprintf("%ds", n)
	case n < 3600:
		return pair(n/60, "m", n%60, "s")
	case n < 86400:
		return pair(n/3600, "h", n/60%60, "m")
	default:
		return pair(n/86400, "d", n/3600%24, "h")
	}
}

func pair(large int64, unit string, small int64, smaller string) string {
	if small == 0 {
		return fmt.Sprintf("%d%s", large, unit)
	}
	return fmt.Sprintf("%d%s%d%s", large, unit, small, smaller)
}

// roundTrip shows milliseconds, as many digits as matter.
func roundTrip(d *durationpb.Duration) string {
	ms := float64(d.AsDuration()) / float64(time.Millisecond)
	switch {
	case d == nil:
		return none
	case ms < 10:
		return fmt.Sprintf("%.1fms", ms)
	default:
		return fmt.Sprintf("%.0fms", ms)
	}
}

// size shows bytes in units of 1024.
func size(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	value, unit := float64(n), 0
	for ; value >= 999.5 && unit < len("KMGTPE"); unit++ {
		value /= 1024
	}
	if value < 99.95 {
		return fmt.Sprintf("%.1f%c", value, " KMGTPE"[unit])
	}
	return fmt.Sprintf("%.0f%c", value, " KMGTPE"[unit])
}

// state shows the state of a member in lower case.
func state(s ringmodv1.MemberState) string { return lower(s.String(), "MEMBER_STATE_") }

func role(r ringmodv1.Role) string { return lower(r.String(), "ROLE_") }

func lower(name, prefix string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, prefix), "_", " "))
}

// listed joins names as people do, and counts those beyond the first few.
func listed(names []string) string {
	const most = 5
	if extra := len(names) - most; extra > 1 {
		names = append(names[:most:most], fmt.Sprintf("%d more", extra))
	}
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " and " + names[last]
}

// number says one thing or several.
func number(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
