package store

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Limit is how much a Disk may take: so many bytes, or a share of what others leave of
// its file system, which is what is free there and what the Disk has already. The zero
// Limit is none.
type Limit struct {
	Bytes   int64
	Percent float64 // more than 0, at most 100; only where Bytes is 0
}

// minLimit is what the index and a few objects take.
const minLimit = 1 << 20

// units are those of bytes. The letters alone are missing: people disagree on
// whether G is GB or GiB.
var units = map[string]float64{ //nolint:gochecknoglobals // constant
	"": 1, "b": 1,
	"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
	"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}

var errLimit = errors.New("want bytes such as 20GiB or 500MB, or a share of the file system such as 90%")

// ParseLimit reads bytes, with or without a unit, or a percentage. Its errors are
// made for the terminal.
func ParseLimit(text string) (Limit, error) {
	number, unit := strings.TrimSpace(text), ""
	if i := strings.IndexFunc(number, func(r rune) bool { return (r < '0' || r > '9') && r != '.' }); i >= 0 {
		number, unit = number[:i], strings.TrimSpace(number[i:])
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return Limit{}, errLimit
	}
	if unit == "%" {
		if n <= 0 || n > 100 {
			return Limit{}, fmt.Errorf("%w: the share must be more than 0%% and at most 100%%", errLimit)
		}
		return Limit{Percent: n}, nil
	}
	factor, ok := units[strings.ToLower(unit)]
	switch bytes := n * factor; {
	case !ok:
		return Limit{}, errLimit
	case bytes < minLimit:
		return Limit{}, fmt.Errorf("%w: at least 1MiB", errLimit)
	case bytes >= math.MaxInt64:
		return Limit{}, fmt.Errorf("%w: that is more than any disk has", errLimit)
	default:
		return Limit{Bytes: int64(bytes)}, nil
	}
}

// space is what a file system has, in bytes, as df shows it: what is only for the
// superuser counts for nothing.
type space struct{ used, free int64 }

func (s space) total() int64 { return s.used + s.free }

// leftOf is what others leave to who has taken that much.
func (s space) leftOf(taken int64) int64 { return min(s.total(), s.free+taken) }
