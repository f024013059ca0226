package peers

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Outcomes in a row: '.' success, 'x' failure, '~' flaw, 'p' a probe is answered.
// The state is the one after the last of them.
func TestBreaker(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, outcomes string
		want           state
	}{
		{"four in a row", "xxxx", closed},
		{"five in a row", "xxxxx", open},
		{"four, one, four", "xxxx.xxxx", closed},
		{"flaws do not end a row", "xx~xx", closed},
		{"flaws do not end a row, five", "xx~xxx", open},
		{"flaws make none", strings.Repeat("~", 19), closed},
		{"twenty flaws", strings.Repeat("~", 20), open},
		{"ten of nineteen", strings.Repeat("x.", 9) + "x", closed},
		{"ten of twenty", strings.Repeat("x.", 10) + "x", open},
		{"nine of twenty", "x." + strings.Repeat("x..", 12), closed},
		{"long ago", strings.Repeat("x.", 9) + strings.Repeat(".", 20) + "x.x.x.", closed},
		{"answered", "xxxxxp", trial},
		{"a failed trial", "xxxxxpx", open},
		{"a flaw is no failed trial", "xxxxxp~", trial},
		{"a good trial", "xxxxxp.", closed},
		{"a good trial begins anew", "xxxxxp.xxxx", closed},
		{"a good trial begins anew, five", "xxxxxp.xxxxx", open},
		{"an answer to nobody", "xxxxp", closed},
		{"good though open", "xxxxx.", closed},
	}
	for _, test := range tests {
		var b breaker
		for _, outcome := range test.outcomes {
			switch outcome {
			case '.':
				b.success(b.now())
			case 'x', '~':
				b.failure(b.now(), outcome == '~')
			case 'p':
				b.answered()
			}
		}
		if got := b.look(); got != test.want {
			t.Errorf("%s: state %d after %q, want %d", test.name, got, test.outcomes, test.want)
		}
	}
}

// Calls that began before the breaker changed do not change it again.
func TestBreakerForgetsOldCalls(t *testing.T) {
	t.Parallel()
	var b breaker
	before := b.now()
	if !b.trip() || b.trip() {
		t.Error("trip opens it once")
	}
	during := b.now()
	if b.success(before) || !b.isOpen() {
		t.Error("a success from before closed it")
	}
	b.answered()
	if b.failure(before, false) || b.failure(during, false) || b.isOpen() {
		t.Error("a failure from before the trial opened it")
	}
}

func TestBreakerWaits(t *testing.T) {
	t.Parallel()
	var b breaker
	for _, want := range []float64{1, 2, 4, 8, 10, 10} { // seconds
		if got := b.wait().Seconds(); got != want {
			t.Errorf("waits %v s, want %v s", got, want)
		}
	}
	b.trip()
	b.answered()
	if got := b.wait(); got != maxPause {
		t.Errorf("on trial: waits %v, want %v", got, maxPause)
	}
	b.success(b.now())
	if got := b.wait(); got != minPause {
		t.Errorf("after a success: waits %v, want %v", got, minPause)
	}
}

func TestLatency(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var l latency
		check := func(what string, mean, p95, least time.Duration) {
			t.Helper()
			if m, p, s := l.look(); m != mean || p != p95 || s != least {
				t.Errorf("%s: mean %v, p95 %v, least %v, want %v, %v, %v", what, m, p, s, mean, p95, least)
			}
		}
		check("nothing", 0, 0, 0)
		l.add(800)
		check("one", 800, 800, 800)
		l.add(1600)
		check("two", 900, 1600, 800)
		time.Sleep(halfLife - time.Nanosecond)
		check("just before the half-life", 900, 1600, 800)
		time.Sleep(time.Nanosecond)
		check("after the half-life", 450, 1600, 800)
		time.Sleep(1000 * time.Hour)
		check("at rest", 1, 1600, 800)
		for i := range samples {
			l.add(time.Duration(100 - i))
		}
		if _, p95, least := l.look(); p95 != 97 || least != 37 {
			t.Errorf("p95 %v, least %v of 37 to 100, want 97 and 37", p95, least)
		}
		l.add(0)
		if _, _, least := l.look(); least != 1 {
			t.Errorf("least %v, want 1: 0 would say that nothing is known", least)
		}
	})
}
