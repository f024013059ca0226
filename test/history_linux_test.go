package test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/harness"
)

// history is what clients were told of the versions of one module while these were
// published. It is judged when all is over.
type history struct {
	fake *upstreamtest.Server

	mu        sync.Mutex
	published []time.Time // of version v1.<i>.0
	told      []telling
}

// telling is an answer to a client who asked for the list, or for the latest version, which
// stands for a list that ends with it.
type telling struct {
	gateway    string
	latest     bool
	start, end time.Time
	age        time.Duration
	stale      bool
	versions   []string
}

const (
	growing = "example.com/growing"
	// freshFor is how old a list may be that is not marked stale (cluster.md 4.11), with
	// what the way and a busy machine take.
	freshFor = time.Minute + 5*time.Second
)

func (h *history) publish() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fake.Add(upstreamtest.Module{Path: growing, Version: fmt.Sprintf("v1.%d.0", len(h.published))})
	h.published = append(h.published, time.Now())
}

// watch lets a client ask gateways for the list, until stop is closed.
func (h *history) watch(stop <-chan struct{}, random *rand.Rand, gateways []*harness.Process) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(random.Int64N(int64(400 * time.Millisecond)))):
		}
		h.ask(pick(random, gateways), random.IntN(3) == 0)
	}
}

// ask notes what a gateway answers. Who has no answer is for the load to tell.
func (h *history) ask(gateway *harness.Process, latest bool) {
	told, path := telling{gateway: gateway.Name, latest: latest, start: time.Now()}, "/@v/list"
	if latest {
		path = "/@latest"
	}
	resp, err := gateway.Client().Get(gateway.URL() + "/" + growing + path)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return
	}
	told.end, told.versions = time.Now(), strings.Fields(string(body))
	if latest {
		told.versions = upTo(body)
	}
	told.stale = strings.Contains(resp.Header.Get("Cache-Status"), "fwd=stale")
	if seconds, err := strconv.Atoi(resp.Header.Get("Age")); err == nil {
		told.age = time.Duration(seconds) * time.Second
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told = append(h.told, told)
}

// upTo returns the versions up to that of an info.
func upTo(body []byte) (versions []string) {
	var info struct{ Version string }
	if err := json.Unmarshal(body, &info); err != nil {
		return []string{string(body)}
	}
	n := 0
	if _, err := fmt.Sscanf(info.Version, "v1.%d.0", &n); err != nil {
		return []string{info.Version}
	}
	for i := range n + 1 {
		versions = append(versions, fmt.Sprintf("v1.%d.0", i))
	}
	return versions
}

// judge is I1 and I9 of cluster.md 6: nobody was told what upstream never said, or what is
// older than promised without a mark, and no gateway went back from what was fresh.
func (h *history) judge() (bad []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	slices.SortFunc(h.told, func(a, b telling) int { return a.end.Compare(b.end) })
	for i, a := range h.told {
		n, clock := len(a.versions), a.start.Format(clockLayout)
		for v, text := range a.versions {
			if text != fmt.Sprintf("v1.%d.0", v) || n > len(h.published) {
				bad = append(bad, fmt.Sprintf("%s %s: I1 upstream never said %q", clock, a.gateway, a.versions))
				break
			}
		}
		switch {
		case a.stale:
		case a.age > freshFor:
			bad = append(bad, fmt.Sprintf("%s %s: I9 not marked stale at the age of %v", clock, a.gateway, a.age))
		case n < len(h.published) && a.start.Sub(h.published[n]) > freshFor:
			bad = append(bad, fmt.Sprintf("%s %s: I9 not marked stale with %d versions, though there was another one at %s",
				clock, a.gateway, n, h.published[n].Format(clockLayout)))
		}
		for _, before := range h.told[:i] {
			if before.gateway == a.gateway && before.latest == a.latest && !before.stale && before.end.Before(a.start) && len(before.versions) > n {
				bad = append(bad, fmt.Sprintf("%s %s: I9 went back from %d versions to %d", clock, a.gateway, len(before.versions), n))
				break
			}
		}
	}
	return bad
}

func TestHistoryFindsFaults(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	lists := [][]string{{"v1.0.0"}, {"v1.0.0", "v1.1.0"}, {"v1.1.0"}, {"v1.0.0", "v1.1.0", "v1.2.0"}}
	for name, tt := range map[string]struct {
		told []telling
		want string // "" for a history without fault
	}{
		"all well":         {[]telling{{"g", false, at(50), at(51), 0, false, lists[0]}, {"g", false, at(90), at(91), 0, false, lists[1]}}, ""},
		"never said":       {[]telling{{"g", false, at(50), at(51), 0, false, lists[2]}}, "I1"},
		"not there yet":    {[]telling{{"g", false, at(50), at(51), 0, false, lists[3]}}, "I1"},
		"too old":          {[]telling{{"g", false, at(50), at(51), 70 * time.Second, false, lists[0]}}, "at the age of"},
		"behind":           {[]telling{{"g", false, at(110), at(111), 0, false, lists[0]}}, "there was another one"},
		"behind, marked":   {[]telling{{"g", false, at(110), at(111), 0, true, lists[0]}}, ""},
		"went back":        {[]telling{{"g", false, at(50), at(51), 0, false, lists[1]}, {"g", false, at(52), at(53), 0, false, lists[0]}}, "went back"},
		"another answer":   {[]telling{{"g", false, at(50), at(51), 0, false, lists[1]}, {"g", true, at(52), at(53), 0, false, lists[0]}}, ""},
		"latest went back": {[]telling{{"g", true, at(50), at(51), 0, false, upTo([]byte(`{"Version":"v1.1.0"}`))}, {"g", true, at(52), at(53), 0, false, upTo([]byte(`{"Version":"v1.0.0"}`))}}, "went back"},
		"another gateway":  {[]telling{{"g", false, at(50), at(51), 0, false, lists[1]}, {"h", false, at(52), at(53), 0, false, lists[0]}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := &history{published: []time.Time{at(0), at(40)}, told: tt.told}
			if got := strings.Join(h.judge(), "\n"); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
