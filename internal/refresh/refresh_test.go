package refresh_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/internal/refresh"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

func give(t *testing.T, o *refresh.Orders, path string, below bool) uint64 {
	t.Helper()
	orders, err := o.Give(refresh.Subject{Path: path, Below: below})
	if err != nil {
		t.Fatal(err)
	}
	return orders[0].Number
}

func TestLatest(t *testing.T) {
	t.Parallel()
	o := refresh.New()
	if got := o.Latest("example.com/m"); got.Number != 0 {
		t.Errorf("without orders: %+v", got)
	}
	one := give(t, o, "example.com/m", false)
	tree := give(t, o, "example.com/repo", true)
	leaf := give(t, o, "example.com/repo/leaf", false)
	if tree <= one || leaf <= tree {
		t.Errorf("numbers %d, %d, %d do not rise", one, tree, leaf)
	}
	for path, want := range map[string]uint64{
		"example.com/m": one, "example.com/m/v2": 0, "example.com/mm": 0, "example.com": 0, "": 0,
		"example.com/repo": tree, "example.com/repo/v2": tree, "example.com/repo/a/b": tree, "example.com/repository": 0,
		"example.com/repo/leaf": leaf, "example.com/repo/leaf/v2": tree,
	} {
		if got := o.Latest(path).Number; got != want {
			t.Errorf("%s: got %d, want %d", path, got, want)
		}
	}
}

// What others tell is taken once, in any order, and passed on.
func TestTake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := refresh.New(), refresh.New()
		first := give(t, a, "example.com/m", false)
		old, seq := a.News(0)
		changed := a.Changed()
		time.Sleep(time.Second)
		second := give(t, a, "example.com/m", false)
		select {
		case <-changed:
		default:
			t.Error("a change was not told")
		}
		news, seq := a.News(seq)
		if len(old) != 1 || len(news) != 1 || old[0].GetNumber() != first || news[0].GetNumber() != second {
			t.Fatalf("told %v, then %v", old, news)
		}
		if more, _ := a.News(seq); len(more) != 0 {
			t.Errorf("told again: %v", more)
		}
		for _, told := range [][]*ringmodv1.RefreshOrder{news, old, news} {
			if _, err := b.Take(refresh.Decode(told)...); err != nil {
				t.Error(err)
			}
		}
		if got := b.Latest("example.com/m").Number; got != second {
			t.Errorf("got %d, want %d", got, second)
		}
		b.Learn("example.com/m", first)
		b.Learn("example.com/n", first)
		if m, n := b.Latest("example.com/m").Number, b.Latest("example.com/n").Number; m != second || n != first {
			t.Errorf("learnt %d and %d, want %d and %d", m, n, second, first)
		}
		time.Sleep(refresh.Keep)
		if got, _ := b.News(0); b.Latest("example.com/m").Number != 0 || len(got) != 0 {
			t.Errorf("an old order is kept: %v", got)
		}
	})
}

func TestBadOrders(t *testing.T) {
	t.Parallel()
	o := refresh.New()
	for _, path := range []string{"", "/", "a//b", "a/../b", "a/", "a b", "a\\b", "a\x00b", "a\xff", strings.Repeat("a", 3000)} {
		if _, err := o.Give(refresh.Subject{Path: path}); err == nil {
			t.Errorf("%.20q is taken", path)
		}
	}
	o.Learn("example.com/m", 1<<63)
	if got := o.Latest("example.com/m"); got.Number != 0 {
		t.Errorf("a number that nothing could come after is taken: %+v", got)
	}
	give(t, o, "example.com/m", false)
}

func TestTooManyOrders(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := refresh.New()
		var err error
		n := 0
		for ; err == nil && n < 1<<20; n++ {
			_, err = o.Give(refresh.Subject{Path: fmt.Sprintf("example.com/m%d", n)})
		}
		if !errors.Is(err, refresh.ErrFull) {
			t.Fatalf("after %d: %v", n, err)
		}
		give(t, o, "example.com/m1", false) // which is there
		time.Sleep(refresh.Keep)
		give(t, o, "example.com/other", false)
	})
}
