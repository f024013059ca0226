package store

import (
	"errors"
	"strings"
	"testing"
)

func TestParseLimit(t *testing.T) {
	t.Parallel()
	type limitTest struct {
		text string
		want Limit
		good bool
	}
	tests := []limitTest{
		{"20GiB", Limit{Bytes: 20 << 30}, true},
		{"500MB", Limit{Bytes: 500e6}, true},
		{"1.5 gib", Limit{Bytes: 3 << 29}, true},
		{"2TB", Limit{Bytes: 2e12}, true},
		{"8TiB", Limit{Bytes: 8 << 40}, true},
		{"4000kB", Limit{Bytes: 4e6}, true},
		{"2048KiB", Limit{Bytes: 2 << 20}, true},
		{"1048576", Limit{Bytes: 1 << 20}, true},
		{"1048576B", Limit{Bytes: 1 << 20}, true},
		{"90%", Limit{Percent: 90}, true},
		{" 0.5 %", Limit{Percent: 0.5}, true},
		{"100%", Limit{Percent: 100}, true},
	}
	bad := []string{
		"", "%", "much", "GiB", "-5GiB", "5G", "5 giga", "1e9", "0", "0%", "101%", "1000kB", "1..5GB", "9000000000TiB", "NaN", "Inf",
	}
	for _, text := range bad {
		tests = append(tests, limitTest{text: text})
	}
	for _, test := range tests {
		got, err := ParseLimit(test.text)
		if got != test.want || (err == nil) != test.good {
			t.Errorf("ParseLimit(%q) = %+v, %v, want %+v", test.text, got, err, test.want)
		}
		if err != nil && (!errors.Is(err, errLimit) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("ParseLimit(%q): %v, want one line that says what is wanted", test.text, err)
		}
	}
}

func FuzzParseLimit(f *testing.F) {
	for _, text := range []string{"20GiB", "90%", "1e400", "0x10", ".", "9223372036854775807"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := ParseLimit(text)
		good := l.Bytes >= minLimit && l.Percent == 0 || l.Bytes == 0 && l.Percent > 0 && l.Percent <= 100
		if err == nil && !good || err != nil && l != (Limit{}) {
			t.Errorf("ParseLimit(%q) = %+v, %v", text, l, err)
		}
	})
}
