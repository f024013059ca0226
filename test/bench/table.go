package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// spread is the min, median and max of some runs.
type spread struct{ min, median, max float64 }

// spreadOf returns the spread of values; of an even number of them the median
// is the mean of the two in the middle. No values give NaN.
func spreadOf(values []float64) spread {
	n := len(values)
	if n == 0 {
		return spread{math.NaN(), math.NaN(), math.NaN()}
	}
	s := slices.Sorted(slices.Values(values))
	return spread{s[0], (s[(n-1)/2] + s[n/2]) / 2, s[n-1]}
}

// String returns min/median/max in three significant digits, or a dash where
// nothing was measured.
func (s spread) String() string {
	if math.IsNaN(s.median) {
		return "-"
	}
	return number(s.min) + "/" + number(s.median) + "/" + number(s.max)
}

func number(v float64) string {
	if math.Abs(v) >= 10000 {
		return strconv.FormatFloat(v/1000, 'f', 1, 64) + "k"
	}
	if math.Abs(v) >= 100 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// column returns the spreads of the i-th metric: both sides and the ratios of
// neighbouring runs.
func (c *contest) column(i int) (base, ours, ratio spread) {
	var bases, ourses, ratios []float64
	for _, p := range c.pairs {
		bases, ourses = append(bases, p.base[i]), append(ourses, p.ours[i])
		ratios = append(ratios, p.ours[i]/p.base[i])
	}
	return spreadOf(bases), spreadOf(ourses), spreadOf(ratios)
}

// goal returns the goal in words, and the empty string for none.
func (m metric) goal() string {
	switch {
	case m.atLeast > 0:
		return fmt.Sprintf(">= %.2f", m.atLeast)
	case m.atMost > 0:
		return fmt.Sprintf("<= %.2f", m.atMost)
	case m.ceiling > 0:
		return "<= " + number(m.ceiling) + " " + m.unit
	}
	return ""
}

// verdict returns PASS, MISS or, without a goal, the empty string. What could
// not be computed is a MISS.
func (m metric) verdict(ours, ratio spread) string {
	low, high := ratio.median, ratio.median
	if m.strict {
		low, high = ratio.min, ratio.max
	}
	switch {
	case m.goal() == "":
		return ""
	case m.atLeast > 0 && low >= m.atLeast, m.atMost > 0 && high <= m.atMost, m.ceiling > 0 && ours.max <= m.ceiling:
		return "PASS"
	}
	return "MISS"
}

// printContests prints a table, or one for each pair of sides, and says whether a
// goal was missed. Contests that broke off are left out.
func printContests(w io.Writer, row string, contests []contest) (missed bool) {
	contests = slices.DeleteFunc(contests, func(c contest) bool { return len(c.pairs) == 0 })
	if len(contests) == 0 {
		return false
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i, c := range contests {
		if i == 0 || c.base != contests[i-1].base || c.ours != contests[i-1].ours {
			fmt.Fprintf(tw, "\n%s\tunit\t%s\t%s\tratio\tgoal\t\tother work\n", strings.ToUpper(row), c.base, c.ours)
		}
		other := 0.0
		for _, p := range c.pairs {
			other = max(other, p.other)
		}
		for i, m := range c.metrics {
			base, ours, ratio := c.column(i)
			verdict := m.verdict(ours, ratio)
			missed = missed || verdict == "MISS"
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.0f%%\n", m.name, m.unit, base, ours, ratio, m.goal(), verdict, 100*other)
		}
	}
	tw.Flush() //nolint:errcheck // the terminal is gone
	return missed
}
