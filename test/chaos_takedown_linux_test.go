package test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// takedowns is what operators have ordered about versions, and what clients were told
// of these meanwhile. It is judged when all is over.
type takedowns struct {
	sums  library
	paths []string // of modules with a version that is purged, and an older one

	mu       sync.Mutex
	orders   map[string][]order // by path, one after the other
	trouble  []period
	blind    []time.Time // when a node has begun that may not have reached others
	told     []word
	failures []string
}

// order is a purge, or the end of one.
type order struct {
	lift         bool
	began, ended time.Time // ended is zero where nobody knows whether it was taken
	complete     bool      // by all nodes that ran
}

// period is when not everybody could be told everything; to is zero while it lasts.
type period struct{ from, to time.Time }

// word is what a client was told: that the version is gone, or not.
type word struct {
	gateway, path, what string
	start, end          time.Time
	gone                bool
}

const (
	doomed   = "v1.1.0"
	survivor = "v1.0.0"
	whyGone  = "taken down by chaos"
	// prompt is how long gateways may go on after all nodes have confirmed.
	prompt = 20 * time.Second
	// hearing is how long it may take nodes to ask each other, and their gateways
	// to hear of it.
	hearing = 90 * time.Second
)

// newTakedowns publishes so many modules.
func newTakedowns(t *testing.T, fake *upstreamtest.Server, n int) *takedowns {
	t.Helper()
	all := modules(t, fake, "doomed", n, 100<<10)
	td := &takedowns{orders: map[string][]order{}}
	for _, m := range all {
		td.paths = append(td.paths, m.Path)
		m.Version = doomed
		fake.Add(m)
		all = append(all, m)
	}
	td.sums = libraryOf(fake, all)
	return td
}

// hinder notes that from now on not everybody can be told everything.
func (td *takedowns) hinder() (end func()) {
	td.mu.Lock()
	defer td.mu.Unlock()
	i := len(td.trouble)
	td.trouble = append(td.trouble, period{from: time.Now()})
	return func() {
		td.mu.Lock()
		defer td.mu.Unlock()
		td.trouble[i].to = time.Now()
	}
}

// begun notes that a node has begun while it may not have reached others.
func (td *takedowns) begun() {
	td.mu.Lock()
	defer td.mu.Unlock()
	td.blind = append(td.blind, time.Now())
}

// give notes an order, and returns what is to be called with its outcome.
func (td *takedowns) give(path string, lift bool) (taken func(complete bool)) {
	td.mu.Lock()
	defer td.mu.Unlock()
	i := len(td.orders[path])
	td.orders[path] = append(td.orders[path], order{lift: lift, began: time.Now()})
	return func(complete bool) {
		td.mu.Lock()
		defer td.mu.Unlock()
		o := &td.orders[path][i]
		o.ended, o.complete = time.Now(), complete
	}
}

// retract forgets the last order, which nobody has taken.
func (td *takedowns) retract(path string) {
	td.mu.Lock()
	defer td.mu.Unlock()
	td.orders[path] = td.orders[path][:len(td.orders[path])-1]
}

// watch lets a client ask gateways, until stop is closed.
func (td *takedowns) watch(stop <-chan struct{}, random *rand.Rand, gateways []*harness.Process) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(random.Int64N(int64(200 * time.Millisecond)))):
		}
		td.ask(pick(random, gateways), td.choose(random), pick(random, []string{".info", ".mod", ".zip", "list", "latest"}))
	}
}

// choose draws a module, mostly one about which there was an order.
func (td *takedowns) choose(random *rand.Rand) string {
	td.mu.Lock()
	defer td.mu.Unlock()
	if n := len(td.orders); n > 0 && random.IntN(4) > 0 {
		return td.paths[random.IntN(n)] // they are purged in this order
	}
	return pick(random, td.paths)
}

// ask notes what a gateway says of a module.
func (td *takedowns) ask(gateway *harness.Process, path, what string) {
	w := word{gateway: gateway.Name, path: path, what: what, start: time.Now()}
	gone, err := td.isGone(gateway, path, what)
	w.gone, w.end = gone, time.Now()
	td.mu.Lock()
	defer td.mu.Unlock()
	if err != nil {
		td.failures = append(td.failures, fmt.Sprintf("%s %s %s: %v", w.start.Format(clockLayout), path, what, err))
		return
	}
	td.told = append(td.told, w)
}

func (td *takedowns) isGone(gateway *harness.Process, path, what string) (bool, error) {
	name := path + "/@v/" + doomed + what
	switch what {
	case "list":
		name = path + "/@v/list"
	case "latest":
		name = path + "/@latest"
	}
	resp, err := gateway.Client().Get(gateway.URL() + "/" + name)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, fmt.Errorf("%s: %s, then after %d bytes: %w", gateway.Name, resp.Status, len(body), err)
	}
	text, ok := string(body), resp.StatusCode == http.StatusOK
	switch what {
	case "list":
		gone := text == survivor+"\n"
		ok = ok && (gone || text == survivor+"\n"+doomed+"\n")
		if ok {
			return gone, nil
		}
	case "latest":
		gone := bytes.Contains(body, []byte(survivor))
		if ok && (gone || bytes.Contains(body, []byte(doomed))) {
			return gone, nil
		}
	default:
		if resp.StatusCode == http.StatusGone && strings.Contains(text, whyGone) {
			return true, nil
		}
		if ok && sha256.Sum256(body) == td.sums[name] {
			return false, nil
		}
	}
	return false, fmt.Errorf("%s: %s with %.200q", gateway.Name, resp.Status, text)
}

// judge is I10 of cluster.md 6, and that nobody is told of a purge that is none.
func (td *takedowns) judge() (bad []string) {
	td.mu.Lock()
	defer td.mu.Unlock()
	bad = slices.Clone(td.failures)
	for _, w := range td.told {
		there, gone := td.allowed(w)
		if w.gone && !gone {
			bad = append(bad, fmt.Sprintf("%s %s: %s of %s is said to be purged", w.start.Format(clockLayout), w.gateway, w.what, w.path))
		}
		if !w.gone && !there {
			bad = append(bad, fmt.Sprintf("%s %s: I10 %s of %s is there, though it was purged", w.start.Format(clockLayout), w.gateway, w.what, w.path))
		}
	}
	return bad
}

// allowed tells what a client may be told: what the last order says that must be known, or
// any later one. Lists are allowed to lag behind the end of a purge.
func (td *takedowns) allowed(w word) (there, gone bool) {
	there = true
	for _, o := range td.orders[w.path] {
		switch {
		case !o.began.Before(w.end):
		case !td.known(o, w):
			there, gone = there || o.lift, gone || !o.lift
		case o.lift:
			there, gone = true, w.what == "list" || w.what == "latest"
		default:
			there, gone = false, true
		}
	}
	return there, gone
}

// known tells whether everybody must know an order: soon where all nodes have taken it and
// nothing went wrong meanwhile; else when nothing has gone wrong for as long as it takes them to
// ask each other.
func (td *takedowns) known(o order, w word) bool {
	switch {
	case o.ended.IsZero() || w.start.Before(o.ended.Add(prompt)):
		return false
	case o.complete && !td.hindered(o.began, o.ended.Add(prompt)) && !slices.ContainsFunc(td.blind, func(at time.Time) bool { return at.After(o.ended) && at.Before(w.end) }):
		return true
	default:
		return w.start.After(o.ended.Add(hearing)) && !td.hindered(w.start.Add(-hearing), w.end)
	}
}

func (td *takedowns) hindered(from, to time.Time) bool {
	return slices.ContainsFunc(td.trouble, func(p period) bool { return p.from.Before(to) && (p.to.IsZero() || p.to.After(from)) })
}

// settle waits until all gateways say what was ordered last.
func (td *takedowns) settle(t *testing.T, gateways []*harness.Process) (gone []string) {
	t.Helper()
	for path, orders := range td.orders {
		last := orders[len(orders)-1]
		if last.ended.IsZero() {
			t.Logf("nobody knows whether the last order about %s was taken", path)
			continue
		}
		for _, ext := range []string{".info", ".mod", ".zip"} {
			for _, g := range gateways {
				within(t, 3*time.Minute, g.Name+" to know what was ordered about "+path, func() error {
					is, err := td.isGone(g, path, ext)
					if err == nil && is == last.lift {
						err = fmt.Errorf("%s of %s is purged: %v", ext, path, is)
					}
					return err
				})
			}
			if !last.lift {
				gone = append(gone, path+"/@v/"+doomed+ext)
			}
		}
	}
	return gone
}

func TestTakedownsFindFaults(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	// It is purged from 100 s to 101 s, and lifted from 300 s to 301 s.
	said := func(what string, second int, gone bool) word {
		return word{"g", "m", what, at(second), at(second + 1), gone}
	}
	for name, tt := range map[string]struct {
		word    word
		trouble []period
		blind   []time.Time
		partly  bool   // not all nodes have taken the purge
		want    string // "" for no fault
	}{
		"before":                   {word: said(".zip", 50, false)},
		"gone before":              {word: said(".zip", 50, true), want: "is said to be purged"},
		"while it begins":          {word: said(".zip", 100, true)},
		"just after":               {word: said(".zip", 105, false)},
		"gone at once":             {word: said(".zip", 102, true)},
		"there":                    {word: said(".zip", 130, false), want: "I10"},
		"on a list":                {word: said("list", 130, false), want: "I10"},
		"there, not all told":      {word: said(".zip", 130, false), partly: true},
		"there, later":             {word: said(".zip", 200, false), partly: true, want: "I10"},
		"there, cut off":           {word: said(".zip", 250, false), trouble: []period{{at(90), at(180)}}},
		"there, cut off for long":  {word: said(".zip", 250, false), trouble: []period{{at(90), time.Time{}}}},
		"there, cut off too late":  {word: said(".zip", 250, false), trouble: []period{{at(140), at(240)}}, want: "I10"},
		"there, cut off too early": {word: said(".zip", 250, false), trouble: []period{{at(90), at(150)}}, want: "I10"},
		"there, from a newcomer":   {word: said(".zip", 150, false), blind: []time.Time{at(140)}},
		"there again":              {word: said(".zip", 300, false)},
		"still gone":               {word: said(".zip", 305, true)},
		"gone for too long":        {word: said(".zip", 340, true), want: "is said to be purged"},
		"gone from lists":          {word: said("latest", 340, true)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			td := &takedowns{told: []word{tt.word}, trouble: tt.trouble, blind: tt.blind, orders: map[string][]order{
				"m": {{false, at(100), at(101), !tt.partly}, {true, at(300), at(301), true}},
			}}
			if got := strings.Join(td.judge(), "\n"); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
