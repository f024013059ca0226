package main

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

func TestSpread(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		values []float64
		want   string
	}{
		{"none", nil, "-"},
		{"one", []float64{2}, "2/2/2"},
		{"odd", []float64{3, 1, 2}, "1/2/3"},
		{"even", []float64{4, 1, 2, 3}, "1/2.5/4"},
		{"large", []float64{75012, 123.4, 9999}, "123/9999/75.0k"},
		{"not measured", []float64{math.NaN()}, "-"},
	}
	for _, tt := range tests {
		if got := spreadOf(tt.values).String(); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	r := spread{0.6, 0.8, 1.2}
	tests := []struct {
		name   string
		metric metric
		ratio  spread
		want   string
	}{
		{"no goal", metric{}, r, ""},
		{"at least, reached", metric{atLeast: 0.8}, r, "PASS"},
		{"at least, missed", metric{atLeast: 0.81}, r, "MISS"},
		{"at most, reached", metric{atMost: 0.8}, r, "PASS"},
		{"at most, missed", metric{atMost: 0.79}, r, "MISS"},
		{"strict looks at the worst", metric{atMost: 1, strict: true}, r, "MISS"},
		{"strict, reached", metric{atMost: 1.2, strict: true}, r, "PASS"},
		{"strict looks at the lowest", metric{atLeast: 0.7, strict: true}, r, "MISS"},
		{"not measured", metric{atMost: 1}, spreadOf(nil), "MISS"},
		{"ceiling", metric{ceiling: 120}, r, "PASS"},
		{"ceiling looks at the worst", metric{ceiling: 119}, r, "MISS"},
	}
	for _, tt := range tests {
		if got := tt.metric.verdict(spread{100, 110, 120}, tt.ratio); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestPrintContests(t *testing.T) {
	t.Parallel()
	done := contest{
		base: "nginx", ours: "ringmod",
		metrics: []metric{{name: ".info", unit: "req/s", atLeast: 0.7}, {name: "CPU", unit: "s"}},
		pairs: []pair{
			{base: []float64{100, math.NaN()}, ours: []float64{60, 1}, other: 0.02},
			{base: []float64{200, math.NaN()}, ours: []float64{100, 1}, other: 0.3},
			{base: []float64{100, math.NaN()}, ours: []float64{90, 1}},
		},
	}
	const want = `
WARM   unit   nginx        ringmod    ratio        goal           other work
.info  req/s  100/100/200  60/90/100  0.5/0.6/0.9  >= 0.70  MISS  30%
CPU    s      -            1/1/1      -                           30%
`
	var got strings.Builder
	if missed := printContests(&got, "warm", []contest{{metrics: done.metrics}, done}); !missed {
		t.Error("got no missed goal, want one")
	}
	if got.String() != want {
		t.Errorf("got %s\nwant %s", got.String(), want)
	}
}

func TestPrintContestsOfSeveralSides(t *testing.T) {
	t.Parallel()
	with := func(base string, m metric) contest {
		return contest{base: base, ours: "ours", metrics: []metric{m}, pairs: []pair{{base: []float64{100}, ours: []float64{130}}}}
	}
	const want = `
ROW  unit  a            ours         ratio        goal             other work
x    MB    100/100/100  130/130/130  1.3/1.3/1.3  <= 130 MB  PASS  0%
y    MB    100/100/100  130/130/130  1.3/1.3/1.3  <= 120 MB  MISS  0%

ROW  unit  b            ours         ratio        goal    other work
z    MB    100/100/100  130/130/130  1.3/1.3/1.3          0%
`
	var got strings.Builder
	missed := printContests(&got, "row", []contest{
		with("a", metric{name: "x", unit: "MB", ceiling: 130}),
		with("a", metric{name: "y", unit: "MB", ceiling: 120}),
		with("b", metric{name: "z", unit: "MB"}),
	})
	if !missed {
		t.Error("got no missed goal, want one")
	}
	if got.String() != want {
		t.Errorf("got %s\nwant %s", got.String(), want)
	}
}

func TestPlayAlternates(t *testing.T) {
	t.Parallel()
	var order string
	var c contest
	err := c.play(rules{runs: 2}, side{name: "a", proc: nil}, side{name: "b", proc: nil}, func(s side, run int) ([]float64, error) {
		order += s.name
		return []float64{float64(run)}, nil
	})
	if err != nil || len(c.pairs) != 2 || !strings.HasPrefix(order, "abba") {
		t.Errorf("got order %s, %d pairs, %v; want abba…, 2 pairs", order, len(c.pairs), err)
	}
	want := errors.New("broken")
	err = c.play(rules{runs: 2}, side{name: "a", proc: nil}, side{name: "b", proc: nil}, func(side, int) ([]float64, error) { return nil, want })
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func TestRulesAllow(t *testing.T) {
	t.Parallel()
	now := time.Now()
	r := rules{runs: 2, attempts: 4, until: now}
	tests := []struct {
		name   string
		played int
		at     time.Time
		want   bool
	}{
		{"wanted", 1, now.Add(-time.Second), true},
		{"wanted although late", 1, now.Add(time.Second), true},
		{"extra", 3, now.Add(-time.Second), true},
		{"extra but late", 3, now, false},
		{"enough", 4, now.Add(-time.Second), false},
	}
	for _, tt := range tests {
		if got := r.allow(tt.played, tt.at); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestQuietest(t *testing.T) {
	t.Parallel()
	pairs := quietest([]pair{{other: 0.5}, {other: 0.1}, {other: 0.3}}, 2)
	if len(pairs) != 2 || pairs[0].other != 0.1 || pairs[1].other != 0.3 {
		t.Errorf("got %+v, want the pairs with 0.1 and 0.3", pairs)
	}
}
